//! Pure compressors and hashes on slices: no state beyond a caller's context, no allocation, no panics. Floor 1: called by
//! the pager.

pub mod amplitude;
pub mod dictionary;
pub mod hash;
pub mod lz4;
pub mod pattern;
pub mod stream;
