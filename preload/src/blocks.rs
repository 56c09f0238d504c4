//! Which memory a block gets and where it goes back to: small ones the heap, large ones the pager once a budget is set, foreign
//! ones the next allocator in the process. Called by `family.rs`; the one file of the preload that names heap, pager and registry.

use crate::{next, report};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use qmem::error::{Error, Status};
use qmem::monitor::fidelity;
use qmem::os::{output, vm};
use qmem::paged::{Element, Options, Request, Strategy};
use qmem::registry::{self, Info, Kind};
use qmem::system::memory::{self, TAG_MALLOC};
use qmem::system::{allocation, status};
use qmem::{config, fail, heap, paged};

/// Blocks of this size and more are paged. usize::MAX: none is, as no budget is set or the pager does not work here.
static LARGE: AtomicUsize = AtomicUsize::new(usize::MAX);

/// What large blocks are arrays of, plus one; 0: bytes, which are never compressed with loss.
static ELEMENT: AtomicUsize = AtomicUsize::new(0);

/// Blocks up to this size are zeroed without asking whether their pages are.
const SMALL: usize = 1024;

/// Mappings of this size and more are paged too. usize::MAX: none is.
static LARGE_MAP: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The strictest alignment that malloc's blocks of any size have.
pub const ALIGN: usize = 16;

/// Reads the environment: with a budget, the pager takes the large blocks from now on. Before the program's own threads.
pub fn start() {
    memory::prepare();
    if let Err(error) = configure() {
        output::line(format_args!("qmem: {error}; the program runs on without a budget"));
    }
}

fn configure() -> Result<(), Error> {
    config::load()?;
    let budget = config::BUDGET.get();
    if budget == 0 {
        return Ok(());
    }
    if budget < config::MIN_PAGED_BUDGET {
        let least = config::MIN_PAGED_BUDGET;
        return Err(fail!(InvalidArgument, "QMEM_BUDGET is {budget} bytes, but paged memory needs at least {least}"));
    }
    allocation::preset(&Options {
        strategy: Strategy::Adaptive,
        compression: config::NO_COMPRESSION.get() == 0,
        deduplication: config::NO_DEDUPLICATION.get() == 0,
        swapping: config::NO_SWAP.get() == 0,
    })?;
    if let Some((infidelity, element)) = config::permitted_loss()? {
        fidelity::PROCESS.set_limit(infidelity);
        ELEMENT.store(element + 1, Relaxed);
    }
    LARGE.store(config::PRELOAD_THRESHOLD.get(), Relaxed);
    if config::PRELOAD_MMAP.get() == 1 {
        LARGE_MAP.store(config::PRELOAD_THRESHOLD.get(), Relaxed);
    }
    Ok(())
}

/// A block of `size` bytes; NULL and ENOMEM where there is none.
#[inline(always)]
pub fn malloc(size: usize) -> *mut u8 {
    heap::malloc_or(size, malloc_larger, malloc_small)
}

/// [`malloc`] above 1 KiB. What is paged is larger than what has a class.
#[inline(never)]
fn malloc_larger(size: usize) -> *mut u8 {
    if heap::is_medium(size) {
        return heap::at_hand_medium(size).map_or_else(|| malloc_at_length(size), NonNull::as_ptr);
    }
    malloc_large(size)
}

/// [`malloc`] above 32 KiB.
#[inline(never)]
fn malloc_large(size: usize) -> *mut u8 {
    if size > heap::MAX_RUN {
        return malloc_mapped(size);
    }
    let block = ready(size);
    if block.is_null() { malloc_at_length(size) } else { block }
}

/// [`malloc`] above 1 MiB: apart, so that the ones before it keep nothing over a call.
#[inline(never)]
fn malloc_mapped(size: usize) -> *mut u8 {
    let block = ready(size);
    if block.is_null() { malloc_at_length(size) } else { block }
}

/// [`malloc`] where the bin of the size is empty.
#[inline(never)]
fn malloc_small(size: usize) -> *mut u8 {
    let block = heap::refilled(size);
    if block.is_null() { malloc_at_length(size) } else { block }
}

/// A used block of more than 1 KiB that lies ready. Null: none does.
#[inline(always)]
fn ready(size: usize) -> *mut u8 {
    if size < LARGE.load(Relaxed) { heap::at_hand(size) } else { null_mut() }
}

/// [`malloc`] where no block at all lies ready.
#[cold]
#[inline(never)]
fn malloc_at_length(size: usize) -> *mut u8 {
    if size < LARGE.load(Relaxed) {
        let block = heap::malloc_slow(size);
        if !block.is_null() {
            return block;
        }
    }
    allocate(size, ALIGN, false)
}

/// A block of `size` zero bytes; NULL and ENOMEM where there is none.
#[inline]
pub fn calloc(size: usize) -> *mut u8 {
    let block = if size <= SMALL { malloc(size) } else { ready(size) };
    if !block.is_null() {
        // SAFETY: the block is ours and at least `size` bytes long.
        unsafe { block.write_bytes(0, size) };
        return block;
    }
    if size <= SMALL { block } else { allocate(size, ALIGN, true) }
}

/// A block of `size` bytes at a multiple of `align`, a power of two; NULL and ENOMEM where there is none.
#[inline]
pub fn allocate(size: usize, align: usize, zeroed: bool) -> *mut u8 {
    if size >= LARGE.load(Relaxed) {
        return allocate_large(size, align, zeroed);
    }
    match heap::allocate_plain(size, align, zeroed) {
        Ok(block) => block.as_ptr(),
        Err(error) => refuse(size, &error),
    }
}

/// A block at a multiple of `align` that lies ready. Null: none does; errno stays as it is.
#[inline(always)]
pub fn ready_aligned(size: usize, align: usize) -> *mut u8 {
    if size < LARGE.load(Relaxed) { heap::at_hand_aligned(size, align) } else { null_mut() }
}

/// [`allocate`] of what need not be zero, with what lies ready first.
#[inline]
pub fn aligned(size: usize, align: usize) -> *mut u8 {
    let block = ready_aligned(size, align);
    if block.is_null() { allocate(size, align, false) } else { block }
}

/// Is a mapping of this size paged?
pub fn pages_maps(size: usize) -> bool {
    size >= LARGE_MAP.load(Relaxed)
}

/// NULL and ENOMEM, and a line for a person unless the program's question was at fault.
#[cold]
pub fn refuse(size: usize, error: &Error) -> *mut u8 {
    if size <= isize::MAX as usize && error.status != Status::InvalidArgument {
        report::refused(size, error);
        status::refused();
    }
    set_errno(libc::ENOMEM);
    null_mut()
}

#[cold]
fn allocate_large(size: usize, align: usize, zeroed: bool) -> *mut u8 {
    if size > isize::MAX as usize {
        return refuse(size, &fail!(InvalidArgument, "no object can be larger than PTRDIFF_MAX"));
    }
    match page(size, align) {
        Ok(block) => block,
        Err(error) if error.status == Status::Unsupported => {
            // A child of fork, or a machine without paging: the budget still bounds the heap.
            LARGE.store(usize::MAX, Relaxed);
            if !paged::forked() {
                output::line(format_args!("qmem: large blocks come from the heap: {error}"));
            }
            allocate(size, align, zeroed)
        }
        Err(error) => refuse(size, &error),
    }
}

/// What a block of this size is an array of, as far as the user said. A state vector's size is a power of two; some libraries add a
/// little for an alignment. Other large blocks of the program stay as they are.
fn element(size: usize) -> Option<Element> {
    let state = size >= 1 << 16 && size - (1 << size.ilog2()) <= config::ELEMENT_SLACK;
    Element::of((ELEMENT.load(Relaxed) as u8).checked_sub(1)?).filter(|_| state)
}

/// A paged block.
pub fn page(size: usize, align: usize) -> Result<*mut u8, Error> {
    allocation::ensure_pager()?;
    let request = Request {
        size,
        align,
        chunk_size: 0,
        swappable: true,
        element: element(size),
        tolerance: 0.0,
        pooled: false,
        tag: TAG_MALLOC,
    };
    let block = paged::allocate(&request)?;
    status::start();
    Ok(block.as_ptr())
}

/// Frees a block, whoever gave it. errno stays as it is.
///
/// # Safety
/// Nobody uses the block any more.
#[inline(always)]
pub unsafe fn free(pointer: *mut u8) {
    // SAFETY: the caller's promise. A block that has references or a layout is watched by the registry, so never freed at once.
    unsafe { heap::free_or(pointer, |pointer| free_slow(pointer)) };
}

/// # Safety
/// As [`free`].
#[inline(never)]
unsafe fn free_slow(pointer: *mut u8) {
    // SAFETY: the caller's promise. While nobody has used the C API, no block has references or a layout.
    if !unsafe { heap::free_own(pointer) || heap::free_others(pointer, !memory::in_use()) } {
        // SAFETY: the caller's promise.
        unsafe { free_at_length(pointer) }
    }
}

/// [`free`] of what is no plain block or run that nobody watches.
///
/// # Safety
/// As [`free`].
#[inline(never)]
unsafe fn free_at_length(pointer: *mut u8) {
    if pointer.is_null() {
        return;
    }
    let errno = vm::errno();
    // SAFETY: the caller's promise. While nobody has used the C API, no block has references or a layout.
    if memory::in_use() || !unsafe { heap::free(pointer) } {
        // SAFETY: as above.
        unsafe { free_other(pointer) };
    }
    set_errno(errno);
}

/// # Safety
/// As [`free`].
#[cold]
unsafe fn free_other(pointer: *mut u8) {
    let freed = match registry::find_start(pointer) {
        // SAFETY: the caller's promise.
        Ok(info) if info.kind != Kind::Tracked => unsafe { memory::free(pointer) },
        // SAFETY: as above. What is tracked is malloc's, ours or another's; the API still counts it, as it does without us.
        Ok(_) if unsafe { heap::free(pointer) || paged::free(pointer).is_ok() } => return,
        // SAFETY: as above.
        Ok(_) => return unsafe { next::free(pointer.cast()) },
        // SAFETY: as above.
        Err(error) => return unsafe { free_foreign(pointer, &error) },
    };
    if let Err(error) = freed {
        report::bad_pointer(format_args!("qmem: free: {error}"));
    }
}

/// A pointer that is no block of ours: another allocator's, or a mistake.
///
/// # Safety
/// As [`free`].
#[cold]
unsafe fn free_foreign(pointer: *mut u8, error: &Error) {
    if error.status != Status::NotFound {
        report::bad_pointer(format_args!("qmem: free: {error}"));
    }
    if let Some(what) = next::no_block(pointer) {
        report::bad_pointer(format_args!("qmem: free: {pointer:p} is {what}, not a block from malloc"));
    }
    // SAFETY: the caller's promise; the pointer is not ours.
    unsafe { next::free(pointer.cast()) };
}

/// Gives a block another size; the pointer may change. NULL and ENOMEM leave it as it was.
///
/// # Safety
/// `pointer` is a live block of any allocator of the process that nobody uses during the call.
pub unsafe fn resize(pointer: *mut u8, size: usize) -> *mut u8 {
    if size < LARGE.load(Relaxed) {
        // SAFETY: the caller's promise.
        let block = unsafe { heap::resize_own(pointer, size.max(1)) };
        if !block.is_null() {
            return block;
        }
    }
    let info = match registry::find_start(pointer) {
        Ok(info) if info.kind != Kind::Tracked => info,
        Ok(_) if registry::own(pointer).is_some() => return resize_tracked(pointer, size),
        Err(error) if error.status != Status::NotFound => report::bad_pointer(format_args!("qmem: realloc: {error}")),
        // SAFETY: the caller's promise; the pointer is not ours.
        _ => return unsafe { next::realloc(pointer.cast(), size).cast() },
    };
    if size > isize::MAX as usize {
        return refuse(size, &fail!(InvalidArgument, "no object can be larger than PTRDIFF_MAX"));
    }
    let large = LARGE.load(Relaxed);
    let stays = match info.kind {
        Kind::Heap => size < large,
        Kind::Paged => size >= large / 2, // a block that shrinks a little stays where it is
        Kind::Custom | Kind::Tracked | Kind::Pool => true,
    };
    let result = if !stays && info.tag == TAG_MALLOC {
        // SAFETY: the caller's promise.
        unsafe { change_kind(&info, size) }
    } else {
        // SAFETY: as above.
        unsafe { memory::resize(&info, size, ALIGN) }
    };
    match result {
        Ok(block) => block,
        Err(error) => refuse(size, &error),
    }
}

/// A block of ours that the API tracks, which keeps its old size there: as with any other malloc.
#[cold]
fn resize_tracked(pointer: *mut u8, size: usize) -> *mut u8 {
    let usable = registry::own(pointer).map_or(0, |own| own.usable);
    let block = allocate(size, ALIGN, false);
    if !block.is_null() {
        // SAFETY: both are live, apart, and as long as this.
        unsafe { core::ptr::copy_nonoverlapping(pointer, block, size.min(usable)) };
        // SAFETY: the caller of realloc gives the old block up.
        unsafe { free(pointer) };
    }
    block
}

/// A heap block becomes a paged one or the other way round.
///
/// # Safety
/// As [`resize`].
unsafe fn change_kind(info: &Info, size: usize) -> Result<*mut u8, Error> {
    let shared = registry::references(info.start);
    if shared > 1 {
        return Err(fail!(Busy, "the block at {:p} has {shared} references", info.start));
    }
    let block = allocate(size, ALIGN, false);
    if block.is_null() {
        return Err(fail!(OutOfMemory, "no room for its new size"));
    }
    // SAFETY: both are live, apart, and as long as this.
    unsafe { core::ptr::copy_nonoverlapping(info.start, block, size.min(info.usable)) };
    // SAFETY: the caller gives the old block up.
    unsafe { free(info.start) };
    Ok(block)
}

/// Bytes that may be used at `pointer`, whoever gave it.
///
/// # Safety
/// `pointer` is a live block of any allocator of the process.
pub unsafe fn usable(pointer: *mut u8) -> usize {
    if let Some(usable) = heap::usable_own(pointer as usize) {
        return usable; // some programs ask for every block
    }
    match registry::find_start(pointer) {
        Ok(info) if info.kind != Kind::Tracked => info.usable,
        Ok(_) if let Some(own) = registry::own(pointer) => own.usable,
        // SAFETY: the caller's promise; the pointer is not ours.
        _ => unsafe { next::usable(pointer.cast()) },
    }
}

/// Gives what the heap keeps for reuse back to the kernel. Was it anything?
pub fn trim() -> bool {
    let before = heap::stats().charged;
    heap::trim();
    heap::stats().charged < before
}

/// What mallinfo asks for.
#[derive(Clone, Copy, Default)]
pub struct Sizes {
    /// Bytes of address space of the heap without its large blocks.
    pub arena: usize,
    /// Bytes in blocks that have a mapping of their own, paged ones included.
    pub mapped: usize,
    /// Bytes in use or not given yet in spans.
    pub used: usize,
    /// Bytes kept for reuse.
    pub free: usize,
}

/// The heap's and the pager's sizes now.
pub fn sizes() -> Sizes {
    let heap = heap::stats();
    Sizes {
        arena: heap.mapped.saturating_sub(heap.large),
        mapped: heap.large.saturating_add(paged::stats().logical_bytes),
        used: heap.charged.saturating_sub(heap.large).saturating_sub(heap.cached),
        free: heap.cached,
    }
}

/// Sets errno.
pub fn set_errno(value: i32) {
    // SAFETY: the calling thread's own errno.
    unsafe { *libc::__errno_location() = value };
}
