//! Blocks of any size for many threads, inside the budget. Floor 3. This file is the face: what registry, system and preload call.
//!
//! Each thread has a heap (`local.rs`) in a window of address space of its own (`window.rs`), cut into slices of 64 KiB
//! (`slices.rs`). Blocks up to 32 KiB come in classes (`classes.rs`), a slice for each; up to 1 MiB in runs of slices (`runs.rs`);
//! larger ones are mapped on their own (`large.rs`). `fast.rs` is what every block takes (`way.rs`: how, where it is none of the usual
//! ones; `aside.rs`: where it is cold; `medium.rs`: above 1 KiB, from `magazines.rs`), `refill.rs` what stands behind it; what others
//! free comes back in lists through an inbox (`outbox.rs`, `remote.rs`, `thread.rs`).
//! Plain blocks (`malloc`) carry nothing; described ones (`allocate`) have their tag and size beside them (`span.rs`), so that
//! they can be enumerated and a stale pointer is never believed.
//! Never allocates elsewhere, never panics; a corrupt heap ends the process (`corrupt.rs`).
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod atomics {
    pub use core::sync::atomic::{AtomicUsize, Ordering};
}
mod aside;
mod block;
mod classes;
mod corrupt;
mod fast;
mod large;
mod local;
mod magazines;
mod medium;
mod numa;
mod outbox;
mod refill;
mod remote;
mod runs;
mod slices;
mod span;
mod thread;
mod way;
mod window;

use crate::ds::page_map::{self, Entry, Tag};
use crate::error::Error;
use crate::fail;
use crate::monitor::account::{self, Holder};
use classes::{Class, SLICE};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering;
use span::{Kind, Place, State};

pub use classes::MAX_RUN;
pub use fast::{
    at_hand, at_hand_aligned, free_or, free_others, free_own, malloc, malloc_at_length, malloc_or, malloc_slow, refilled,
    resize_own, usable_own,
};
pub use medium::{at_hand_medium, is_medium};
pub use span::{MAX_TAG, PLAIN_TAG};

/// Largest alignment served.
pub const MAX_ALIGN: usize = 1 << 30;
/// Largest size tried: with any alignment the sum stays below isize::MAX.
const MAX_SIZE: usize = isize::MAX as usize - MAX_ALIGN;

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its first byte.
    pub start: *mut u8,
    /// Bytes requested; 0 counts as 1. For plain blocks, bytes that may be used.
    pub size: usize,
    /// Bytes that may be used.
    pub usable: usize,
    /// As given; [`PLAIN_TAG`] for plain blocks.
    pub tag: u8,
}

/// What an address is to the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The start of a live block.
    Live(Block),
    /// Inside a block (or former block) that was freed and starts there, or was not given yet.
    Freed {
        /// Where it started; the address itself if its span is gone too.
        start: *mut u8,
    },
    /// Inside a live block, but not its start.
    Interior(Block),
    /// Never given by this heap, as far as it knows.
    Unknown,
}

/// Where the heap's memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapStats {
    /// Bytes of address space: units and large blocks.
    pub mapped: usize,
    /// Bytes charged to the budget: what may be resident.
    pub charged: usize,
    /// Of these, bytes in large blocks, live or kept for reuse.
    pub large: usize,
    /// Of these, bytes in no span, kept for reuse.
    pub cached: usize,
    /// Thread heaps ever made.
    pub heaps: usize,
    /// Thread heaps whose threads run.
    pub threads: usize,
}

/// A block of at least `size` bytes (0 counts as 1) at a multiple of `align` (a power of two up to [`MAX_ALIGN`]; 16 at least),
/// all zero if asked for. `tag` (up to [`MAX_TAG`]; not [`OWNED_TAG`]) comes back from lookups.
pub fn allocate(size: usize, align: usize, zeroed: bool, tag: u8) -> Result<NonNull<u8>, Error> {
    if !align.is_power_of_two() || align > MAX_ALIGN {
        return Err(fail!(InvalidArgument, "alignment {align} is not a power of two up to {MAX_ALIGN}"));
    }
    if tag > MAX_TAG {
        return Err(fail!(InvalidArgument, "tag {tag} is above {MAX_TAG}, the largest a heap block can carry"));
    }
    if size > MAX_SIZE {
        return Err(fail!(
            OutOfMemory,
            "{size} bytes are more than an address space holds; no object can be larger than {}",
            isize::MAX
        ));
    }
    let request = Request { size: size.max(1), align, tag: Some(tag), room: false };
    request.serve(zeroed)
}

/// Tag of owned blocks.
pub const OWNED_TAG: u8 = 3;

/// A block of more than 32 KiB that carries a word of its owner's: [`owned`] finds both from any address inside, without a lock, and
/// [`free`] takes it for no block, so that a program cannot pull it away from under its owner.
pub fn allocate_owned(size: usize, align: usize, word: u64) -> Result<NonNull<u8>, Error> {
    if size <= classes::MAX_SMALL {
        return Err(fail!(
            InvalidArgument,
            "{size} bytes are too few for an owned block, which has more than {}",
            classes::MAX_SMALL
        ));
    }
    let block = allocate(size, align, false, OWNED_TAG)?;
    match place(block.as_ptr() as usize) {
        Some(Found::Small(place)) => place.span.owner().store(word, Ordering::Release),
        Some(Found::Large(place)) => place.owner().store(word, Ordering::Release),
        None => {}
    }
    Ok(block)
}

/// The live owned block around `address`: its start and its owner's word. Of a block that ends at this moment it may be the word that
/// it had, or that of the next one there.
#[inline]
pub fn owned(address: usize) -> Option<(usize, u64)> {
    match place(address)? {
        Found::Small(place) if place.is_owned() => Some((place.start, place.span.owner().load(Ordering::Acquire))),
        Found::Large(place) if place.tag == OWNED_TAG => Some((place.start, place.owner().load(Ordering::Acquire))),
        _ => None,
    }
}

/// [`free`] for the owner of a block.
///
/// # Safety
/// As for [`free`].
pub unsafe fn free_owned(ptr: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    owned(ptr as usize).is_some() && unsafe { free_found(place(ptr as usize), ptr, || ()) }
}

/// The number of the calling thread's heap, below [`crate::config::HEAP_THREADS`]: its own as long as it runs, then the next
/// thread's. None: it has none.
#[inline]
pub fn thread_number() -> Option<usize> {
    thread::own_or_new().map(|heap| heap.number.get() as usize)
}

/// A plain block of at least `size` bytes at a multiple of `align`, all zero if asked for. What [`malloc`] gives, with a reason
/// where there is none.
pub fn allocate_plain(size: usize, align: usize, zeroed: bool) -> Result<NonNull<u8>, Error> {
    if !align.is_power_of_two() || align > MAX_ALIGN {
        return Err(fail!(InvalidArgument, "alignment {align} is not a power of two up to {MAX_ALIGN}"));
    }
    if size > MAX_SIZE {
        return Err(fail!(InvalidArgument, "{size} bytes: no object can be larger than {}", isize::MAX));
    }
    Request { size: size.max(1), align, tag: None, room: false }.serve(zeroed)
}

/// What [`malloc`] gives by the long way.
fn obtain(size: usize, align: usize) -> *mut u8 {
    allocate_plain(size, align, false).map_or(null_mut(), NonNull::as_ptr)
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Request {
    size: usize,
    align: usize,
    /// None: a plain block.
    tag: Option<u8>,
    /// Where it can grow.
    room: bool,
}

/// A block, and whether it is zero but for its first 16 bytes.
type Made = (NonNull<u8>, bool);

impl Request {
    fn serve(&self, zeroed: bool) -> Result<NonNull<u8>, Error> {
        let mut made = self.attempt(false)?;
        if made.is_none() && thread::renew() {
            made = self.attempt(false)?;
        }
        if made.is_none() {
            trim();
            made = self.attempt(true)?;
        }
        let Some((block, zero)) = made else {
            return Err(fail!(
                OutOfMemory,
                "{} bytes do not fit into the budget of {} bytes, or the kernel has no address space for them",
                self.size,
                account::budget()
            ));
        };
        if zeroed {
            // SAFETY: the block is ours, and at least `size` and 16 bytes long.
            unsafe { block.write_bytes(0, if zero { self.size.min(16) } else { self.size }) };
        }
        Ok(block)
    }

    /// None: the budget has no room unless the pager makes some, which only `wait` asks for.
    fn attempt(&self, wait: bool) -> Result<Option<Made>, Error> {
        let class = Class::of(self.size, self.align);
        if class.is_none() && (self.size > MAX_RUN || self.align > SLICE) {
            return self.attempt_large(wait);
        }
        let mut prepaid = 0;
        if wait {
            prepaid = self.size.div_ceil(SLICE) * SLICE;
            account::charge(Holder::Heap, prepaid)?; // before any lock: making room may take long
        }
        // SAFETY: `with` passes a heap that is ours.
        let made = thread::with(prepaid, |heap| unsafe {
            match (self.tag, class) {
                (None, Some(class)) => fast::take(heap, class, class.shape().size as usize),
                (Some(tag), Some(class)) => fast::take_described(heap, class, self.size, tag),
                (tag, None) => runs::take(heap, self.size, tag.unwrap_or(PLAIN_TAG), self.room),
            }
        });
        Ok(made.and_then(|(block, zero)| Some((NonNull::new(block)?, zero))))
    }

    fn attempt_large(&self, wait: bool) -> Result<Option<Made>, Error> {
        let tag = self.tag.unwrap_or(PLAIN_TAG);
        // SAFETY: the thread's own heap.
        let kept = thread::own_or_new().and_then(|heap| unsafe { large::reuse(heap, self.size, self.align, tag) });
        if let Some(block) = kept {
            return Ok(Some((block, false)));
        }
        Ok(large::allocate(self.size, self.align, tag, wait)?.map(|block| (block, true)))
    }
}

enum Found {
    Small(Place),
    Large(large::Place),
}

fn place(address: usize) -> Option<Found> {
    place_in(page_map::get(address)?, address)
}

fn place_in(entry: Entry, address: usize) -> Option<Found> {
    match entry.tag {
        Tag::Segment => span::locate(span::heap_of(entry)?, address).map(Found::Small),
        Tag::Large => large::locate(entry.payload as usize, address).map(Found::Large),
        Tag::Region => None,
    }
}

/// Frees a live block by its start. False, and nothing happens, if it is none (any more): of several threads that free the same
/// described block at the same time exactly one gets true.
///
/// # Safety
/// If the block is live, nobody uses it any more.
pub unsafe fn free(ptr: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe { free_after(ptr, || ()) }
}

/// [`free`] that calls `last` when the block is no longer live but cannot be given again yet, so that what others know of this
/// address can be forgotten. The step before `last` is sequentially consistent.
///
/// # Safety
/// As for [`free`].
#[inline]
pub unsafe fn free_after(ptr: *mut u8, last: impl FnOnce()) -> bool {
    match place(ptr as usize) {
        Some(Found::Small(place)) if place.is_owned() => false,
        Some(Found::Large(place)) if place.tag == OWNED_TAG => false,
        // SAFETY: the caller's promise.
        found => unsafe { free_found(found, ptr, last) },
    }
}

/// # Safety
/// As for [`free`].
#[inline]
unsafe fn free_found(found: Option<Found>, ptr: *mut u8, last: impl FnOnce()) -> bool {
    match found {
        // SAFETY: the caller's promise.
        Some(Found::Small(place)) if place.start == ptr as usize => unsafe { fast::free_at(&place, last) },
        Some(Found::Large(place)) if place.start == ptr as usize && place.claim() => {
            last();
            // SAFETY: we won the claim on the block, and the caller says that nobody uses it.
            unsafe { place.put(thread::own()) };
            true
        }
        _ => false,
    }
}

/// Gives the live block that starts at `ptr` another size; contents up to the smaller of both usable sizes and the tag are kept.
/// It may move, to a multiple of `align`. On failure the block is as it was.
///
/// # Safety
/// Nobody else uses the block during the call, nor its old address afterwards if it moved.
pub unsafe fn resize_aligned(ptr: *mut u8, size: usize, align: usize) -> Result<NonNull<u8>, Error> {
    let size = size.max(1);
    let Lookup::Live(block) = find(ptr) else {
        return Err(fail!(InvalidArgument, "{ptr:?} is not the start of a live heap block; it cannot be resized"));
    };
    if !align.is_power_of_two() || align > MAX_ALIGN {
        return Err(fail!(InvalidArgument, "alignment {align} is not a power of two up to {MAX_ALIGN}"));
    }
    if ptr as usize & (align - 1) == 0
        // SAFETY: the caller's promise.
        && let Some(start) = unsafe { resize_in_place(ptr, &block, size, align) }
    {
        return Ok(start);
    }
    if size > MAX_SIZE {
        return Err(fail!(
            OutOfMemory,
            "{size} bytes are more than an address space holds; no object can be larger than {}",
            isize::MAX
        ));
    }
    // What grows once grows again.
    let tag = Some(block.tag).filter(|tag| *tag != PLAIN_TAG);
    let new = Request { size, align, tag, room: size > block.usable }.serve(false)?;
    // SAFETY: the caller's promise; the new block is ours and was shown to nobody.
    unsafe { replace(ptr, &block, new, size) }
}

/// # Safety
/// As for [`resize_aligned`]; `new` is a block of `size` bytes that the caller alone has.
unsafe fn replace(ptr: *mut u8, block: &Block, new: NonNull<u8>, size: usize) -> Result<NonNull<u8>, Error> {
    // SAFETY: both blocks are live, distinct and as long as this.
    unsafe { new.as_ptr().copy_from_nonoverlapping(ptr, size.min(block.usable)) };
    // SAFETY: the caller has given up the old address.
    if unsafe { free(ptr) } {
        return Ok(new);
    }
    // SAFETY: the copy is ours and was shown to nobody.
    unsafe { free(new.as_ptr()) };
    Err(fail!(Busy, "the block at {ptr:?} was freed by another thread while it was resized"))
}

/// Where the block is as it should be without copying: it fits, its neighbours are free, or its pages can be moved.
///
/// # Safety
/// As for [`resize_aligned`].
unsafe fn resize_in_place(ptr: *mut u8, block: &Block, size: usize, align: usize) -> Option<NonNull<u8>> {
    match place(ptr as usize)? {
        // While not more than half is unused.
        Found::Small(place) if size <= block.usable && size >= block.usable / 2 => {
            place.set_size(size);
            NonNull::new(ptr)
        }
        Found::Small(place) if place.kind == Kind::Run && size > classes::MAX_SMALL && size <= MAX_RUN => {
            let heap = thread::own().filter(|heap| core::ptr::eq(*heap, place.heap))?;
            // SAFETY: the heap is the thread's own; the caller's promise.
            unsafe { runs::resize(heap, place.slice, size) }.then(|| place.set_size(size))?;
            NonNull::new(ptr)
        }
        Found::Large(place) if size > MAX_RUN && size <= MAX_SIZE => {
            // SAFETY: the caller's promise.
            if let Ok(Some(start)) = unsafe { place.resize(size, align, false) } {
                return Some(start);
            }
            trim();
            // The failure changed nothing but the record's epoch, hence the new look-up.
            let Some(Found::Large(place)) = self::place(ptr as usize) else { return None };
            // SAFETY: the caller's promise.
            unsafe { place.resize(size, align, true) }.ok().flatten()
        }
        _ => None,
    }
}

/// [`resize_aligned`] with the alignment of malloc.
///
/// # Safety
/// As for [`resize_aligned`].
pub unsafe fn resize(ptr: *mut u8, size: usize) -> Result<NonNull<u8>, Error> {
    // SAFETY: the caller's promise.
    unsafe { resize_aligned(ptr, size, 16) }
}

/// Bytes that may be used in the live block that starts at `ptr`; 0 if there is none.
pub fn usable(ptr: *const u8) -> usize {
    match find(ptr) {
        Lookup::Live(block) => block.usable,
        _ => 0,
    }
}

/// What `ptr` is to the heap. Any address at all is fine; takes no lock.
pub fn find(ptr: *const u8) -> Lookup {
    let address = ptr as usize;
    let entry = page_map::get(address);
    match entry.and_then(|entry| place_in(entry, address)) {
        Some(Found::Small(place)) if thread::own().is_some_and(|heap| heap.aside.has(place.start)) => {
            Lookup::Freed { start: place.start as *mut u8 }
        }
        Some(Found::Small(place)) => match place.state() {
            Some(State::Live(tag, size)) => {
                let block = Block { start: place.start as *mut u8, size, usable: place.usable, tag };
                if address == place.start { Lookup::Live(block) } else { Lookup::Interior(block) }
            }
            // What was not given since its slice was cut may have been given before.
            Some(State::Freed | State::Never) | None => Lookup::Freed { start: place.start as *mut u8 },
        },
        Some(Found::Large(place)) => {
            let block = place.block();
            if address == place.start { Lookup::Live(block) } else { Lookup::Interior(block) }
        }
        None if entry.is_some_and(|entry| entry.tag == Tag::Segment) => Lookup::Freed { start: ptr.cast_mut() },
        None if address != 0 && large::was_freed(entry, address) => Lookup::Freed { start: ptr.cast_mut() },
        None => Lookup::Unknown,
    }
}

impl large::Place {
    fn block(&self) -> Block {
        Block { start: self.start as *mut u8, size: self.size, usable: self.usable, tag: self.tag }
    }
}

/// Calls `f` for every live described block with this tag, without a lock: `f` may allocate and free. Blocks that other threads
/// take or free meanwhile may be missed or seen.
pub fn for_each_live(tag: u8, f: &mut dyn FnMut(Block)) {
    let mut see = |address: usize| {
        if let Lookup::Live(block) = find(address as *const u8)
            && block.tag == tag
        {
            f(block);
        }
    };
    for heap in thread::all() {
        for slice in heap.slices.range() {
            // SAFETY: the range is of mapped units.
            match unsafe { heap.span(slice) }.what() {
                Some((Kind::Run, _)) => see(heap.start_of(slice)),
                Some((Kind::Described, class)) => {
                    let (size, first) = (class.shape().size as usize, heap.start_of(slice));
                    (0..class.shape().described as usize).for_each(|index| see(first + index * size));
                }
                _ => {}
            }
        }
    }
    large::for_each(&mut |place| {
        if place.tag == tag {
            f(place.block());
        }
    });
}

/// The program ends: reports what the calling thread freed twice a moment ago. Allocates nothing and changes nothing.
pub fn verify() {
    if let Some(heap) = thread::own() {
        aside::verify(heap);
    }
}

/// Gives back to the kernel what the calling thread and ended threads keep for reuse.
pub fn trim() {
    thread::trim();
}

/// Has every free of the plain block at `ptr`, and of its neighbours, take the long way, where the caller of [`free_or`] sees it.
pub fn watch(ptr: *const u8) {
    if let Some(Found::Small(place)) = place(ptr as usize) {
        place.watch();
    }
}

/// Before fork(2): waits until no thread is inside the heap's shared parts and keeps them out until [`after_fork`], so that the
/// child finds them whole. Locks of higher floors are taken first.
pub fn before_fork() {
    thread::before_fork();
    large::before_fork();
}

/// After fork(2), in the parent and in the child. Blocks of threads that the child does not have stay valid there.
///
/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork() {
    // SAFETY: the caller's promise.
    unsafe {
        large::after_fork();
        thread::after_fork();
    }
}

/// Where the heap's memory is now.
pub fn stats() -> HeapStats {
    let (units, cached) = slices::sizes();
    let large = large::mapped();
    let (heaps, threads) = thread::heaps();
    HeapStats { mapped: units.saturating_add(large), charged: account::held(Holder::Heap), large, cached, heaps, threads }
}
