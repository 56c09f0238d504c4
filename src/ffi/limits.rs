//! Chapter "memory" of <qmem.h>, its end: tags, limits, ticks. Called by C only.

use super::guard::{answer, status, value};
use super::types::*;
use crate::error::Error;
use crate::fail;
use crate::system::{recovery, tags};
use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering::Relaxed;

/// The string that C passes, if it passes one.
///
/// # Safety
/// `text` is NULL or a NUL-terminated string that nobody writes during the call.
unsafe fn string<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// Bounds what blocks of every kind (heap, paged, pooled, of the registered interface, tracked) may hold together, from the next block
/// on: those of the tag, or with NULL all of the process. `max_bytes` counts requested bytes, `max_blocks` blocks; 0 = no limit. A request
/// that would pass a limit fails with MEMORY_STATUS_LIMIT in the last error, after MEMORY_ERROR_ALLOCATION was dispatched. A new
/// name makes a tag; there can be 31, with names of 1 to 63 bytes, for the life of the process.
///
/// # Safety
/// `tag` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_set_limit(tag: *const c_char, max_bytes: usize, max_blocks: usize) -> memory_status_t {
    // SAFETY: the caller's promise.
    status(|| tags::set_limit(unsafe { string(tag) }, max_bytes, max_blocks))
}

/// The blocks that this thread is given from now on carry the tag (NULL: none), for limits and statistics, until they are freed, by
/// whichever thread. Returns the former tag, NULL for none; the string is static. On failure (a bad name, one tag too many: see
/// `qmem_set_limit`) nothing changes, NULL is returned, and the last error says why.
///
/// # Safety
/// `tag` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_set_tag(tag: *const c_char) -> *const c_char {
    // SAFETY: the caller's promise.
    let former = value(None, || tags::set_current(unsafe { string(tag) }));
    former.map_or(core::ptr::null(), CStr::as_ptr)
}

/// What a tag's blocks hold now and held: total_allocated, peak_allocated, current_allocated, num_allocations, num_frees and
/// largest_allocation; the other numbers are of the process and 0 here. MEMORY_STATUS_NOT_FOUND for a name that was never used.
///
/// # Safety
/// `tag` is NULL or a string, `stats` is NULL or points to room for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_get_tag_stats(tag: *const c_char, stats: *mut memory_stats_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let tag = unsafe { string(tag) }.ok_or_else(|| -> Error { fail!(InvalidArgument, "tag is NULL") })?;
        let counted = tags::counted(tag)?;
        let numbers = memory_stats_t {
            total_allocated: counted.total.load(Relaxed),
            peak_allocated: counted.peak.load(Relaxed),
            num_allocations: counted.allocations.load(Relaxed),
            num_frees: counted.frees.load(Relaxed),
            largest_allocation: counted.largest.load(Relaxed),
            current_allocated: counted.current.load(Relaxed),
            ..memory_stats_t::default()
        };
        // SAFETY: the caller's promise.
        unsafe { answer(stats, "stats", numbers) }
    })
}

/// One unit of the program's work is done (a gate, a step): where recovery wants checkpoints, ticks count towards the next one, which may
/// be made here. Call it where buffers hold a state worth going back to. OK where nothing was due; else what the checkpoint gave, whose
/// failure is dispatched first.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_tick() -> memory_status_t {
    status(recovery::tick)
}
