//! The documented subsystems: life cycles and what they do on demand. Floor 9: called by `ffi`; calls everything below.
//! Start with `phase.rs` (the life cycle that all share), then `allocation.rs`, `unified.rs` and `memory.rs`.

pub mod allocation;
pub mod custom;
pub mod dispatch;
pub mod estimate;
pub mod export;
mod fork;
pub mod layout;
mod log;
pub mod memory;
pub mod numbers;
pub mod phase;
pub mod pools;
pub mod recovery;
pub mod resources;
pub mod sampler;
pub mod saved;
pub mod serve;
pub mod state;
pub mod status;
pub mod tags;
pub mod unified;
pub mod whole;
