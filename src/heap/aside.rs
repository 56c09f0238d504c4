//! Freed blocks that were not looked at yet. Whether a block is free already stands in the block itself, and whoever reads there waits
//! for memory where the block was not used for long; writes nobody waits for. So where that is likely, `free` asks for the block's
//! line and puts the block aside; a few frees later the line is there, and all of them are looked at and go to their slices' lists.
//! A block that is freed twice is found then, or when the program ends. Called by the rest of the
//! heap, by its owner alone; gives nothing out and knows no classes.

use super::block::Block;
use super::corrupt;
use super::fast;
use super::local::Heap;
use core::cell::Cell;
use core::ptr::null_mut;

/// Blocks that are put aside at most: more than there is memory on its way at a time.
const MOST: usize = 32;

/// What is reported.
const TWICE: &str = "a block was freed that was freed already,";

/// The blocks, oldest first. All zero: none.
pub struct Aside {
    count: Cell<usize>,
    blocks: [Cell<*mut Block>; MOST],
}

impl Aside {
    /// None.
    pub const fn new() -> Self {
        Self { count: Cell::new(0), blocks: [const { Cell::new(null_mut()) }; MOST] }
    }

    /// Is the block among them?
    pub fn has(&self, block: usize) -> bool {
        self.blocks.iter().take(self.count.get()).any(|b| b.get() as usize == block)
    }
}

/// Asks for the line of a block that will be written to soon.
#[inline(always)]
fn ask_for(block: *mut Block) {
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

/// Puts a block aside that its user gave up.
///
/// # Safety
/// The caller owns the heap; a plain block of the heap starts there.
#[inline(always)]
pub unsafe fn put(heap: *const Heap, block: *mut Block) {
    ask_for(block);
    // SAFETY: the caller's promise.
    let heap = unsafe { &*heap };
    let count = heap.aside.count.get();
    // SAFETY: where it reaches MOST all are looked at, and there are none again.
    unsafe { heap.aside.blocks.get_unchecked(count) }.set(block);
    heap.aside.count.set(count + 1);
    if count + 1 == MOST {
        settle(heap);
    }
}

/// Looks at all that were put aside, and puts them into their slices' lists.
#[inline(never)]
pub fn settle(heap: &Heap) {
    // What is done here may end here again, and has nothing to do then.
    let count = heap.aside.count.replace(0);
    for place in heap.aside.blocks.iter().take(count) {
        let block = place.get();
        // SAFETY: a block of the heap started there when it was put aside; the caller owns the heap.
        if !unsafe { fast::give_back_unless_free(heap, block) } {
            corrupt::report(TWICE, block as usize);
        }
    }
}

/// Reports a block among them that was freed twice. Changes nothing: the program ends, maybe in a signal handler.
pub fn verify(heap: &Heap) {
    let blocks = || heap.aside.blocks.iter().take(heap.aside.count.get()).map(Cell::get);
    for (i, block) in blocks().enumerate() {
        // SAFETY: units stay mapped for ever.
        if unsafe { (*block).mark } == heap.mark() || blocks().take(i).any(|other| other == block) {
            corrupt::report(TWICE, block as usize);
        }
    }
}
