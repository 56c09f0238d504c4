//! Chapter "unified interface" of <quantum_memory.h>: the pool's life cycle, and the table of functions that draw on it. Called by
//! C only; `memory` hands the table out.

use super::guard::{answer, flag, memory, operation, reference, status, value};
use super::types::*;
use crate::error::{Class, Error};
use crate::fail;
use crate::system::memory as blocks;
use crate::system::memory::Door;
use crate::system::unified::{self, Config};
use core::ffi::c_void;

fn checked(config: &unified_pool_config_t) -> Result<Config, Error> {
    for (size, name) in [(config.initial_size, "initial_size"), (config.max_size, "max_size")] {
        super::guard::within(size, size <= isize::MAX as usize, name, "0 to PTRDIFF_MAX")?;
    }
    Ok(Config {
        initial_size: config.initial_size,
        max_size: config.max_size,
        growth: flag(config.enable_growth, "enable_growth")?,
        geometric: flag(config.use_geometric_layout, "use_geometric_layout")?,
        streaming: flag(config.enable_streaming, "enable_streaming")?,
        chunk_size: unified::chunk_size(config.chunk_size)?,
        tolerance: super::guard::fraction(config.compression_tolerance, "compression_tolerance")?,
    })
}

/// Configures the unified pool; `config` is copied. Memory allocation need not run: without it blocks come from the heap, large
/// arrays from the pager, within the default budget. initial_size is reserved at once (MEMORY_STATUS_OUT_OF_MEMORY if it does
/// not fit). MEMORY_STATUS_ALREADY_INITIALIZED while it runs, MEMORY_STATUS_BUSY while it is stopped. A failure changes nothing.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_unified_memory(config: *const unified_pool_config_t) -> memory_status_t {
    operation("initialize_unified_memory", Class::of, || {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        unified::start(&checked(config)?)
    })
}

/// Nothing new from the pool; its blocks stay usable and freeable. MEMORY_STATUS_NOT_INITIALIZED if it never ran; a second stop is OK.
#[unsafe(no_mangle)]
pub extern "C" fn stop_unified_memory() -> memory_status_t {
    status(unified::stop)
}

/// Frees the pool's blocks, each leftover reported as a leak on stderr. MEMORY_STATUS_BUSY while it runs; a second cleanup is OK.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_unified_memory() -> memory_status_t {
    status(unified::clean)
}

/// qmem's own table of functions. It is ours to hand out and the program's to read.
pub(super) static INTERFACE: unified_memory_interface_t = unified_memory_interface_t {
    allocate: Some(allocate),
    free: Some(super::memory::qmem_free),
    realloc: Some(realloc),
    allocate_geometric: Some(allocate_geometric),
    allocate_hierarchical: Some(allocate_hierarchical),
    allocate_streaming: Some(allocate_streaming),
    track_allocation: Some(track_allocation),
    untrack_allocation: Some(untrack_allocation),
    get_stats: Some(get_stats),
};

extern "C" fn allocate(size: usize, alignment: usize) -> *mut c_void {
    memory("allocate", || blocks::allocate(Door::Unified, size, alignment, false))
}

unsafe extern "C" fn realloc(ptr: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the program's promise, as for qmem_realloc.
    memory("realloc", || unsafe { blocks::reallocate(Door::Unified, ptr.cast(), size) })
}

unsafe extern "C" fn allocate_geometric(dimensions: *mut usize, num_dims: usize) -> *mut c_void {
    // SAFETY: the program's promise, as for qmem_allocate_geometric.
    memory("allocate_geometric", || blocks::allocate_geometric(Door::Unified, unsafe { extents(dimensions, num_dims)? }))
}

extern "C" fn allocate_hierarchical(size: usize, tolerance: f64) -> *mut c_void {
    memory("allocate_hierarchical", || blocks::allocate_hierarchical(Door::Unified, size, tolerance))
}

extern "C" fn allocate_streaming(total_size: usize, chunk_size: usize) -> *mut c_void {
    memory("allocate_streaming", || blocks::allocate_streaming(Door::Unified, total_size, chunk_size))
}

extern "C" fn track_allocation(ptr: *mut c_void, size: usize) -> bool {
    value(false, || blocks::track(ptr.cast(), size).map(|()| true))
}

extern "C" fn untrack_allocation(ptr: *mut c_void) -> bool {
    value(false, || blocks::untrack(ptr.cast()).map(|()| true))
}

unsafe extern "C" fn get_stats(stats: *mut memory_stats_t) {
    // SAFETY: the program passes NULL or room for the numbers.
    value((), || unsafe { answer(stats, "stats", super::memory::process_stats()) })
}

/// The dimensions that a program passes.
///
/// # Safety
/// `dimensions` is NULL, misaligned, or holds `num_dims` numbers that nobody writes during the call.
pub(super) unsafe fn extents<'a>(dimensions: *const usize, num_dims: usize) -> Result<&'a [usize], Error> {
    // SAFETY: the caller's promise; nothing is read yet.
    unsafe { reference(dimensions, "dimensions")? };
    if num_dims == 0 || num_dims > crate::system::layout::MAX_DIMS {
        return Err(fail!(InvalidArgument, "num_dims = {num_dims} is outside 1 to {}", crate::system::layout::MAX_DIMS));
    }
    // SAFETY: not NULL, aligned, and at most 16 numbers that the caller promises to be there.
    Ok(unsafe { core::slice::from_raw_parts(dimensions, num_dims) })
}
