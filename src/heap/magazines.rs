//! Free blocks of more than 1 KiB, by class, that are given next: the last that was freed first, as its memory is near. Few such
//! blocks share a slice, so without these nearly every one would come from a slice that was not used for long, and slices would be
//! exhausted and come back all the time. To its slice a block in a magazine is one that is out. Neither going in nor coming out reads
//! or writes the block. (The term is Bonwick and Adams', "Magazines and Vmem".)
//! They are stacks before the heap's record, whose pages are touched where a class is used. Called by `medium.rs`, by the heap's owner
//! alone.

use super::block::Block;
use super::classes::{COUNT, Class, MAGAZINE, SMALL};
use super::local::{Heap, RECORD};
use core::cell::Cell;
use core::ptr::null_mut;

/// Classes of more than 1 KiB.
const CLASSES: usize = COUNT - SMALL / 16;
/// Bytes of a stack, and what its address is a multiple of. Its first word is null for ever, and so the last one that is taken.
const STACK: usize = 256;
const _: () = assert!((MAGAZINE as usize + 1) * size_of::<*mut Block>() <= STACK);
const _: () = assert!(CLASSES * STACK <= RECORD && RECORD.is_multiple_of(STACK));

/// Where in a stack a block stands.
type At = *mut *mut Block;

/// All of a heap's, by class.
pub struct Magazines {
    /// Where the last one stands.
    tops: Cell<[At; CLASSES]>,
    /// Where the last one may stand.
    ends: Cell<[At; CLASSES]>,
}

/// That of a class.
#[derive(Clone, Copy)]
pub struct Magazine<'a> {
    top: &'a Cell<At>,
    end: &'a Cell<At>,
}

impl Magazines {
    /// Empty for ever; `zero` is where a word is 0.
    pub const fn none(zero: At) -> Self {
        Self { tops: Cell::new([zero; CLASSES]), ends: Cell::new([zero; CLASSES]) }
    }

    /// Gives each its stack: those of the smallest classes next to the record, whose page is there.
    pub fn lay(&self, heap: &Heap) {
        let starts = core::array::from_fn(|before| (heap.mark() - (before + 1) * STACK) as At);
        self.tops.set(starts);
        self.ends.set(starts);
    }

    /// That of a class of more than 1 KiB, which is given by its number among those.
    ///
    /// # Safety
    /// There is such a class.
    #[inline(always)]
    pub unsafe fn of(&self, class: u32) -> Magazine<'_> {
        // SAFETY: the caller's promise.
        unsafe {
            let (tops, ends) = (self.tops.as_array_of_cells(), self.ends.as_array_of_cells());
            Magazine { top: tops.get_unchecked(class as usize), end: ends.get_unchecked(class as usize) }
        }
    }

    /// All of them, with their classes.
    pub fn all(&self) -> impl Iterator<Item = (Class, Magazine<'_>)> {
        let classes = (SMALL / 16..COUNT).filter_map(|number| Class::from_number(number as u8));
        let (tops, ends) = (self.tops.as_array_of_cells(), self.ends.as_array_of_cells());
        classes.zip(tops.iter().zip(ends)).map(|(class, (top, end))| (class, Magazine { top, end }))
    }
}

impl Magazine<'_> {
    /// Takes the last one. None: it is empty, and nothing is written.
    ///
    /// # Safety
    /// It has a stack or is a stand-in's.
    #[inline(always)]
    pub unsafe fn pop(self) -> Option<*mut Block> {
        let top = self.top.get();
        // SAFETY: the top is in its stack or where a word is 0.
        let block = unsafe { *top };
        if block.is_null() {
            return None;
        }
        self.top.set(top.wrapping_sub(1));
        Some(block)
    }

    /// Puts one in. False: it is full, and nothing happens.
    ///
    /// # Safety
    /// As for [`pop`](Self::pop).
    #[inline(always)]
    pub unsafe fn push(self, block: *mut Block) -> bool {
        let top = self.top.get();
        let fits = top < self.end.get();
        if fits {
            let next = top.wrapping_add(1);
            // SAFETY: the end is in the stack.
            unsafe { *next = block };
            self.top.set(next);
        }
        fits
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        ((self.top.get() as usize - self.start() as usize) / size_of::<*mut Block>()) as u32
    }

    /// So many may be in it from now on, at most [`MAGAZINE`]; what is in it stays.
    pub fn set_limit(self, blocks: u32) {
        self.end.set(self.start().wrapping_add(blocks as usize));
    }

    /// Takes all but the `keep` that came last, and passes them to `f`.
    ///
    /// # Safety
    /// It has a stack.
    pub unsafe fn take_oldest(self, keep: u32, mut f: impl FnMut(*mut Block)) {
        let (count, start) = (self.count(), self.start());
        let taken = count.saturating_sub(keep) as usize;
        let mut oldest: [*mut Block; MAGAZINE as usize] = [null_mut(); MAGAZINE as usize];
        let (oldest, _) = oldest.split_at_mut(taken.min(MAGAZINE as usize));
        // SAFETY: the stack's blocks follow its first word; no more than MAGAZINE were let in.
        unsafe {
            let first = start.add(1);
            oldest.as_mut_ptr().copy_from_nonoverlapping(first, oldest.len());
            first.copy_from(first.add(oldest.len()), count as usize - oldest.len());
        }
        // Before `f`, which may lead back here.
        self.top.set(start.wrapping_add(count as usize - oldest.len()));
        oldest.iter().for_each(|block| f(*block));
    }

    fn start(self) -> At {
        (self.top.get() as usize & !(STACK - 1)) as At
    }
}
