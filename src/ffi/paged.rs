//! Chapter "paged buffers" of <qmem.h>: hints and numbers. Called by C only.

use super::guard::{answer, enumerator, operation, status};
use super::memory::{non_null, not_found, paged_stats};
use super::types::*;
use crate::error::{Class, Error};
use crate::{fail, paged, registry};
use core::ffi::c_void;
use core::mem::MaybeUninit;

/// Runs `act` on a range that must lie in one paged buffer; an empty one is in order and nothing to do.
fn on_range(name: &str, ptr: *const c_void, bytes: usize, act: fn(*const u8, usize) -> Result<(), Error>) -> memory_status_t {
    operation(name, Class::of, || {
        non_null(ptr, "ptr")?;
        let ptr = ptr.cast::<u8>();
        let Some(found) = paged::find(ptr) else { return Err(fail!(NotFound, "{ptr:p} is in no paged buffer")) };
        let room = found.size - (ptr as usize - found.start as usize);
        if bytes > room {
            return Err(fail!(InvalidArgument, "bytes = {bytes} passes the end of the buffer, {room} bytes behind {ptr:p}"));
        }
        if bytes == 0 { Ok(()) } else { act(ptr, bytes) }
    })
}

/// Starts bringing a range of a paged buffer into RAM and returns at once. MEMORY_STATUS_NOT_FOUND outside paged buffers.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_prefetch(ptr: *const c_void, bytes: usize) -> memory_status_t {
    on_range("qmem_prefetch", ptr, bytes, paged::prefetch)
}

/// Brings a range into RAM and keeps it there until as many `qmem_unpin`. Needed before a device gets the buffer, or the kernel for
/// longer than one system call (registered I/O buffers, vmsplice): without it what they write later can be lost. Where `qmem doctor`
/// says so, system calls need it too, and fail with EFAULT without. MEMORY_STATUS_LIMIT if the budget cannot hold it.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_pin(ptr: *const c_void, bytes: usize) -> memory_status_t {
    on_range("qmem_pin", ptr, bytes, paged::pin)
}

/// Undoes one `qmem_pin` of the same range.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_unpin(ptr: *const c_void, bytes: usize) -> memory_status_t {
    on_range("qmem_unpin", ptr, bytes, paged::unpin)
}

/// Moves the chunks wholly inside a range out of RAM, as far as compression, deduplication and swapping allow. One that is being read
/// ahead is waited for; what an access made before has still in the queue to be read ahead may come back later.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_evict(ptr: *const c_void, bytes: usize) -> memory_status_t {
    on_range("qmem_evict", ptr, bytes, paged::evict)
}

/// The element type of the pager's.
pub(super) fn element(element: qmem_element_t) -> Option<paged::Element> {
    match element {
        qmem_element_t::QMEM_ELEMENT_BYTES => None,
        qmem_element_t::QMEM_ELEMENT_C64 => Some(paged::Element::C64),
        qmem_element_t::QMEM_ELEMENT_C128 => Some(paged::Element::C128),
        qmem_element_t::QMEM_ELEMENT_F32 => Some(paged::Element::F32),
        qmem_element_t::QMEM_ELEMENT_F64 => Some(paged::Element::F64),
    }
}

/// Says what a buffer is an array of, and so permits that it is compressed with loss: within the tolerance that it was allocated with,
/// if any, and within the process's error budget (`qmem_set_error_budget`); with neither, nothing is lost. QMEM_ELEMENT_BYTES: without
/// loss from now on. Chunks with a NaN, an infinity or a subnormal number, which integers look like, never lose anything; everything
/// else in the buffer must be numbers of that type. Blocks that are not paged are not compressed, so for them it means nothing.
/// MEMORY_STATUS_NOT_FOUND if `buffer` is no live block's start.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_set_element(buffer: *mut c_void, element: MaybeUninit<qmem_element_t>) -> memory_status_t {
    status(|| {
        non_null(buffer, "buffer")?;
        let what = self::element(enumerator(element, "element")?);
        let info = registry::find_start(buffer.cast()).map_err(not_found)?;
        if info.kind == registry::Kind::Paged { paged::set_element(info.start, what) } else { Ok(()) }
    })
}

/// The numbers of one block, of whatever kind: its size, and what of it is where; `error_spent` is the square of the relative L2 error
/// that lossy compression has made in it at most. MEMORY_STATUS_NOT_FOUND if `buffer` is no live block's start.
///
/// # Safety
/// `stats` is NULL or points to room for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_get_buffer_stats(buffer: *const c_void, stats: *mut memory_stats_t) -> memory_status_t {
    status(|| {
        non_null(buffer, "buffer")?;
        let info = registry::find_start(buffer.cast()).map_err(not_found)?;
        let (pages, resident) = match paged::region_stats(buffer.cast()) {
            Some(pages) => (pages, pages.resident_bytes),
            None => (paged::PagedStats::default(), info.usable),
        };
        let numbers = memory_stats_t {
            total_allocated: info.size,
            peak_allocated: info.size,
            num_allocations: 1,
            largest_allocation: info.size,
            current_allocated: info.size,
            resident_bytes: resident,
            peak_resident_bytes: resident,
            error_spent: paged::loss(buffer.cast()).map_or(0.0, |loss| loss.total * loss.total),
            ..paged_stats(&pages)
        };
        // SAFETY: the caller's promise.
        unsafe { answer(stats, "stats", numbers) }
    })
}
