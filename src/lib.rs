//! qmem, the map: modules in floor order. A module names only modules on lower floors (tests/tidy.rs checks it).
//! `ARCHITECTURE.md` is the picture; start there.

// 0: the machine, small data structures, settings, errors
pub mod config;
pub mod ds;
pub mod error;
pub mod os;
pub mod sync;
// 1: pure functions on slices; the machine's nodes
pub mod codec;
pub mod topology;
// 2: what is counted and what it may cost
pub mod monitor;
// 3: blocks
pub mod heap;
// 4: paged regions; blocks of a few sizes, bounded by number
pub mod paged;
pub mod pool;
// 5: any pointer to what it is; whole buffers to fewer bytes
#[cfg(feature = "compressors")]
pub mod compress;
pub mod registry;
// 9: the documented subsystems
pub mod system;
// 10: the C API
pub mod ffi;
