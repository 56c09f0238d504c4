//! Blocks above 1 MiB or with large alignment: a mapping of their own that starts at a multiple of 2 MiB, described by a record
//! beside it. Called by the face and, for the mappings that a heap keeps for reuse, by `refill.rs`. A record is never unmapped, so
//! a stale pointer can be looked up without a lock; its `state` tells whether what was read belongs together.

use super::local::{Heap, Kept};
use super::numa;
use super::span::PLAIN_TAG;
use crate::config;
use crate::ds::page_map::{self, Entry, Tag, UNIT};
use crate::ds::{Table, Zeroed};
use crate::error::Error;
use crate::fail;
use crate::monitor::account::{self, Holder};
use crate::os::vm;
use crate::sync::Mutex;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const LIVE: u64 = 1 << 8;
/// Live, but being resized: nobody else may free or resize it.
const MOVING: u64 = 1 << 9;
const EPOCH: u64 = 1 << 32;

/// One block. All zero: never used.
struct Record {
    /// Tag in bits 0..8, LIVE, MOVING, epoch in 32..64.
    state: AtomicU64,
    start: AtomicUsize,
    /// Bytes mapped and charged.
    mapped: AtomicUsize,
    /// Bytes requested.
    size: AtomicUsize,
    align: AtomicUsize,
    /// The word that its owner keeps with it.
    owner: AtomicU64,
    /// Index plus one of the next free record, under the lock.
    next: AtomicUsize,
}

// SAFETY: zero is a valid value of every field.
unsafe impl Zeroed for Record {}

static RECORDS: Table<Record> = Table::new(config::HEAP_LARGE_BLOCKS);
/// Index plus one of the first free record.
static FREE: Mutex<usize> = Mutex::new(0);
/// Bytes mapped by large blocks, live or kept.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Starts of blocks that were unmapped last: a second free of one gets a better message than "not from qmem".
static RECENT: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
static RECENT_NEXT: AtomicUsize = AtomicUsize::new(0);

/// A live large block.
#[derive(Clone, Copy)]
pub struct Place {
    /// First byte.
    pub start: usize,
    /// Bytes requested.
    pub size: usize,
    /// Bytes usable.
    pub usable: usize,
    /// As given.
    pub tag: u8,
    record: &'static Record,
    state: u64,
}

/// Bytes mapped by large blocks, live or kept.
pub fn mapped() -> usize {
    MAPPED.load(Ordering::Relaxed)
}

/// A kept mapping for a block of `size` bytes, if one fits without much waste; it is not zero.
///
/// # Safety
/// The caller owns the heap.
pub unsafe fn reuse(heap: &Heap, size: usize, align: usize, tag: u8) -> Option<NonNull<u8>> {
    let need = vm::round_up(size.max(1), vm::PAGE);
    // SAFETY: the caller's promise.
    let kept = unsafe { &mut *heap.kept_large.get() };
    let fits = |slot: &&mut Kept| slot.mapped >= need && slot.mapped - need <= need / 4 && slot.start & (align - 1) == 0;
    let slot = kept.iter_mut().find(fits)?;
    let record = RECORDS.get((slot.number as usize).checked_sub(1)?)?;
    let start = NonNull::new(slot.start as *mut u8);
    *slot = Kept::NONE;
    record.size.store(size, Ordering::Relaxed);
    record.align.store(align, Ordering::Relaxed);
    let epoch = record.state.load(Ordering::Relaxed) & !(EPOCH - 1);
    record.state.store(epoch.wrapping_add(EPOCH) | LIVE | u64::from(tag), Ordering::Release);
    start
}

/// Gives up kept mappings: all, or those that were not needed since the last look.
pub fn drop_kept(heap: &Heap, all: bool) {
    // SAFETY: the heap's owner calls.
    let kept = unsafe { &mut *heap.kept_large.get() };
    for slot in kept {
        let record = (slot.number as usize).checked_sub(1).and_then(|index| RECORDS.get(index));
        match record {
            Some(record) if all || slot.idle => {
                *slot = Kept::NONE;
                remember(record.start.load(Ordering::Relaxed));
                // SAFETY: a kept record's block was freed and is known to this heap alone.
                unsafe { unmap(record) };
            }
            Some(_) => slot.idle = true,
            None => {}
        }
    }
}

/// A new zero block. None: the budget has no room without `wait`.
pub fn allocate(size: usize, align: usize, tag: u8, wait: bool) -> Result<Option<NonNull<u8>>, Error> {
    let mapped = vm::round_up(size.max(1), vm::PAGE); // no overflow: the face has bounded `size`
    if !charge(mapped, wait)? {
        return Ok(None);
    }
    let made = vm::reserve(mapped, align.max(UNIT)).and_then(|start| {
        numa::place(start.as_ptr() as usize, mapped);
        if mapped >= config::HEAP_HUGE_LARGE.get() {
            // SAFETY: the range was just mapped. Only whole units are huge: no other block lies in the last one.
            unsafe { vm::try_advise(start.as_ptr() as usize, mapped, libc::MADV_HUGEPAGE) };
        }
        enter(start, mapped, size, align, tag).inspect_err(|_| {
            // SAFETY: the mapping was just made and given to nobody.
            unsafe { vm::release(start, mapped) };
        })?;
        Ok(Some(start))
    });
    if made.is_err() {
        account::uncharge(Holder::Heap, mapped);
    }
    made
}

fn charge(bytes: usize, wait: bool) -> Result<bool, Error> {
    if account::try_charge(Holder::Heap, bytes) {
        return Ok(true);
    }
    if wait {
        account::charge(Holder::Heap, bytes)?;
    }
    Ok(wait)
}

fn enter(start: NonNull<u8>, mapped: usize, size: usize, align: usize, tag: u8) -> Result<(), Error> {
    let address = start.as_ptr() as usize;
    let mut free = FREE.lock();
    let (index, record) = match free.checked_sub(1).and_then(|index| Some((index, RECORDS.get(index)?))) {
        Some((index, record)) => {
            *free = record.next.load(Ordering::Relaxed);
            (index, record)
        }
        None => new_record()?,
    };
    if let Err(error) = page_map::set_range(address, mapped, Entry { tag: Tag::Large, payload: index as u64 }) {
        record.next.store(*free, Ordering::Relaxed);
        *free = index + 1;
        return Err(error);
    }
    drop(free);
    forget(address);
    record.start.store(address, Ordering::Relaxed);
    record.mapped.store(mapped, Ordering::Relaxed);
    record.size.store(size, Ordering::Relaxed);
    record.align.store(align, Ordering::Relaxed);
    MAPPED.fetch_add(mapped, Ordering::Relaxed);
    let epoch = record.state.load(Ordering::Relaxed) & !(EPOCH - 1);
    record.state.store(epoch.wrapping_add(EPOCH) | LIVE | u64::from(tag), Ordering::Release);
    Ok(())
}

/// Under the lock.
fn new_record() -> Result<(usize, &'static Record), Error> {
    let bytes = RECORDS.growth();
    if !account::try_charge(Holder::Tables, bytes) {
        return Err(fail!(
            OutOfMemory,
            "the budget has no room for {bytes} more bytes of the heap's tables; free blocks or raise max_memory"
        ));
    }
    let made = RECORDS.push().inspect_err(|_| account::uncharge(Holder::Tables, bytes))?;
    match RECORDS.get(made) {
        Some(record) => Ok((made, record)),
        None => Err(fail!(Internal, "record {made} of the large blocks is missing")),
    }
}

/// The live block around `address`, which the page map says belongs to record `index`.
pub fn locate(index: usize, address: usize) -> Option<Place> {
    let place = place_of(RECORDS.get(index)?)?;
    (address.checked_sub(place.start)? < place.usable).then_some(place)
}

fn place_of(record: &'static Record) -> Option<Place> {
    let state = record.state.load(Ordering::Acquire);
    let (start, size) = (record.start.load(Ordering::Relaxed), record.size.load(Ordering::Relaxed));
    let usable = record.mapped.load(Ordering::Relaxed);
    core::sync::atomic::fence(Ordering::Acquire);
    if state & LIVE == 0 || record.state.load(Ordering::Relaxed) != state {
        return None;
    }
    Some(Place { start, size, usable, tag: state as u8, record, state })
}

/// Every live large block; `f` may free it.
pub fn for_each(f: &mut dyn FnMut(Place)) {
    (0..RECORDS.len()).filter_map(|i| RECORDS.get(i)).filter_map(place_of).for_each(f);
}

/// Was `address`, to which the page map says this, the start of a freed block that is kept, or of one of the last that were unmapped?
pub fn was_freed(entry: Option<Entry>, address: usize) -> bool {
    let kept = entry.filter(|entry| entry.tag == Tag::Large).and_then(|entry| RECORDS.get(entry.payload as usize));
    kept.is_some_and(|record| record.start.load(Ordering::Relaxed) == address)
        || RECENT.iter().any(|start| start.load(Ordering::Relaxed) == address)
}

fn remember(address: usize) {
    if let Some(slot) = RECENT.get(RECENT_NEXT.fetch_add(1, Ordering::Relaxed) % RECENT.len()) {
        slot.store(address, Ordering::Relaxed);
    }
}

fn forget(address: usize) {
    for slot in &RECENT {
        if slot.load(Ordering::Relaxed) == address {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

/// See the face.
pub fn before_fork() {
    FREE.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork() {
    // SAFETY: the caller's promise.
    unsafe { FREE.unlock_after_fork() };
}

fn index_of(record: &Record) -> usize {
    let first = RECORDS.get(0).map_or(0, |first| first as *const Record as usize);
    (record as *const Record as usize - first) / size_of::<Record>()
}

/// Keeps the mapping of a block for the next one if the bounds allow and `claim` says that it is freed.
///
/// # Safety
/// The caller owns the heap; once claimed, nobody uses the block.
unsafe fn keep(heap: &Heap, block: Kept, claim: impl FnOnce() -> bool) -> bool {
    // SAFETY: the caller's promise.
    let kept = unsafe { &mut *heap.kept_large.get() };
    let all: usize = kept.iter().map(|slot| slot.mapped).sum();
    let bound = config::HEAP_KEPT_LARGE_BYTES;
    let fits = block.mapped <= bound && all + block.mapped <= bound;
    let Some(slot) = kept.iter_mut().find(|slot| fits && slot.number == 0) else { return false };
    let claimed = claim();
    if claimed {
        *slot = block;
    }
    claimed
}

/// Frees the plain block of record `index` that starts at `ptr` if the heap can keep its mapping; false, and nothing happens, if it
/// cannot or there is no such live block.
///
/// # Safety
/// The caller owns the heap; if it is a live block, nobody uses or watches it.
#[inline]
pub unsafe fn free_plain(heap: &Heap, index: usize, ptr: *mut u8) -> bool {
    let Some(record) = RECORDS.get(index) else { return false };
    let state = record.state.load(Ordering::Acquire);
    let (start, mapped) = (record.start.load(Ordering::Relaxed), record.mapped.load(Ordering::Relaxed));
    if state & (LIVE | MOVING | 0xff) != LIVE | u64::from(PLAIN_TAG) || start != ptr as usize {
        return false;
    }
    let block = Kept { number: index as u32 + 1, idle: false, start, mapped };
    // Of several threads that free it one comes through; and what was read is of this block.
    let claim = || record.state.compare_exchange(state, state & !LIVE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    // SAFETY: the caller's promise.
    unsafe { keep(heap, block, claim) }
}

/// Gives a freed block's memory back.
///
/// # Safety
/// The block was claimed, and nobody uses it or keeps it.
unsafe fn unmap(record: &'static Record) {
    let (start, mapped) = (record.start.load(Ordering::Relaxed), record.mapped.load(Ordering::Relaxed));
    page_map::clear_range(start, mapped);
    if let Some(start) = NonNull::new(start as *mut u8) {
        // SAFETY: the caller's promise, and the page map no longer leads to it.
        unsafe { vm::release(start, mapped) };
    }
    account::uncharge(Holder::Heap, mapped);
    MAPPED.fetch_sub(mapped, Ordering::Relaxed);
    let index = index_of(record);
    let mut free = FREE.lock();
    record.next.store(*free, Ordering::Relaxed);
    *free = index + 1;
}

impl Place {
    /// The word that its owner keeps with it.
    pub fn owner(&self) -> &'static AtomicU64 {
        &self.record.owner
    }

    /// Takes the block from its user: of several threads that free it exactly one gets true.
    pub fn claim(&self) -> bool {
        self.state & MOVING == 0 && self.replace(self.state, self.state & !LIVE)
    }

    /// Takes its memory back: kept by `heap` for the next block, or unmapped.
    ///
    /// # Safety
    /// The caller has won the claim, nobody uses the block any more, and the caller owns the heap.
    pub unsafe fn put(&self, heap: Option<&Heap>) {
        let block = Kept { number: index_of(self.record) as u32 + 1, idle: false, start: self.start, mapped: self.usable };
        // SAFETY: the caller's promise.
        if heap.is_some_and(|heap| unsafe { keep(heap, block, || true) }) {
            return;
        }
        remember(self.start);
        // SAFETY: as above.
        unsafe { unmap(self.record) };
    }

    fn replace(&self, from: u64, to: u64) -> bool {
        self.record.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Gives the block another size, without copying: in place, or its pages move, to a multiple of `align` and of what it was allocated
    /// with. `size` is large enough to stay a large block.
    /// Err(Busy) if another thread frees or resizes it; any error leaves it as it was.
    ///
    /// # Safety
    /// Nobody else uses the block during the call, nor its old address afterwards.
    pub unsafe fn resize(&self, size: usize, align: usize, wait: bool) -> Result<Option<NonNull<u8>>, Error> {
        if self.state & MOVING != 0 || !self.replace(self.state, self.state | MOVING) {
            return Err(fail!(Busy, "the block at {:#x} is being freed or resized by another thread", self.start));
        }
        let mapped = vm::round_up(size, vm::PAGE);
        self.record.align.fetch_max(align, Ordering::Relaxed);
        // SAFETY: the caller's promise, and MOVING keeps others off the mapping.
        let moved = unsafe { if mapped <= self.usable { self.shrink(mapped) } else { self.grow(mapped, wait) } };
        if let Ok(Some(start)) = moved {
            self.record.start.store(start.as_ptr() as usize, Ordering::Relaxed);
            self.record.mapped.store(mapped, Ordering::Relaxed);
            self.record.size.store(size, Ordering::Relaxed);
        }
        self.record.state.store(self.state.wrapping_add(EPOCH), Ordering::Release);
        moved
    }

    /// # Safety
    /// As for `resize`; this thread has set MOVING.
    unsafe fn shrink(&self, mapped: usize) -> Result<Option<NonNull<u8>>, Error> {
        let end = vm::round_up(self.start + mapped, UNIT);
        if let Some(units) = (self.start + self.usable).checked_sub(end).filter(|bytes| *bytes > 0) {
            page_map::clear_range(end, units);
        }
        if let Some(tail) = NonNull::new((self.start + mapped) as *mut u8).filter(|_| mapped < self.usable) {
            // SAFETY: the tail is part of the mapping and its user gives it up.
            unsafe { vm::release(tail, self.usable - mapped) };
        }
        account::uncharge(Holder::Heap, self.usable - mapped);
        MAPPED.fetch_sub(self.usable - mapped, Ordering::Relaxed);
        Ok(NonNull::new(self.start as *mut u8))
    }

    /// # Safety
    /// As for `resize`; this thread has set MOVING.
    unsafe fn grow(&self, mapped: usize, wait: bool) -> Result<Option<NonNull<u8>>, Error> {
        let Some(old) = NonNull::new(self.start as *mut u8) else {
            return Ok(None);
        };
        let more = mapped - self.usable;
        if !charge(more, wait)? {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let grown = unsafe { self.grow_in_place(old, mapped).or_else(|| self.grow_elsewhere(old, mapped).ok()) };
        match grown {
            Some(start) => {
                MAPPED.fetch_add(more, Ordering::Relaxed);
                Ok(Some(start))
            }
            None => {
                account::uncharge(Holder::Heap, more);
                Err(fail!(
                    OutOfMemory,
                    "the kernel cannot grow a block from {} to {mapped} bytes: check ulimit -v and vm.max_map_count",
                    self.usable
                ))
            }
        }
    }

    /// # Safety
    /// As for `grow`.
    unsafe fn grow_in_place(&self, old: NonNull<u8>, mapped: usize) -> Option<NonNull<u8>> {
        // SAFETY: the mapping is ours; without a target the kernel only extends it into free address space.
        unsafe { vm::remap(old, self.usable, mapped, None) }.ok()?;
        if page_map::set_range(self.start, mapped, self.entry()).is_ok() {
            return Some(old);
        }
        // SAFETY: the tail was just added and nobody knows of it.
        let _ = unsafe { vm::remap(old, mapped, self.usable, None) };
        let _ = page_map::set_range(self.start, self.usable, self.entry()); // its leaves exist: it cannot fail
        None
    }

    /// # Safety
    /// As for `grow`.
    unsafe fn grow_elsewhere(&self, old: NonNull<u8>, mapped: usize) -> Result<NonNull<u8>, Error> {
        let to = vm::reserve(mapped, self.record.align.load(Ordering::Relaxed).max(UNIT))?;
        let target = to.as_ptr() as usize;
        if let Err(error) = page_map::set_range(target, mapped, self.entry()) {
            // SAFETY: reserved above and given to nobody.
            unsafe { vm::release(to, mapped) };
            return Err(error);
        }
        // Out of the map first: once the pages have moved, the old addresses may be anyone's.
        page_map::clear_range(self.start, self.usable);
        forget(target);
        // SAFETY: both ranges are ours.
        if let Err(errno) = unsafe { vm::remap(old, self.usable, mapped, Some(to)) } {
            let _ = page_map::set_range(self.start, self.usable, self.entry()); // its leaves exist: it cannot fail
            page_map::clear_range(target, mapped);
            // SAFETY: reserved above and given to nobody.
            unsafe { vm::release(to, mapped) };
            return Err(fail!(OutOfMemory, "mremap to {mapped} bytes failed (errno {errno})"));
        }
        remember(self.start);
        Ok(to)
    }

    fn entry(&self) -> Entry {
        Entry { tag: Tag::Large, payload: index_of(self.record) as u64 }
    }
}
