//! A free block of up to 1 KiB, or one on its way to its heap: its first word holds its heap's mark, its second the next free block.
//! The mark is the heap's own address, which is random and unknown to the program: a block that carries it is free, so that freeing it
//! again is seen at once; and a block that should be free but lost it was written to, which is seen before its link is believed. Called
//! by the rest of the heap.

use super::classes::SLICE;
use super::remote::{END, Links};

/// The first 16 bytes of a free block. A heap's own first word is 0, so a heap ends its lists with itself.
#[repr(C)]
pub struct Block {
    /// The heap's mark while the block is free.
    pub mark: usize,
    /// The next free block of the same list, or the heap; in a message's last block, what `Messages` packs there.
    pub next: *mut Block,
}

/// Messages between heaps: freed blocks of one slice in a list from the first to the last, and known by the last, whose second
/// word has from bit 0 how many blocks there are, then the first one's place in the slice, then the next message's in the heap,
/// places counted in 16 bytes. The marks stay, so that a block that is freed again on its way is seen.
pub struct Messages;

const PLACE: u32 = 4;
const COUNT_BITS: u32 = 13;
const FIRST_BITS: u32 = 12;
const NEXT_SHIFT: u32 = COUNT_BITS + FIRST_BITS;
const _: () = assert!(SLICE >> PLACE == 1 << FIRST_BITS);

impl Messages {
    /// Makes the list from `first` to `last` a message of `count` blocks of one slice.
    ///
    /// # Safety
    /// The blocks are freed and marked, and only the caller uses them.
    pub unsafe fn seal(first: *mut Block, last: *mut Block, count: u32) {
        let place = (first as usize & (SLICE - 1)) >> PLACE;
        // SAFETY: the caller's promise.
        unsafe { (*last).next = (place << COUNT_BITS | count as usize) as *mut Block };
    }

    /// First block and number of blocks.
    ///
    /// # Safety
    /// `last` heads a message that only the caller has.
    pub unsafe fn open(last: *mut Block) -> (*mut Block, u32) {
        // SAFETY: the caller's promise.
        let word = unsafe { (*last).next } as usize;
        let place = word >> COUNT_BITS & ((1 << FIRST_BITS) - 1);
        let slice = last as usize & !(SLICE - 1);
        ((slice + (place << PLACE)) as *mut Block, (word & ((1 << COUNT_BITS) - 1)) as u32)
    }
}

impl Links for Messages {
    fn set(&self, message: usize, next: usize) {
        let block = message as *mut Block;
        // SAFETY: a sealed message that the sender alone has.
        unsafe {
            let place = if next == END { 0 } else { next.wrapping_sub((*block).mark) >> PLACE };
            let rest = (*block).next as usize & ((1 << NEXT_SHIFT) - 1);
            (*block).next = (place << NEXT_SHIFT | rest) as *mut Block;
        }
    }

    fn next(&self, message: usize) -> usize {
        let block = message as *mut Block;
        // SAFETY: a sealed message that the receiver has taken.
        unsafe {
            let place = (*block).next as usize >> NEXT_SHIFT;
            if place == 0 { END } else { (*block).mark.wrapping_add(place << PLACE) }
        }
    }
}
