//! What `free` does with plain blocks of a slice whose check says 0, and with runs: beside the checks, in an array of its own. Written by
//! the heap's owner, but for the count of lists, and closed by anybody. Called by `fast.rs`, `medium.rs`, `refill.rs`, `runs.rs` and
//! `span.rs`.

use super::classes::Class;
use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU16, AtomicU32};

/// All zero: the long way.
#[repr(C)]
pub struct Way {
    /// The class's magic, or [`RUN`]; 0 sends every block the long way.
    pub magic: AtomicU32,
    hold: AtomicU16,
    medium: Cell<u8>,
}

/// The magic of a run: its block starts at the slice's first byte alone.
const RUN: u32 = 1;

/// What becomes of a block.
#[derive(Clone, Copy, PartialEq)]
pub struct Hold(u16);

impl Hold {
    /// It goes into its class's magazine: it is one of more than 1 KiB.
    pub const NONE: Self = Self(0);
    /// It is put aside. Other values: so many lists of blocks that other threads freed are on their way to the slice, and this one,
    /// which is one of more than 1 KiB, may be in such a list.
    pub const ASIDE: Self = Self(u16::MAX);
    /// It is a run.
    pub const RUN: Self = Self(u16::MAX - 1);
    /// Too many lists to count: as many stay.
    const MOST: u16 = u16::MAX - 2;
}

impl Way {
    /// What becomes of a block of the slice.
    #[inline(always)]
    pub fn hold(&self) -> Hold {
        Hold(self.hold.load(Relaxed))
    }

    /// Number of the class among those above 1 KiB, of which it is one. For the heap's owner.
    #[inline(always)]
    pub fn medium(&self) -> u32 {
        u32::from(self.medium.get())
    }

    /// Opens the slice: blocks of this class are put aside, or those of more than 1 KiB into a magazine.
    pub fn open(&self, class: Class) {
        let (hold, medium) = if class.is_medium() { (Hold::NONE, class.medium() as u8) } else { (Hold::ASIDE, 0) };
        self.hold.store(hold.0, Relaxed);
        self.medium.set(medium);
        self.magic.store(class.shape().magic, Relaxed);
    }

    /// Opens the first slice of a run.
    pub fn open_run(&self) {
        self.hold.store(Hold::RUN.0, Relaxed);
        self.magic.store(RUN, Relaxed);
    }

    /// From now on every block goes the long way.
    pub fn close(&self) {
        self.magic.store(0, Relaxed);
    }

    /// Another thread begins a list of blocks of this slice that it frees: until the owner has it, its `free` has to look whether a block
    /// is on such a list.
    pub fn share(&self) {
        self.count_lists(|lists| lists + 1);
    }

    /// The owner has such a list.
    pub fn unshare(&self) {
        self.count_lists(|lists| lists.saturating_sub(1));
    }

    fn count_lists(&self, change: impl Fn(u16) -> u16) {
        // While it is closed every free looks, and it opens again for other blocks.
        if self.magic.load(Relaxed) != 0 {
            let _ = self.hold.fetch_update(Relaxed, Relaxed, |lists| (lists < Hold::MOST).then(|| change(lists)));
        }
    }
}
