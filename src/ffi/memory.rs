//! Chapter "memory" of <qmem.h>: blocks, references, layouts, statistics, estimates. Called by C only.

use super::guard::{answer, memory, reference, status, text_array, value, zero};
use super::types::*;
use super::unified::{INTERFACE, extents};
use crate::error::Error;
use crate::monitor::account;
use crate::monitor::counters::BLOCKS;
use crate::system::custom::{self, Interface};
use crate::system::estimate::{self, Workload};
use crate::system::memory::{self as blocks, Door};
use crate::system::numbers::{self, Numbers};
use crate::{fail, paged, registry};
use core::ffi::{c_char, c_void};

/// A block of `size` bytes by the configured allocation type (the heap before initialisation), uninitialised, freed by
/// `qmem_free`. `alignment` 0 = 64, else a power of two up to 1 GiB. Size 0 gives a distinct block of the smallest size. NULL on
/// failure: the reason is in `qmem_last_error`, and a refusal goes to `handle_memory_error` first.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_allocate(size: usize, alignment: usize) -> *mut c_void {
    memory("qmem_allocate", || blocks::allocate(Door::Process, size, alignment, false))
}

/// As `qmem_allocate`, all bytes zero.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_allocate_zeroed(size: usize, alignment: usize) -> *mut c_void {
    memory("qmem_allocate_zeroed", || blocks::allocate(Door::Process, size, alignment, true))
}

/// Changes a block's size; contents up to the smaller size are kept, and so is the kind of memory. The block may move; on failure
/// (NULL) it is unchanged. NULL asks for a new block. Refused with MEMORY_STATUS_BUSY in the last error while the block has more
/// than one reference. A geometric array loses its layout. A pool's block becomes the pool's smallest that holds `size`; beyond the
/// pool's largest it is refused. A bad pointer is reported, then the process aborts.
///
/// # Safety
/// `ptr` is NULL or a live block that nobody uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_realloc(ptr: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    memory("qmem_realloc", || unsafe { blocks::reallocate(Door::Process, ptr.cast(), size) })
}

/// Drops one reference, and with the last one frees the block, from any thread and in any phase. NULL is fine. A pointer that is
/// no block's start, or was freed already, is reported in one line on stderr, then the process aborts. A pool's block goes back to its
/// pool, as by `qmem_pool_release`.
///
/// # Safety
/// With the last reference, nobody uses the block any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_free(ptr: *mut c_void) {
    if !ptr.is_null() {
        // SAFETY: the caller's promise.
        value((), || unsafe { blocks::free(ptr.cast()) });
    }
}

/// One more reference to a block, which then takes one more `qmem_free`. Returns `ptr`; NULL if it is no live block of qmem's, or a
/// pool's, which has one holder.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_retain(ptr: *mut c_void) -> *mut c_void {
    value(core::ptr::null_mut(), || blocks::retain(ptr.cast()).map(|block| block.cast()))
}

/// References to a block: 1 after it was given; 0 if `ptr` is no live block of qmem's.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_refcount(ptr: *const c_void) -> usize {
    value(0, || {
        let info = registry::find_start(ptr.cast())?;
        Ok(if matches!(info.kind, registry::Kind::Tracked) { 0 } else { registry::references(ptr.cast()) })
    })
}

/// Bytes that may be used at `ptr`, at least what was asked for; 0 if it is no live block's start.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_usable_size(ptr: *const c_void) -> usize {
    value(0, || Ok(registry::find_start(ptr.cast())?.usable))
}

/// An array of complex<double> (16 bytes) with 1 to 16 dimensions, row-major, uninitialised, by the configured allocation type.
/// Rows of 1 KiB and more whose length is a multiple of 1 KiB are padded by a cache line, unless the unified pool says dense;
/// `qmem_get_layout` has the strides. NULL on failure.
///
/// # Safety
/// `dimensions` is NULL or holds `num_dims` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_allocate_geometric(dimensions: *const usize, num_dims: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    memory("qmem_allocate_geometric", || blocks::allocate_geometric(Door::Process, unsafe { extents(dimensions, num_dims)? }))
}

/// A paged, zeroed buffer of `size` bytes of complex<double>, which lossy compression may use: the total relative L2 error over
/// the buffer's life stays within `tolerance`, in [0, 1), and within the process's error budget; 0 = the unified pool's default, and
/// without loss if that is 0 too. The error is relative to the norm of the whole buffer, of which gates and everything else that keeps
/// norms leaves it a bound; see `qmem_set_element` for what is never rounded. NULL on failure.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_allocate_hierarchical(size: usize, tolerance: f64) -> *mut c_void {
    memory("qmem_allocate_hierarchical", || blocks::allocate_hierarchical(Door::Process, size, tolerance))
}

/// A paged, zeroed buffer that is swept in units of `chunk_size`: a power of two from 64 KiB to 1 GiB; 0 = the unified pool's
/// default, 2 MiB. NULL on failure, and while the unified pool is configured without streaming.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_allocate_streaming(total_size: usize, chunk_size: usize) -> *mut c_void {
    memory("qmem_allocate_streaming", || blocks::allocate_streaming(Door::Process, total_size, chunk_size))
}

/// Where the elements of a geometric array lie: element (i, j, …) is at offset + i * strides[0] + j * strides[1] + …
#[repr(C)]
pub struct qmem_layout_t {
    /// Dimensions in use.
    pub num_dims: usize,
    /// Their extents.
    pub dimensions: [usize; 16],
    /// In elements of 16 bytes.
    pub strides: [usize; 16],
    /// Of the first element, in elements.
    pub offset: usize,
}

/// The layout of an array from `qmem_allocate_geometric`; MEMORY_STATUS_NOT_FOUND for any other block.
///
/// # Safety
/// `layout` is NULL or points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_get_layout(ptr: *const c_void, layout: *mut qmem_layout_t) -> memory_status_t {
    status(|| {
        non_null(ptr, "ptr")?;
        let found = blocks::layout_of(ptr.cast()).map_err(not_found)?;
        let found = qmem_layout_t {
            num_dims: found.num_dims,
            dimensions: found.dimensions,
            strides: found.strides,
            offset: found.offset,
        };
        // SAFETY: the caller's promise.
        unsafe { answer(layout, "layout", found) }
    })
}

pub(super) fn non_null(ptr: *const c_void, name: &str) -> Result<(), Error> {
    if ptr.is_null() { Err(fail!(InvalidArgument, "{name} is NULL")) } else { Ok(()) }
}

/// For questions about a pointer: that it is none of ours is an answer, whatever else is wrong with it.
pub(super) fn not_found(error: Error) -> Error {
    fail!(NotFound, "{error}")
}

/// What kind of memory a pointer points into.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum qmem_memory_kind_t {
    /// None that qmem knows.
    QMEM_MEMORY_UNKNOWN = 0,
    /// A heap block, or a block of a pool.
    QMEM_MEMORY_HEAP,
    /// A paged buffer.
    QMEM_MEMORY_PAGED,
    /// Device memory.
    QMEM_MEMORY_DEVICE,
    /// A block of the registered interface.
    QMEM_MEMORY_CUSTOM,
    /// A block from elsewhere that is tracked.
    QMEM_MEMORY_TRACKED,
}

/// The kind of memory at any address, inside blocks too.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_kind(ptr: *const c_void) -> qmem_memory_kind_t {
    use qmem_memory_kind_t::*;
    value(QMEM_MEMORY_UNKNOWN, || {
        Ok(match registry::find(ptr.cast()).map(|info| info.kind) {
            None => QMEM_MEMORY_UNKNOWN,
            Some(registry::Kind::Heap | registry::Kind::Pool) => QMEM_MEMORY_HEAP,
            Some(registry::Kind::Paged) => QMEM_MEMORY_PAGED,
            Some(registry::Kind::Custom) => QMEM_MEMORY_CUSTOM,
            Some(registry::Kind::Tracked) => QMEM_MEMORY_TRACKED,
        })
    })
}

/// qmem's own unified interface; never NULL, static, not to be written. Before `initialize_unified_memory` its functions do what
/// the `qmem_*` functions do; from then on blocks come from the pool, until that is stopped.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_unified_interface() -> *mut unified_memory_interface_t {
    (&raw const INTERFACE).cast_mut()
}

/// Registers the program's own memory system for ALLOC_CUSTOM; the table is copied. allocate and free must be given; realloc and
/// the allocate_* functions are used where given and else built on allocate; tracking and statistics are qmem's own. The functions
/// are called from any thread, with no lock of qmem held. MEMORY_STATUS_BUSY while blocks of a former interface are live.
///
/// # Safety
/// `custom` is NULL or points to an interface whose functions do what their names say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_register_interface(custom: *const unified_memory_interface_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let table = unsafe { reference(custom, "custom")? };
        let Some(allocate) = table.allocate else { return Err(fail!(InvalidArgument, "custom.allocate is NULL")) };
        let Some(free) = table.free else { return Err(fail!(InvalidArgument, "custom.free is NULL")) };
        let ours = INTERFACE.allocate.is_some_and(|own| core::ptr::fn_addr_eq(own, allocate));
        if core::ptr::eq(custom, &INTERFACE) || ours {
            return Err(fail!(InvalidArgument, "custom is qmem's own interface: ALLOC_CUSTOM would call itself"));
        }
        custom::register(Interface {
            allocate,
            free,
            realloc: table.realloc,
            allocate_geometric: table.allocate_geometric,
            allocate_hierarchical: table.allocate_hierarchical,
            allocate_streaming: table.allocate_streaming,
        })
    })
}

impl From<Numbers> for memory_stats_t {
    fn from(now: Numbers) -> Self {
        Self {
            total_allocated: now.total_allocated,
            peak_allocated: now.peak_allocated,
            num_allocations: now.num_allocations,
            num_frees: now.num_frees,
            largest_allocation: now.largest_allocation,
            fragmentation: now.fragmentation,
            current_allocated: now.current_allocated,
            resident_bytes: now.resident_bytes,
            peak_resident_bytes: now.peak_resident_bytes,
            budget_bytes: now.budget_bytes,
            error_spent: now.error_spent,
            ..paged_stats(&now.paged)
        }
    }
}

/// The process's numbers now.
pub(super) fn process_stats() -> memory_stats_t {
    numbers::now().into()
}

/// The numbers that only paged buffers have.
pub(super) fn paged_stats(pages: &paged::PagedStats) -> memory_stats_t {
    memory_stats_t {
        resident_bytes: pages.resident_bytes,
        logical_bytes: pages.logical_bytes,
        compressed_bytes: pages.compressed_bytes,
        deduplicated_bytes: pages.deduplicated_bytes,
        swapped_bytes: pages.swapped_bytes,
        page_faults: pages.page_faults,
        evictions: pages.evictions,
        ..memory_stats_t::default()
    }
}

/// The process's numbers: all blocks given through qmem since it was loaded, and all that is resident.
///
/// # Safety
/// `stats` is NULL or points to room for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_get_stats(stats: *mut memory_stats_t) -> memory_status_t {
    // SAFETY: the caller's promise.
    status(|| unsafe { answer(stats, "stats", process_stats()) })
}

/// Starts peak_allocated and peak_resident_bytes again from what is there now.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_reset_peaks() -> memory_status_t {
    status(|| {
        BLOCKS.reset_peak();
        account::reset_peak();
        Ok(())
    })
}

/// Would `qmem_allocate` grant `size` bytes now? Another thread may be faster.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_can_allocate(size: usize) -> bool {
    value(false, || Ok(blocks::can_allocate(size)))
}

/// A state vector that a run would need.
#[repr(C)]
pub struct qmem_workload_t {
    /// 1 to 60.
    pub num_qubits: u32,
    /// 8 (complex float) or 16 (complex double).
    pub bytes_per_amplitude: u32,
    /// Copies of the state alive at once; 0 = 1.
    pub copies: u32,
    /// How well the state is expected to compress, from 1; 0 = 1, not at all.
    pub expected_ratio: f64,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// Whether a workload fits, and where it would lie.
#[repr(C)]
pub struct qmem_estimate_t {
    /// Bytes as the program sees them.
    pub logical_bytes: usize,
    /// Of those, once compressed, what would be in RAM.
    pub resident_bytes: usize,
    /// And what would be in the swap file.
    pub swap_bytes: usize,
    /// The machine (or cgroup) has the memory, less the reserve.
    pub fits_in_memory: bool,
    /// The budget in force has; before initialisation the default budget.
    pub fits_in_budget: bool,
    /// Budget and swap space together have.
    pub fits_with_swap: bool,
    /// The same in words, with numbers.
    pub advice: [c_char; 256],
    /// Zero.
    pub reserved: [u64; 4],
}

/// Says beforehand whether a run fits. Allocates nothing.
///
/// # Safety
/// `workload` is NULL or points to a workload, `estimate` is NULL or points to room for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_estimate(workload: *const qmem_workload_t, estimate: *mut qmem_estimate_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let asked = unsafe { reference(workload, "workload")? };
        zero(&asked.reserved, "reserved")?;
        let found = estimate::estimate(&Workload {
            num_qubits: asked.num_qubits,
            bytes_per_amplitude: asked.bytes_per_amplitude,
            copies: asked.copies,
            expected_ratio: asked.expected_ratio,
        })?;
        let found = qmem_estimate_t {
            logical_bytes: found.logical,
            resident_bytes: found.resident,
            swap_bytes: found.swap,
            fits_in_memory: found.fits_in_memory,
            fits_in_budget: found.fits_in_budget,
            fits_with_swap: found.fits_with_swap,
            advice: text_array(format_args!("{}", found.advice)),
            reserved: [0; 4],
        };
        // SAFETY: the caller's promise.
        unsafe { answer(estimate, "estimate", found) }
    })
}
