//! The C API: ALL `extern "C"` functions. Check, translate, call, return a status; no algorithm. Floor 10: called by C only.
//! One file per chapter of the headers, which are generated from these files (`make headers`).
#![allow(non_camel_case_types)] // the names are C's

mod guard;
// qmem_types.h
pub mod types;
// quantum_memory.h, in the order of the header
pub mod adaptive;
pub mod allocation;
pub mod cache;
pub mod checkpoint;
pub mod errors;
pub mod resources;
pub mod system;
pub mod tensor;
pub mod tuning;
pub mod unified;
// qmem.h
#[cfg(feature = "compressors")]
pub mod compress;
pub mod handlers;
pub mod info;
pub mod limits;
pub mod memory;
pub mod monitoring;
pub mod paged;
pub mod pool;
pub mod quotas;
pub mod state;
