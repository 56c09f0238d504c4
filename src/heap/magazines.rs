//! Free blocks of more than 1 KiB, by class, that are given next: the last that was freed first, as its memory is near. Few such
//! blocks share a slice, so without these nearly every one would come from a slice that was not used for long, and slices would be
//! exhausted and come back all the time. To its slice a block in a magazine is one that is out. Neither going in nor coming out reads
//! or writes the block. (The term is Bonwick and Adams', "Magazines and Vmem".)
//! Called by `medium.rs`, by the heap's owner alone.

use super::block::Block;
use super::classes::{COUNT, Class, MAGAZINE, SMALL};
use core::cell::Cell;
use core::ptr::null_mut;

/// Classes of more than 1 KiB.
const CLASSES: usize = COUNT - SMALL / 16;

/// The blocks of a class, oldest first.
#[repr(C, align(256))]
pub struct Magazine {
    /// How many there are.
    pub count: Cell<u32>,
    /// How many there may be; 0 before the first.
    pub limit: Cell<u32>,
    blocks: [Cell<*mut Block>; MAGAZINE as usize],
}

/// All zero: empty.
pub struct Magazines {
    classes: [Magazine; CLASSES],
}

impl Magazines {
    /// Empty ones.
    pub const fn new() -> Self {
        Self { classes: [const { Magazine::new() }; CLASSES] }
    }

    /// That of a class of more than 1 KiB, which is given by its number among those.
    ///
    /// # Safety
    /// There is such a class.
    #[inline(always)]
    pub unsafe fn of(&self, class: u32) -> &Magazine {
        // SAFETY: the caller's promise.
        unsafe { self.classes.get_unchecked(class as usize) }
    }

    /// All of them, with their classes.
    pub fn all(&self) -> impl Iterator<Item = (Class, &Magazine)> {
        let classes = (SMALL / 16..COUNT).filter_map(|number| Class::from_number(number as u8));
        classes.zip(&self.classes)
    }
}

impl Magazine {
    const fn new() -> Self {
        Self { count: Cell::new(0), limit: Cell::new(0), blocks: [const { Cell::new(null_mut()) }; MAGAZINE as usize] }
    }

    /// Takes the last one. None: it is empty, and nothing is written.
    #[inline(always)]
    pub fn pop(&self) -> Option<*mut Block> {
        let left = self.count.get().checked_sub(1)?;
        self.count.set(left);
        // SAFETY: there are no more than MAGAZINE.
        Some(unsafe { self.blocks.get_unchecked(left as usize) }.get())
    }

    /// Puts one in. False: it is full, and nothing happens.
    #[inline(always)]
    pub fn push(&self, block: *mut Block) -> bool {
        let count = self.count.get();
        let fits = count < self.limit.get();
        if fits {
            // SAFETY: the limit is MAGAZINE at most.
            unsafe { self.blocks.get_unchecked(count as usize) }.set(block);
            self.count.set(count + 1);
        }
        fits
    }

    /// Takes all but the `keep` that came last, and passes them to `f`.
    pub fn take_oldest(&self, keep: u32, mut f: impl FnMut(*mut Block)) {
        let count = self.count.get();
        let taken = count.saturating_sub(keep);
        let mut places = [null_mut(); MAGAZINE as usize];
        for (place, block) in places.iter_mut().zip(&self.blocks) {
            *place = block.get();
        }
        // Before `f`, which may lead back here.
        for (block, place) in self.blocks.iter().zip(places.iter().skip(taken as usize)) {
            block.set(*place);
        }
        self.count.set(count - taken);
        places.iter().take(taken as usize).for_each(|place| f(*place));
    }
}
