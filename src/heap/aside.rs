//! Freed blocks that were not looked at yet. Whether a block is free already stands in the block itself, and whoever reads there waits
//! for memory where the block was not used for long; writes nobody waits for. So where that is likely, `free` asks for the block's
//! line and puts the block aside; a few frees later the line is there, and all of them are looked at and go to their slices' lists.
//! Whether it is likely is measured: now and then by the time that a block's first word takes to come.
//! A block that is freed twice is found then, or when the program ends. It is not given again before: a slice whose free blocks can be
//! given has none here (`refill` sees to that). Called by the rest of the heap, by its owner alone; gives nothing out and knows no classes.

use super::block::Block;
use super::classes::SLICE;
use super::corrupt;
use super::fast;
use super::local::Heap;
use super::thread;
use core::cell::Cell;
use core::ptr::null_mut;

/// Blocks that are put aside at most: more than there is memory on its way at a time.
const MOST: usize = 32;

/// What is reported.
const TWICE: &str = "a block was freed that was freed already,";

/// One slice in so many is put aside from where blocks are not cold, to see whether that is still so.
const PROBE: u32 = 16;
/// Of so many batches one has a block that is looked at, where blocks are cold.
const LOOK_EVERY: u32 = 16;
/// How much a block that was cold counts, and one that was not counts against it.
const COLD_COUNTS: i32 = 8;
/// What is counted at most.
const COUNTED: i32 = 64;
/// From so much on, blocks are expected to be cold.
const EXPECTED: i32 = 16;
/// Ticks of the processor's clock by which a cold block's load takes longer than the same load again: more than from the second cache.
const TICKS: u64 = 40;

/// The blocks, oldest first. All zero: none.
pub struct Aside {
    /// Places in use, from the first on; null in one of them was looked at before the rest. All behind them are null.
    count: Cell<usize>,
    /// How cold the blocks were that were looked at.
    cold: Cell<i32>,
    /// Slices that were exhausted since one was a probe.
    since: Cell<u32>,
    /// How often all of them were settled.
    batches: Cell<u32>,
    /// The next block is looked at.
    wanted: Cell<bool>,
    /// One more than there are: a report while all are looked at may end in a handler of the program's, which may free.
    blocks: [Cell<*mut Block>; MOST + 1],
}

impl Aside {
    /// None.
    pub const fn new() -> Self {
        Self {
            count: Cell::new(0),
            cold: Cell::new(0),
            since: Cell::new(0),
            batches: Cell::new(0),
            wanted: Cell::new(false),
            blocks: [const { Cell::new(null_mut()) }; MOST + 1],
        }
    }

    /// Shall a slice's blocks be put aside: are blocks cold now when they are freed, or is it time to see whether they are?
    pub fn expects_cold(&self) -> bool {
        let since = self.since.get() + 1;
        let probe = since >= PROBE;
        self.since.set(if probe { 0 } else { since });
        probe || self.is_cold()
    }

    /// Are blocks cold now when they are freed, as far as is known?
    pub fn is_cold(&self) -> bool {
        self.cold.get() >= EXPECTED
    }

    /// The heap's next thread may do something else.
    pub fn forget(&self) {
        self.cold.set(0);
    }

    /// All were settled: decides whether the next block is looked at. That takes a hundred cycles, in which nothing else is done.
    fn count_batch(&self) {
        let batches = self.batches.get().wrapping_add(1);
        self.batches.set(batches);
        self.wanted.set(!self.is_cold() || batches.is_multiple_of(LOOK_EVERY));
    }

    /// Counts whether this block's memory is far away.
    fn look(&self, block: *mut Block) {
        let far = load_ticks(block) > load_ticks(block) + TICKS;
        let change = if far { COLD_COUNTS } else { -1 };
        self.cold.set((self.cold.get() + change).clamp(0, COUNTED));
    }

    /// Is the block among them?
    pub fn has(&self, block: usize) -> bool {
        self.addresses().any(|other| other == block)
    }

    /// One of them that lies in the slice that starts there.
    fn of_slice(&self, start: usize) -> Option<usize> {
        self.addresses().find(|block| block ^ start < SLICE)
    }

    fn addresses(&self) -> impl Iterator<Item = usize> {
        self.blocks.iter().take(self.count.get()).map(|block| block.get() as usize)
    }
}

/// Asks for the line of a block that will be written to soon.
#[inline(always)]
pub fn ask_for(block: *mut Block) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, at whatever address.
    unsafe {
        core::arch::asm!("prefetchw [{block}]", block = in(reg) block, options(nostack, preserves_flags, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{block}]", block = in(reg) block, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = block;
}

/// How long the first word of a block takes to come.
#[inline(always)]
fn load_ticks(block: *mut Block) -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads a word of a block that the caller has.
    unsafe {
        use core::arch::x86_64::{_mm_lfence, _rdtsc};
        _mm_lfence();
        let start = _rdtsc();
        _mm_lfence();
        (&raw const (*block).mark).read_volatile();
        _mm_lfence();
        _rdtsc().wrapping_sub(start)
    }
    // Other clocks tick too slowly: a block counts as near.
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = block;
        0
    }
}

/// Puts a block aside that its user gave up.
///
/// # Safety
/// The caller owns the heap; a plain block of the heap starts there.
#[inline(always)]
pub unsafe fn put(heap: *const Heap, block: *mut Block) {
    // SAFETY: the caller's promise.
    let heap = unsafe { &*heap };
    let count = heap.aside.count.get();
    if count == 0 && heap.aside.wanted.get() {
        return look_and_put(block);
    }
    ask_for(block);
    // SAFETY: where it reaches MOST all are looked at, and there are none again; meanwhile it is MOST.
    unsafe { heap.aside.blocks.get_unchecked(count) }.set(block);
    heap.aside.count.set(count + 1);
    if count + 1 >= MOST {
        settle_some(heap);
    }
}

/// [`put`] of a block that is looked at. Finds the heap again, so that `free` need not keep it.
#[cold]
#[inline(never)]
fn look_and_put(block: *mut Block) {
    let heap = thread::heap();
    // SAFETY: the thread's own heap; there is room for a block, as none is put aside.
    unsafe {
        (*heap).aside.look(block);
        (*heap).aside.wanted.set(false);
        put(heap, block);
    }
}

/// [`settle_some`], if there are any: most programs never get there, nor to its page.
#[inline]
pub fn settle(heap: &Heap) {
    if heap.aside.count.get() > 0 {
        settle_some(heap);
    }
}

/// Looks at those of this slice, and puts them into its list.
#[inline]
pub fn settle_slice(heap: &Heap, slice: u32) {
    let start = heap.start_of(slice);
    let inside = |block: usize| block ^ start < SLICE;
    // There mostly is none: asked of all, so that the processor need not guess where to stop.
    if heap.aside.blocks.iter().fold(false, |some, block| some | inside(block.get() as usize)) {
        settle_each(heap, inside);
    }
}

/// The slice stops to be one of blocks and nobody has any of it: what was put aside was free already.
pub fn reject_slice(heap: &Heap, slice: u32) {
    if let Some(block) = heap.aside.of_slice(heap.start_of(slice)) {
        corrupt::report(TWICE, block);
    }
}

/// Looks at all that were put aside, and puts them into their slices' lists.
#[inline(never)]
fn settle_some(heap: &Heap) {
    heap.aside.count_batch();
    settle_each(heap, |block| block != 0);
    heap.aside.count.set(0);
}

/// Looks at those that `fits`, and puts them into their slices' lists. They leave gaps.
#[inline]
fn settle_each(heap: &Heap, fits: impl Fn(usize) -> bool) {
    // Those that are left stay in sight: what is done with a slice that becomes empty may lead back here.
    for place in heap.aside.blocks.iter().take(heap.aside.count.get()).filter(|place| fits(place.get() as usize)) {
        let block = place.replace(null_mut());
        // SAFETY: a block of the heap started there when it was put aside; its span is the same, and it was not given since; the
        // caller owns the heap.
        if !unsafe { fast::give_back_unless_free(heap, block) } {
            corrupt::report(TWICE, block as usize);
        }
    }
}

/// Reports a block among them that was freed twice. Changes nothing: the program ends, maybe in a signal handler.
pub fn verify(heap: &Heap) {
    for (i, block) in heap.aside.addresses().enumerate().filter(|(_, block)| *block != 0) {
        // SAFETY: units stay mapped for ever.
        if unsafe { (*(block as *const Block)).mark } == heap.mark() || heap.aside.addresses().take(i).any(|other| other == block)
        {
            corrupt::report(TWICE, block);
        }
    }
}
