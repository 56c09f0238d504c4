//! Giving, changing and taking blocks of every kind: what stands behind qmem_allocate and its family and behind the unified
//! interface. Chooses by allocation type, counts each block once, and keeps a block's kind for life. Called by `ffi`.

use super::allocation::{self, Kind};
use super::dispatch::{self, Detour};
use super::phase::Phase;
use super::tags::Admitted;
use super::{custom, fork, layout, recovery, tags, unified};
use crate::error::{self, Class, Error, Failure};
use crate::monitor::account;
use crate::monitor::counters::BLOCKS;
use crate::os::output;
use crate::paged::{self, Request};
use crate::registry::{self, Info, Layout};
use crate::{config, fail, heap, pool};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Tag of blocks given before initialisation: nobody's clean-up frees them.
pub const TAG_EARLY: u8 = 0;
/// Tag of blocks given since; `cleanup_allocation_resources` frees them.
pub const TAG_API: u8 = 1;
/// Tag of the unified pool's blocks; `cleanup_unified_memory` frees them.
pub const TAG_POOL: u8 = 2;
/// Nobody's clean-up frees a block of malloc, and the API's counters leave it out.
pub use crate::registry::TAG_MALLOC;
const _: () = assert!(TAG_MALLOC != TAG_EARLY && TAG_MALLOC != TAG_API && TAG_MALLOC != TAG_POOL);
const _: () = assert!(tags::life(registry::TAG_OWNED) > TAG_POOL);

/// Alignment where none is asked for: a cache line.
pub const DEFAULT_ALIGN: usize = 64;
/// The largest alignment.
pub const MAX_ALIGN: usize = 1 << 30;
/// QUANTUM requests below this come from the heap: a chunk would waste memory.
const QUANTUM_THRESHOLD: usize = config::CHUNK_BOUNDS.0;
/// Leftovers that are reported one by one; the rest in a sum.
const LEAK_LINES: usize = 32;

/// Bytes of live blocks that qmem counts but does not hold: the registered interface's and tracked ones.
static FOREIGN: AtomicUsize = AtomicUsize::new(0);
/// Somebody has called the C API: blocks may have references and layouts.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// Through which door a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// qmem_allocate and its family.
    Process,
    /// The unified interface: from the pool while one is configured.
    Unified,
}

/// Sees to what must be before the first block: that forks are safe.
pub fn prepare() {
    fork::prepare();
}

/// Has anybody called the C API?
#[inline]
pub fn in_use() -> bool {
    IN_USE.load(Relaxed)
}

/// May a block be given now? Its tag and where it comes from.
pub(super) fn enter(door: Door) -> Result<(u8, Kind), Error> {
    prepare();
    note_use();
    recovery::called();
    let (phase, kind) = allocation::mode();
    if door == Door::Unified {
        let pool = unified::phase();
        pool.may_give("unified memory")?;
        if pool == Phase::Running {
            return Ok((tags::of_thread(TAG_POOL), kind));
        }
    }
    phase.may_give("memory allocation")?;
    Ok((tags::of_thread(if phase == Phase::Running { TAG_API } else { TAG_EARLY }), kind))
}

pub(super) fn note_use() {
    if !in_use() {
        IN_USE.store(true, Relaxed);
    }
}

fn check_size(size: usize) -> Result<usize, Error> {
    if size > isize::MAX as usize {
        return Err(fail!(InvalidArgument, "size = {size} is more than PTRDIFF_MAX, which no object can have"));
    }
    Ok(size.max(1))
}

fn check_align(alignment: usize) -> Result<usize, Error> {
    match alignment {
        0 => Ok(DEFAULT_ALIGN),
        n if n.is_power_of_two() && n <= MAX_ALIGN => Ok(n),
        n => Err(fail!(InvalidArgument, "alignment = {n} is not a power of two up to {MAX_ALIGN} (0 = {DEFAULT_ALIGN})")),
    }
}

/// A block by the configured allocation type.
pub fn allocate(door: Door, size: usize, alignment: usize, zeroed: bool) -> Result<*mut u8, Error> {
    let size = check_size(size)?;
    let align = check_align(alignment)?;
    let (tag, kind) = enter(door)?;
    match kind {
        Kind::Quantum if size >= QUANTUM_THRESHOLD => page(tag, Request { size, align, ..request(tag) }),
        Kind::Hybrid if size >= config::HYBRID_THRESHOLD => page(tag, Request { size, align, ..request(tag) }),
        Kind::Custom => {
            let interface = custom::interface()?;
            let block = call_custom(tag, size, align, "allocate", || {
                // SAFETY: the program registered this function for exactly this call.
                unsafe { (interface.allocate)(size, align) }
            })?;
            if zeroed {
                // SAFETY: a fresh block of `size` bytes.
                unsafe { block.write_bytes(0, size) };
            }
            Ok(block)
        }
        _ => heap_block(tag, size, align, zeroed).or_else(|error| {
            // A retry that may use the swap file: only the pager can give what the heap cannot.
            if size < QUANTUM_THRESHOLD || dispatch::detour() != Detour::Swap {
                return Err(error);
            }
            page(tag, Request { size, align, ..request(tag) })
        }),
    }
}

pub(super) fn heap_block(tag: u8, size: usize, align: usize, zeroed: bool) -> Result<*mut u8, Error> {
    give(tag, size, false, || {
        allocation::respect_reservation(size)?;
        heap::allocate(size, align, zeroed, tag).map(|block| block.as_ptr())
    })
}

pub(super) fn request(tag: u8) -> Request {
    Request {
        size: 0,
        align: DEFAULT_ALIGN,
        chunk_size: 0,
        swappable: true,
        element: None,
        tolerance: 0.0,
        pooled: pooled(tag),
        tag,
    }
}

pub(super) fn page(tag: u8, request: Request) -> Result<*mut u8, Error> {
    // In place of a paged buffer that could not be had; by the same rule as one, so that what was granted still fits.
    if dispatch::detour() == Detour::Classical && account::can_commit(request.size) {
        return heap_block(tag, request.size, request.align, true);
    }
    allocation::ensure_pager()?;
    give(tag, request.size, true, || paged::allocate(&request).map(|block| block.as_ptr()))
}

/// Does the block belong to the unified pool?
pub(super) fn pooled(tag: u8) -> bool {
    tags::life(tag) == TAG_POOL
}

/// Asks the limits, draws from the pool where the block is the pool's, makes it, and counts it.
pub(super) fn give(tag: u8, size: usize, paged: bool, make: impl FnOnce() -> Result<*mut u8, Error>) -> Result<*mut u8, Error> {
    let admitted = tags::admit(tag, size, 1)?;
    let drawn = if pooled(tag) { unified::draw(size, paged) } else { Ok(()) };
    let made = drawn.and_then(|()| {
        make().inspect_err(|_| {
            if pooled(tag) {
                unified::give_back(size, paged);
            }
        })
    });
    match &made {
        Ok(_) => {
            BLOCKS.gave(size);
            tags::given(admitted);
        }
        Err(_) => tags::refused(admitted),
    }
    made
}

/// A block of the registered interface.
fn call_custom(
    tag: u8,
    size: usize,
    align: usize,
    function: &str,
    call: impl FnOnce() -> *mut core::ffi::c_void,
) -> Result<*mut u8, Error> {
    give(tag, size, false, || {
        // SAFETY: the interface gave it just now, and nobody has seen it.
        let block = unsafe { custom::given(call(), size, align, function)? };
        if let Err(error) = registry::add_custom(block, size, tag) {
            // SAFETY: given just now, and nobody has seen it.
            unsafe { custom::free(block)? };
            return Err(error);
        }
        FOREIGN.fetch_add(size, Relaxed);
        Ok(block)
    })
}

/// An array of complex<double> with a layout.
pub fn allocate_geometric(door: Door, dimensions: &[usize]) -> Result<*mut u8, Error> {
    let (layout, bytes) = layout::plan(dimensions, unified::settings().geometric)?;
    let (tag, kind) = enter(door)?;
    if kind == Kind::Custom
        && let Some(function) = custom::interface()?.allocate_geometric
    {
        // Its own layout, which qmem does not know: qmem_get_layout finds none.
        let bytes = layout::plan(dimensions, false)?.1;
        let mut extents = layout.dimensions;
        return call_custom(tag, bytes, align_of::<f64>(), "allocate_geometric", || {
            // SAFETY: the program registered this function for exactly this call; the array outlives it.
            unsafe { function(extents.as_mut_ptr(), dimensions.len()) }
        });
    }
    let block = allocate(door, bytes, DEFAULT_ALIGN, false)?;
    if let Err(error) = registry::set_layout(block, &layout) {
        // SAFETY: given just now, and nobody has seen it.
        unsafe { free(block)? };
        return Err(error);
    }
    Ok(block)
}

/// A paged buffer of complex<double> that may be compressed within `tolerance`; 0 = the pool's default, which may be 0 too: lossless.
pub fn allocate_hierarchical(door: Door, size: usize, tolerance: f64) -> Result<*mut u8, Error> {
    let size = check_size(size)?;
    let tolerance = unified::tolerance(tolerance)?;
    let tolerance = if tolerance == 0.0 { unified::settings().tolerance } else { tolerance };
    let (tag, kind) = enter(door)?;
    if kind == Kind::Custom
        && let Some(function) = custom::interface()?.allocate_hierarchical
    {
        // SAFETY: the program registered this function for exactly this call.
        return call_custom(tag, size, align_of::<f64>(), "allocate_hierarchical", || unsafe { function(size, tolerance) });
    }
    let element = (tolerance > 0.0).then_some(paged::Element::C128);
    page(tag, Request { size, element, tolerance, ..request(tag) })
}

/// A paged buffer that is swept in units of `chunk_size`; 0 = the pool's default.
pub fn allocate_streaming(door: Door, total_size: usize, chunk_size: usize) -> Result<*mut u8, Error> {
    let size = check_size(total_size)?;
    let asked = unified::chunk_size(chunk_size)?;
    let settings = unified::settings();
    let chunk_size = if chunk_size == 0 { settings.chunk_size } else { asked };
    let (tag, kind) = enter(door)?;
    if !settings.streaming {
        return Err(fail!(Unsupported, "streaming allocations are off: unified_pool_config_t.enable_streaming is false"));
    }
    if kind == Kind::Custom
        && let Some(function) = custom::interface()?.allocate_streaming
    {
        // SAFETY: the program registered this function for exactly this call.
        return call_custom(tag, size, align_of::<f64>(), "allocate_streaming", || unsafe { function(size, chunk_size) });
    }
    page(tag, Request { size, chunk_size, ..request(tag) })
}

/// One reference less; the last one frees. A pointer that is no block's start is reported and the process aborted.
///
/// # Safety
/// With the last reference, nobody uses the block any more.
pub unsafe fn free(pointer: *mut u8) -> Result<(), Error> {
    recovery::called();
    let info = block_or_abort("qmem_free", pointer);
    match registry::release(pointer) {
        Ok(0) => {}
        Ok(_) => return Ok(()),
        Err(error) => bad_pointer("qmem_free", &error),
    }
    // SAFETY: the last reference is gone, and the caller's promise.
    unsafe { destroy(&info) }.map_err(|error| bad_pointer("qmem_free", &error))
}

/// # Safety
/// `info` is of a block that is live and that nobody uses any more.
unsafe fn destroy(info: &Info) -> Result<(), Error> {
    match info.kind {
        // SAFETY: the caller's promise.
        registry::Kind::Heap | registry::Kind::Paged => unsafe { registry::free(info.start)? },
        registry::Kind::Custom => {
            registry::remove_custom(info.start)?;
            FOREIGN.fetch_sub(info.size, Relaxed);
            // SAFETY: a custom block came out of `custom::given`; the caller's promise.
            unsafe { custom::free(info.start)? };
        }
        registry::Kind::Tracked => return untrack(info.start),
        // SAFETY: the caller's promise. The pool counts its blocks itself.
        registry::Kind::Pool => return unsafe { registry::free(info.start) },
    }
    if info.tag != TAG_MALLOC {
        BLOCKS.took(info.size);
        tags::took(info.tag, info.size);
    }
    if pooled(info.tag) {
        unified::give_back(info.size, info.kind == registry::Kind::Paged);
    }
    Ok(())
}

fn block_or_abort(function: &str, pointer: *mut u8) -> Info {
    match registry::find_start(pointer) {
        Ok(info) if info.kind != registry::Kind::Tracked => info,
        Ok(info) => bad_pointer(
            function,
            &fail!(InvalidArgument, "{:p} is only tracked ({} bytes): free it where it came from", info.start, info.size),
        ),
        Err(error) => bad_pointer(function, &error),
    }
}

/// A free or realloc of something that is no block means that the program's memory is in disorder: going on would lose data.
#[cold]
pub(super) fn bad_pointer(function: &str, error: &Error) -> ! {
    let error = fail!(InvalidArgument, "{function}: {error}");
    output::line(format_args!("qmem: {error}"));
    let _ = error::dispatch(&Failure { class: Class::Corruption, error: &error, told: true, again: None }); // no way back
    std::process::abort();
}

/// Changes a block's size and keeps its kind and contents; the pointer may change. NULL asks for a new block.
///
/// # Safety
/// Nobody uses the block during the call, nor its old address after it.
pub unsafe fn reallocate(door: Door, pointer: *mut u8, size: usize) -> Result<*mut u8, Error> {
    if pointer.is_null() {
        return allocate(door, size, 0, false);
    }
    let size = check_size(size)?;
    let info = block_or_abort("qmem_realloc", pointer);
    enter(door)?;
    // SAFETY: the caller's promise.
    unsafe { resize(&info, size, DEFAULT_ALIGN) }
}

/// Changes the size of a live block that was looked up; where a heap block moves, it is to a multiple of `align`.
///
/// # Safety
/// As [`reallocate`].
pub unsafe fn resize(info: &Info, size: usize, align: usize) -> Result<*mut u8, Error> {
    if size == info.size {
        return Ok(info.start);
    }
    if info.kind == registry::Kind::Custom {
        // SAFETY: the caller's promise.
        return unsafe { resize_custom(info, size) };
    }
    if info.kind == registry::Kind::Pool {
        // SAFETY: the caller's promise. The pool counts its blocks itself.
        return unsafe { registry::resize(info.start, size, align) }.map(|block| block.as_ptr());
    }
    let paged = info.kind == registry::Kind::Paged;
    let growth = size.saturating_sub(info.size);
    let admitted = draw_growth(info.tag, growth, paged)?;
    let room = if paged { Ok(()) } else { allocation::respect_reservation(growth) };
    // SAFETY: the caller's promise.
    let changed = room.and_then(|()| unsafe { registry::resize(info.start, size, align) });
    settle_growth(info, size, paged, admitted, changed.is_ok());
    Ok(changed?.as_ptr())
}

/// Before a block grows: asks the limits, draws from the pool where it is the pool's.
fn draw_growth(tag: u8, growth: usize, paged: bool) -> Result<Admitted, Error> {
    let admitted = tags::admit(tag, growth, 0)?;
    if pooled(tag) && growth > 0 {
        unified::draw(growth, paged).inspect_err(|_| tags::refused(admitted))?;
    }
    Ok(admitted)
}

/// After a block has, or has not, got another size.
fn settle_growth(info: &Info, size: usize, paged: bool, admitted: Admitted, changed: bool) {
    let growth = size.saturating_sub(info.size);
    let undrawn = if changed { info.size.saturating_sub(size) } else { growth };
    if pooled(info.tag) && undrawn > 0 {
        unified::give_back(undrawn, paged);
    }
    if changed {
        if info.tag != TAG_MALLOC {
            BLOCKS.resized(info.size, size);
        }
        tags::resized(admitted, info.size, size);
    } else {
        tags::refused(admitted);
    }
}

/// A block of the registered interface becomes another one, by its own realloc if it has one.
///
/// # Safety
/// As [`reallocate`].
unsafe fn resize_custom(info: &Info, size: usize) -> Result<*mut u8, Error> {
    let references = registry::references(info.start);
    if references > 1 {
        return Err(fail!(Busy, "{:p} has {references} references; a block that others hold cannot change its size", info.start));
    }
    let interface = custom::interface()?;
    if let Some(realloc) = interface.realloc {
        // SAFETY: as in this function's contract.
        return unsafe { custom_realloc(info, size, realloc) };
    }
    let block = call_custom(info.tag, size, DEFAULT_ALIGN, "allocate", || {
        // SAFETY: the program registered this function for exactly this call.
        unsafe { (interface.allocate)(size, DEFAULT_ALIGN) }
    })?;
    // SAFETY: both blocks are live, do not overlap, and hold the smaller size at least.
    unsafe { core::ptr::copy_nonoverlapping(info.start, block, size.min(info.size)) };
    // SAFETY: the caller gives the old block up.
    unsafe { destroy(info)? };
    Ok(block)
}

/// # Safety
/// As [`reallocate`]; `info` is of a block of the registered interface.
unsafe fn custom_realloc(
    info: &Info,
    size: usize,
    realloc: unsafe extern "C" fn(*mut core::ffi::c_void, usize) -> *mut core::ffi::c_void,
) -> Result<*mut u8, Error> {
    let admitted = draw_growth(info.tag, size.saturating_sub(info.size), false)?;
    // The old address may be another thread's as soon as the program's realloc has returned, so it leaves the registry first.
    if let Err(error) = registry::remove_custom(info.start) {
        settle_growth(info, size, false, admitted, false);
        return Err(error);
    }
    // SAFETY: the caller's promise; the block is the interface's.
    let moved = unsafe { realloc(info.start.cast(), size) }.cast::<u8>();
    let (now, now_size) = if moved.is_null() { (info.start, info.size) } else { (moved, size) };
    let entered = registry::add_custom(now, now_size, info.tag);
    settle_growth(info, size, false, admitted, !moved.is_null());
    entered?;
    if moved.is_null() {
        return Err(fail!(
            OutOfMemory,
            "the registered interface's realloc returned NULL for {size} bytes; the block is unchanged"
        ));
    }
    FOREIGN.fetch_add(size, Relaxed);
    FOREIGN.fetch_sub(info.size, Relaxed);
    Ok(moved)
}

/// One reference more to a block of qmem's.
pub fn retain(pointer: *mut u8) -> Result<*mut u8, Error> {
    note_use();
    let info = registry::find_start(pointer)?;
    if info.kind == registry::Kind::Tracked {
        return Err(fail!(NotFound, "{pointer:p} is only tracked: qmem does not hold it and counts no references"));
    }
    registry::retain(pointer)?;
    Ok(pointer)
}

/// The layout of a geometric block.
pub fn layout_of(pointer: *const u8) -> Result<Layout, Error> {
    registry::find_start(pointer)?;
    registry::layout(pointer)
        .ok_or_else(|| fail!(NotFound, "{pointer:p} was not given by allocate_geometric, or was resized since"))
}

/// Counts a block from elsewhere.
pub fn track(pointer: *mut u8, size: usize) -> Result<(), Error> {
    note_use();
    if pointer.is_null() || size == 0 {
        return Err(fail!(InvalidArgument, "cannot track {size} bytes at {pointer:p}: a block has an address and a size"));
    }
    if size > isize::MAX as usize || (pointer as usize).checked_add(size).is_none() {
        return Err(fail!(InvalidArgument, "cannot track {size} bytes at {pointer:p}: they pass the end of the address space"));
    }
    let tag = tags::of_thread(TAG_EARLY);
    let admitted = tags::admit(tag, size, 1)?;
    registry::track_as(pointer, size, tag).inspect_err(|_| tags::refused(admitted))?;
    FOREIGN.fetch_add(size, Relaxed);
    BLOCKS.gave(size);
    tags::given(admitted);
    Ok(())
}

/// No longer counts it.
pub fn untrack(pointer: *mut u8) -> Result<(), Error> {
    let info = registry::find_start(pointer)?;
    registry::untrack(pointer)?;
    FOREIGN.fetch_sub(info.size, Relaxed);
    BLOCKS.took(info.size);
    tags::took(info.tag, info.size);
    Ok(())
}

/// Calls `f` for every live block that this clean-up frees, whatever tag its thread had.
fn for_each_of(life: u8, f: &mut dyn FnMut(Info)) {
    tags::all(life).for_each(|tag| registry::for_each_live(tag, f));
}

/// Frees every block that this clean-up frees, each reported as a leak.
pub fn free_leftovers(life: u8) {
    let mut report = LeakReport::default();
    for_each_of(life, &mut |info| {
        if info.kind == registry::Kind::Tracked {
            return; // its owner is the program
        }
        report.add(&info);
        // SAFETY: cleaning up ends the use of every block, by the subsystem's contract with the program.
        if let Err(error) = unsafe { destroy(&info) } {
            error::report(Class::Leak, &error);
        }
    });
    report.end();
}

/// Reports every block that is still tracked, and counts it no longer. The blocks are the program's and stay.
pub fn forget_tracked() {
    let mut report = LeakReport::default();
    for_each_of(TAG_EARLY, &mut |info| {
        if info.kind == registry::Kind::Tracked && untrack(info.start).is_ok() {
            report.add(&info);
        }
    });
    report.end();
}

/// Leaks: one line each up to a bound, then a sum, then one dispatch for all of them.
#[derive(Default)]
pub(super) struct LeakReport {
    blocks: usize,
    bytes: usize,
    told_bytes: usize,
}

impl LeakReport {
    fn add(&mut self, info: &Info) {
        self.see(format_args!("{} block of {} bytes at {:p}", name(info.kind), info.size, info.start), info.size);
    }

    /// One more.
    pub(super) fn see(&mut self, what: core::fmt::Arguments<'_>, size: usize) {
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.blocks <= LEAK_LINES {
            self.told_bytes = self.bytes;
            output::line(format_args!("qmem: leak: {what}"));
        }
    }

    /// That was all.
    pub(super) fn end(self) {
        let Self { blocks, bytes, told_bytes } = self;
        if blocks > LEAK_LINES {
            let (more, rest) = (blocks - LEAK_LINES, bytes - told_bytes);
            output::line(format_args!("qmem: leak: and {more} more blocks of {rest} bytes together"));
        }
        if blocks > 0 {
            let all = fail!(NotFound, "leak: {blocks} blocks of {bytes} bytes together were not freed before the end");
            let _ = error::dispatch(&Failure { class: Class::Leak, error: &all, told: true, again: None }); // nothing to retry
        }
    }
}

fn name(kind: registry::Kind) -> &'static str {
    match kind {
        registry::Kind::Heap => "heap",
        registry::Kind::Paged => "paged",
        registry::Kind::Custom => "custom",
        registry::Kind::Tracked => "tracked",
        registry::Kind::Pool => "pool",
    }
}

/// Would `allocate` give `size` bytes now?
pub fn can_allocate(size: usize) -> bool {
    let Ok(size) = check_size(size) else { return false };
    let Ok((_, kind)) = enter(Door::Process) else { return false };
    if !tags::would_admit(size) {
        return false;
    }
    match kind {
        Kind::Quantum if size >= QUANTUM_THRESHOLD => account::can_commit(size),
        Kind::Hybrid if size >= config::HYBRID_THRESHOLD => account::can_commit(size),
        Kind::Custom => true,
        _ => allocation::heap_has_room(size),
    }
}

/// 1 - live bytes / resident bytes of the heap.
pub fn fragmentation() -> f64 {
    let held = account::held(account::Holder::Heap).saturating_sub(pool::held()); // pools count their blocks themselves
    let elsewhere = paged::stats().logical_bytes.saturating_add(FOREIGN.load(Relaxed));
    let live = BLOCKS.current.load(Relaxed).saturating_sub(elsewhere);
    if held == 0 { 0.0 } else { (1.0 - live as f64 / held as f64).clamp(0.0, 1.0) }
}
