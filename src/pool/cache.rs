//! Threads' caches: for each thread that uses a pool a few blocks of each size at hand, so that the common path takes no lock. A
//! cache belongs to the thread's heap by its number, and goes to the next thread with it. Whoever finds a size exhausted collects
//! what all caches keep of it, so that no block is out of reach. Called by the pools' face.
//!
//! A magazine is touched by who has its claim. Its thread never waits for that: it takes or returns a block without the magazine
//! then. Order: `entering`, claims in the order of the caches, then the lock of the block size.

use super::TAG;
use super::claim::Claim;
use super::class::{Class, Held, Leaving, Shared};
use super::slab::Entry;
use crate::os::worker;
use crate::sync::Mutex;
use crate::{config, heap};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering, Ordering::Relaxed};

/// Bytes of blocks that a magazine holds, within bounds by number; none of blocks beyond it.
const BYTES: usize = 64 << 10;
/// See [`BYTES`].
const BLOCKS: usize = 64;
/// Share of [`BYTES`] up to which the number is [`BLOCKS`].
const FEWER: usize = 4;
/// Caches of a group.
const GROUP: usize = 512;
const GROUPS: usize = config::HEAP_THREADS.div_ceil(GROUP);
/// Magazines start at multiples of this: a cache line.
const ALIGN: usize = 64;
/// Times that a claim is looked at before its holder is given the processor.
const SPINS: u32 = 100;

/// What all threads together count; a thread brings its part now and then.
#[derive(Default)]
pub struct Counted {
    /// Bytes of live blocks.
    live: AtomicI64,
    /// The most of that.
    peak: AtomicI64,
}

impl Counted {
    fn add(&self, bytes: i64, top: i64) {
        let before = self.live.fetch_add(bytes, Relaxed);
        self.peak.fetch_max(before + top.max(bytes), Relaxed);
    }
}

/// A thread's cache. Magazines follow at the offsets that the block sizes know. All zero: empty.
#[repr(C, align(64))]
struct Cache {
    /// Bytes of blocks that the thread took less those that it returned, since it last told.
    out: AtomicI64,
    /// The most of that.
    top: AtomicI64,
}

/// The blocks of one size, followed by room for the entries. All zero: empty.
#[repr(C)]
struct Magazine {
    claim: Claim,
    count: AtomicU32,
    given: AtomicU64,
    taken: AtomicU64,
}

/// How many blocks of a size a magazine holds; 0: none is kept.
pub fn room(stride: usize) -> usize {
    if stride > BYTES { 0 } else { (BYTES / FEWER / stride).clamp(2, BLOCKS) }
}

/// Where the magazine after one at `offset` for `room` blocks is; the first one is at [`FIRST`].
pub fn after(offset: usize, room: usize) -> usize {
    offset + (size_of::<Magazine>() + room * size_of::<Entry>()).next_multiple_of(ALIGN)
}

/// Offset of the first magazine.
pub const FIRST: usize = size_of::<Cache>();

/// What one pool's threads keep.
pub struct Caches {
    groups: [AtomicPtr<[AtomicPtr<Cache>; GROUP]>; GROUPS],
    /// Bytes of a cache; 0: there are none.
    bytes: usize,
    counted: Counted,
    /// Held to enter a cache: fork and who takes all claims keep new ones out.
    entering: Mutex<()>,
}

/// Numbers of a pool.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sums {
    /// Bytes live now, and the most that were.
    pub live: usize,
    /// See `live`.
    pub peak: usize,
}

impl Magazine {
    fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    fn entry(&self, index: u32) -> *mut Entry {
        // SAFETY: callers pass indices below the room that follows the record.
        unsafe { (self as *const Self).add(1).cast::<Entry>().cast_mut().add(index as usize) }
    }

    fn push(&self, entry: Entry) {
        let count = self.count();
        // SAFETY: the caller has the claim, and there is room.
        unsafe { self.entry(count).write(entry) };
        self.count.store(count + 1, Relaxed);
    }

    fn pop(&self) -> Option<Entry> {
        let left = self.count().checked_sub(1)?;
        self.count.store(left, Relaxed);
        // SAFETY: the caller has the claim; the entries below the count were written.
        Some(unsafe { self.entry(left).read() })
    }

    /// Puts the `many` entries that lie longest back under the lock.
    fn put_back(&self, many: u32, class: &Class, shared: &mut Shared, leaving: &mut Leaving) {
        for index in 0..many {
            // SAFETY: the caller has the claim; `many` is at most the count.
            shared.put(class, unsafe { self.entry(index).read() }, leaving);
        }
        let left = self.count() - many;
        // SAFETY: as above; both ranges are among the entries.
        unsafe { self.entry(0).copy_from(self.entry(many), left as usize) };
        self.count.store(left, Relaxed);
    }

    fn more(counter: &AtomicU64) {
        counter.store(counter.load(Relaxed) + 1, Relaxed); // only who has the claim counts
    }
}

impl Cache {
    #[inline]
    fn magazine(&self, class: &Class) -> &Magazine {
        // SAFETY: a cache is as long as its pool's block sizes say, and zero is a valid magazine.
        unsafe { &*(self as *const Self).byte_add(class.magazine).cast::<Magazine>() }
    }

    /// Its thread took (or returned, if negative) so many bytes.
    #[inline]
    fn count(&self, bytes: i64) {
        let out = self.out.load(Relaxed) + bytes; // its thread alone counts
        self.out.store(out, Relaxed);
        if out > self.top.load(Relaxed) {
            self.top.store(out, Relaxed);
        }
    }

    fn tell(&self, counted: &Counted) {
        counted.add(self.out.load(Relaxed), self.top.load(Relaxed));
        self.out.store(0, Relaxed);
        self.top.store(0, Relaxed);
    }
}

impl Caches {
    /// None yet; with `bytes` 0 there will be none.
    pub const fn new(bytes: usize) -> Self {
        let counted = Counted { live: AtomicI64::new(0), peak: AtomicI64::new(0) };
        Self { groups: [const { AtomicPtr::new(null_mut()) }; GROUPS], bytes, counted, entering: Mutex::new(()) }
    }

    /// The calling thread's.
    #[inline]
    fn own(&self) -> Option<&Cache> {
        if self.bytes == 0 {
            return None;
        }
        let number = heap::thread_number()?;
        // SAFETY: null or a group, which lives as long as the pool.
        let group = unsafe { self.groups.get(number / GROUP)?.load(Ordering::Acquire).as_ref() };
        // SAFETY: null or a cache, which lives as long as the pool.
        match group.and_then(|group| unsafe { group.get(number % GROUP)?.load(Ordering::Acquire).as_ref() }) {
            Some(cache) => Some(cache),
            None => self.make(number),
        }
    }

    /// None: no memory, so the thread does without.
    #[cold]
    fn make(&self, number: usize) -> Option<&Cache> {
        let zeroed = |bytes: usize| heap::allocate(bytes, ALIGN, true, TAG).ok().map(|block| block.as_ptr());
        let place = self.groups.get(number / GROUP)?;
        let mut group = place.load(Ordering::Acquire);
        if group.is_null() {
            let fresh = zeroed(size_of::<[AtomicPtr<Cache>; GROUP]>())?;
            group = match place.compare_exchange(null_mut(), fresh.cast(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => fresh.cast(),
                Err(first) => {
                    // SAFETY: ours, and seen by nobody.
                    unsafe { heap::free(fresh) };
                    first
                }
            };
        }
        let cache = zeroed(self.bytes)?.cast::<Cache>();
        let _entering = self.entering.lock();
        // SAFETY: a group lives as long as the pool; this thread alone has the number.
        unsafe {
            (*group).get(number % GROUP)?.store(cache, Ordering::Release);
            cache.as_ref()
        }
    }

    fn all(&self) -> impl Iterator<Item = &Cache> {
        // SAFETY: as in `own`.
        let groups = self.groups.iter().filter_map(|group| unsafe { group.load(Ordering::Acquire).as_ref() });
        // SAFETY: as in `own`.
        groups.flatten().filter_map(|cache| unsafe { cache.load(Ordering::Acquire).as_ref() })
    }

    /// A block of the size that can be given; None: none is to be had without another slab. It counts as given.
    #[inline]
    pub fn take(&self, class: &Class) -> Option<Entry> {
        let own = self.own();
        if let Some(cache) = own.filter(|_| class.room > 0) {
            let magazine = cache.magazine(class);
            if magazine.claim.try_take() {
                if magazine.count() == 0 {
                    self.refill(cache, magazine, class);
                }
                let entry = magazine.pop();
                if entry.is_some() {
                    Magazine::more(&magazine.given);
                    cache.count(class.size as i64);
                }
                magazine.claim.give();
                return entry;
            }
        }
        self.take_shared(own, class)
    }

    #[inline(never)]
    fn refill(&self, cache: &Cache, magazine: &Magazine, class: &Class) {
        let mut shared = class.lock();
        shared.take(class.room.div_ceil(2), &mut |entry| magazine.push(entry));
        shared.refills += 1;
        cache.tell(&self.counted);
    }

    #[inline(never)]
    fn take_shared(&self, own: Option<&Cache>, class: &Class) -> Option<Entry> {
        self.give(own, class, &mut class.lock())
    }

    /// Takes a block past the magazines.
    fn give(&self, own: Option<&Cache>, class: &Class, shared: &mut Shared) -> Option<Entry> {
        let mut entry = None;
        if shared.take(1, &mut |got| entry = Some(got)) > 0 {
            shared.given += 1;
            if let Some(cache) = own {
                cache.tell(&self.counted);
            }
            self.counted.add(class.size as i64, 0);
        }
        entry
    }

    /// A block came back.
    #[inline]
    pub fn put(&self, class: &Class, entry: Entry, held: &Held) {
        let own = self.own();
        if let Some(cache) = own.filter(|_| class.room > 0) {
            let magazine = cache.magazine(class);
            if magazine.claim.try_take() {
                let full = magazine.count() as usize >= class.room;
                let leaving = if full { self.flush(cache, magazine, class) } else { Leaving::default() };
                magazine.push(entry);
                Magazine::more(&magazine.taken);
                cache.count(-(class.size as i64));
                magazine.claim.give();
                if full {
                    leaving.end(class, held);
                }
                return;
            }
        }
        self.put_shared(own, class, entry, held);
    }

    #[inline(never)]
    fn flush(&self, cache: &Cache, magazine: &Magazine, class: &Class) -> Leaving {
        let mut leaving = Leaving::default();
        magazine.put_back(class.room.div_ceil(2) as u32, class, &mut class.lock(), &mut leaving);
        cache.tell(&self.counted);
        leaving
    }

    #[inline(never)]
    fn put_shared(&self, own: Option<&Cache>, class: &Class, entry: Entry, held: &Held) {
        if let Some(cache) = own {
            cache.tell(&self.counted); // what was live before this block came back belongs to the peak
        }
        let mut leaving = Leaving::default();
        let mut shared = class.lock();
        shared.put(class, entry, &mut leaving);
        shared.taken += 1;
        drop(shared);
        self.counted.add(-(class.size as i64), 0);
        leaving.end(class, held);
    }

    /// Puts back what all threads keep of a size and calls `then` while nobody can keep any: what it does not find free is live.
    pub fn collect<R>(&self, class: &Class, held: &Held, then: impl FnOnce(&mut Shared) -> R) -> R {
        let kept = class.room > 0 && self.bytes > 0;
        // A look at one magazine after the other would not do: free blocks may go from those ahead to those behind.
        let _entering = kept.then(|| self.entering.lock());
        let each = |f: &mut dyn FnMut(&Magazine)| {
            if kept {
                self.all().for_each(|cache| f(cache.magazine(class)));
            }
        };
        each(&mut |magazine| wait_for(&magazine.claim));
        let mut leaving = Leaving::default();
        let mut shared = class.lock();
        each(&mut |magazine| magazine.put_back(magazine.count(), class, &mut shared, &mut leaving));
        let result = then(&mut shared);
        drop(shared);
        each(&mut |magazine| magazine.claim.give());
        leaving.end(class, held);
        result
    }

    /// A block of the size, wherever it is kept. None: all are live.
    pub fn take_any(&self, class: &Class, held: &Held) -> Option<Entry> {
        let own = self.own();
        self.collect(class, held, |shared| self.give(own, class, shared))
    }

    /// Blocks given and taken through magazines of a size.
    pub fn passed(&self, class: &Class) -> (u64, u64) {
        let magazines = self.all().filter(|_| class.room > 0).map(|cache| cache.magazine(class));
        magazines.fold((0, 0), |sum, one| (sum.0 + one.given.load(Relaxed), sum.1 + one.taken.load(Relaxed)))
    }

    /// What the threads told and have yet to tell.
    pub fn sums(&self) -> Sums {
        let (mut live, mut peak) = (self.counted.live.load(Relaxed), self.counted.peak.load(Relaxed));
        let told = live;
        let mut tops = 0;
        for cache in self.all() {
            live += cache.out.load(Relaxed);
            tops += cache.top.load(Relaxed);
        }
        peak = peak.max(live).max(if tops > 0 { told + tops } else { 0 });
        Sums { live: live.max(0) as usize, peak: peak.max(0) as usize }
    }

    /// Gives back the caches themselves.
    ///
    /// # Safety
    /// Nobody uses the pool any more.
    pub unsafe fn end(&self) {
        for group in &self.groups {
            let group = group.swap(null_mut(), Ordering::AcqRel);
            // SAFETY: null or a group.
            for cache in unsafe { group.as_ref() }.into_iter().flatten().map(|cache| cache.load(Ordering::Acquire)) {
                // SAFETY: null, which is no block, or a block from `make` that nobody uses any more.
                unsafe { heap::free(cache.cast()) };
            }
            // SAFETY: as above.
            unsafe { heap::free(group.cast()) };
        }
    }

    /// Before fork(2): no magazine of these sizes is half changed until [`after_fork`](Self::after_fork).
    pub fn before_fork(&self, classes: &[Class]) {
        self.entering.lock_for_fork();
        self.each_claim(classes, wait_for);
    }

    /// # Safety
    /// This thread called [`before_fork`](Self::before_fork).
    pub unsafe fn after_fork(&self, classes: &[Class]) {
        self.each_claim(classes, Claim::give);
        // SAFETY: the caller's promise.
        unsafe { self.entering.unlock_after_fork() };
    }

    fn each_claim(&self, classes: &[Class], f: impl Fn(&Claim)) {
        for cache in self.all() {
            classes.iter().filter(|class| class.room > 0).for_each(|class| f(&cache.magazine(class).claim));
        }
    }
}

/// Takes a claim that another thread has for a moment: for a few loads and stores, or while it waits for the lock of a block size, whose
/// holder waits for no claim.
fn wait_for(claim: &Claim) {
    let mut spins = 0;
    while claim.is_taken() || !claim.try_take() {
        spins += 1;
        if spins % SPINS == 0 {
            worker::pause(1);
        }
        core::hint::spin_loop();
    }
}
