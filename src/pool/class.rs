//! The blocks of one size: its slabs, which of their blocks can be given, when slabs are made and when they go. All of it behind one
//! lock, which magazines (`cache.rs`) take for many blocks at a time. No memory is asked for and none given back under it. Called by
//! the pools' face and by `cache.rs`.

use super::sizes::Shape;
use super::slab::{self, Entry, Slab, Stand};
use crate::ds::Zeroed;
use crate::error::Error;
use crate::os::worker;
use crate::sync::{Guard, Mutex};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Empty slabs that are kept beside those that hold initial_capacity: this share of the slabs in use, one at least.
const KEEP_SHARE: u32 = 4;
/// Microseconds between two looks at a slab that another thread is making.
const PAUSE: i64 = 20;

/// What is known of one block size. All zero: not yet.
pub struct Class {
    /// Bytes of a block.
    pub size: usize,
    /// How its slabs are laid out.
    pub shape: Shape,
    /// Which size of its pool.
    pub index: usize,
    /// Blocks that contraction leaves.
    pub initial: usize,
    /// Blocks at most.
    pub max: usize,
    /// Where the threads' caches have the magazine of this size; 0 = nowhere.
    pub magazine: usize,
    /// Blocks of a magazine.
    pub room: usize,
    shared: Mutex<Shared>,
}

/// What the lock protects.
pub struct Shared {
    /// First slab of each list, by [`Stand`].
    lists: [u32; 3],
    /// Slabs.
    slabs: u32,
    /// Slabs all of whose blocks can be given.
    empties: u32,
    /// Blocks that can be given.
    pub free: usize,
    /// Blocks that there are.
    pub capacity: usize,
    /// Blocks of slabs that are being made.
    pending: usize,
    /// Blocks given and taken without a magazine.
    pub given: u64,
    /// See `given`.
    pub taken: u64,
    /// Times that a magazine was empty.
    pub refills: u64,
}

// SAFETY: zero is valid: numbers, and a free lock.
unsafe impl Zeroed for Class {}

/// What a pool holds of the heap, all its block sizes together.
pub struct Held {
    /// Bytes of slabs now, and the most there were.
    now: AtomicUsize,
    most: AtomicUsize,
}

/// Bytes of slabs of all pools.
static ALL: AtomicUsize = AtomicUsize::new(0);

/// Bytes that all pools hold of the heap.
pub fn held() -> usize {
    ALL.load(Relaxed)
}

impl Held {
    /// Nothing.
    pub const fn new() -> Self {
        Self { now: AtomicUsize::new(0), most: AtomicUsize::new(0) }
    }

    /// Bytes now, and the most there were.
    pub fn get(&self) -> (usize, usize) {
        (self.now.load(Relaxed), self.most.load(Relaxed))
    }

    fn add(&self, bytes: usize) {
        ALL.fetch_add(bytes, Relaxed);
        let now = self.now.fetch_add(bytes, Relaxed) + bytes;
        self.most.fetch_max(now, Relaxed);
    }

    fn less(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Relaxed);
        ALL.fetch_sub(bytes, Relaxed);
    }
}

/// Slabs taken out of their lists, linked by `next`, to be given back once no lock is held.
#[must_use]
#[derive(Default)]
pub struct Leaving(u32);

impl Leaving {
    fn add(&mut self, number: u32, slab: &Slab) {
        slab.next.set(core::mem::replace(&mut self.0, number));
    }

    /// Gives them back.
    pub fn end(self, class: &Class, held: &Held) {
        let mut number = self.0;
        while let Some(slab) = slab::record(number) {
            let next = slab.next.get();
            held.less(class.shape.bytes);
            // SAFETY: it was empty when it left the lists, under the lock, which is not held any more.
            unsafe { slab::end(number) };
            number = next;
        }
    }
}

impl Shared {
    fn list(&mut self, stand: Stand) -> &mut u32 {
        let [full, partial, empty] = &mut self.lists;
        match stand {
            Stand::Full => full,
            Stand::Partial => partial,
            Stand::Empty => empty,
        }
    }

    fn link(&mut self, number: u32, slab: &Slab, stand: Stand) {
        let first = self.list(stand);
        let next = core::mem::replace(first, number);
        slab.stand.set(stand);
        slab.prev.set(0);
        slab.next.set(next);
        if let Some(next) = slab::record(next) {
            next.prev.set(number);
        }
        self.empties += u32::from(stand == Stand::Empty);
    }

    fn unlink(&mut self, slab: &Slab) {
        let (next, prev, stand) = (slab.next.get(), slab.prev.get(), slab.stand.get());
        match slab::record(prev) {
            Some(prev) => prev.next.set(next),
            None => *self.list(stand) = next,
        }
        if let Some(next) = slab::record(next) {
            next.prev.set(prev);
        }
        self.empties -= u32::from(stand == Stand::Empty);
    }

    fn settle(&mut self, number: u32, slab: &Slab) {
        let stand = match slab.free.get() as usize {
            0 => Stand::Full,
            free if free == slab.blocks() => Stand::Empty,
            _ => Stand::Partial,
        };
        if stand != slab.stand.get() {
            self.unlink(slab);
            self.link(number, slab, stand);
        }
    }

    /// Takes up to `want` blocks that can be given, from slabs in use rather than from empty ones.
    pub fn take(&mut self, want: usize, to: &mut dyn FnMut(Entry)) -> usize {
        let mut got = 0;
        while got < want {
            let number = if *self.list(Stand::Partial) != 0 { *self.list(Stand::Partial) } else { *self.list(Stand::Empty) };
            let Some(slab) = slab::record(number) else { break };
            while got < want
                && let Some(entry) = slab.take(number)
            {
                to(entry);
                got += 1;
            }
            self.settle(number, slab);
        }
        self.free -= got;
        got
    }

    /// A block that came back can be given again. A slab may become empty, and another one leave.
    pub fn put(&mut self, class: &Class, entry: Entry, leaving: &mut Leaving) {
        let Some(slab) = slab::record(entry.number()) else { return };
        slab.put(entry);
        self.free += 1;
        self.settle(entry.number(), slab);
        if slab.stand.get() == Stand::Empty {
            self.contract(class.initial, leaving);
        }
    }

    /// Takes out empty slabs beyond a share of those in use, as long as `least` blocks are left.
    fn contract(&mut self, least: usize, leaving: &mut Leaving) {
        while self.empties > ((self.slabs - self.empties) / KEEP_SHARE).max(1) && self.drop_one(least, leaving) {}
    }

    /// Takes out an empty slab if there is one and `least` blocks are left.
    fn drop_one(&mut self, least: usize, leaving: &mut Leaving) -> bool {
        let number = *self.list(Stand::Empty);
        let Some(slab) = slab::record(number).filter(|slab| self.capacity >= least + slab.blocks()) else { return false };
        self.unlink(slab);
        self.slabs -= 1;
        self.capacity -= slab.blocks();
        self.free -= slab.blocks();
        leaving.add(number, slab);
        true
    }

    /// Every slab, by number; `f` may not change the lists.
    pub fn for_each(&self, f: &mut dyn FnMut(u32, &Slab)) {
        for first in self.lists {
            let mut number = first;
            while let Some(slab) = slab::record(number) {
                let next = slab.next.get();
                f(number, slab);
                number = next;
            }
        }
    }
}

impl Class {
    /// The lock.
    pub fn lock(&self) -> Guard<'_, Shared> {
        self.shared.lock()
    }

    /// Are there fewer blocks than max_capacity allows?
    pub fn has_room(&self) -> bool {
        let shared = self.lock();
        shared.capacity + shared.pending < self.max
    }

    /// One more slab; false: there are max_capacity blocks. Waits for one that another thread makes if it would be the last.
    pub fn expand(&self, pool: usize, held: &Held, warm: bool) -> Result<bool, Error> {
        let blocks = loop {
            let mut shared = self.lock();
            let room = self.max - shared.capacity - shared.pending;
            if room > 0 {
                let blocks = room.min(self.shape.blocks);
                shared.pending += blocks;
                break blocks;
            }
            if shared.pending == 0 {
                return Ok(false);
            }
            drop(shared);
            worker::pause(PAUSE);
            if self.lock().free > 0 {
                return Ok(true);
            }
        };
        let made = slab::make(pool, self.index, self.size, &self.shape, blocks);
        if let (Ok(number), true) = (&made, warm) {
            slab::record(*number).map(Slab::warm_up);
        }
        let mut shared = self.lock();
        shared.pending -= blocks;
        let number = made?;
        if let Some(slab) = slab::record(number) {
            shared.link(number, slab, Stand::Empty);
        }
        shared.slabs += 1;
        shared.capacity += blocks;
        shared.free += blocks;
        held.add(self.shape.bytes);
        Ok(true)
    }

    /// Gives back every empty slab that `least` blocks can do without.
    pub fn trim(&self, least: usize, held: &Held) {
        let mut leaving = Leaving::default();
        let mut shared = self.lock();
        while shared.drop_one(least, &mut leaving) {}
        drop(shared);
        leaving.end(self, held);
    }

    /// Makes the pages of blocks that can be given resident, `blocks` of them at least; false if memory is not to be had.
    pub fn warm_up(&self, blocks: usize) -> bool {
        let shared = self.lock();
        let (mut have, mut done) = (0, true);
        shared.for_each(&mut |_, slab| {
            if have < blocks && slab.free.get() > 0 && done {
                done = slab.warm_up();
                have += slab.free.get() as usize;
            }
        });
        done
    }

    /// Gives back all slabs; `live` is called for each block that the program still has.
    pub fn end(&self, held: &Held, live: &mut dyn FnMut(usize, usize)) {
        let mut leaving = Leaving::default();
        let mut shared = self.lock();
        shared.for_each(&mut |number, slab| {
            for index in (0..slab.blocks()).filter(|index| slab.is_live(*index)) {
                live(slab.address(index), self.size);
            }
            leaving.add(number, slab);
        });
        shared.lists = [0; 3];
        drop(shared);
        leaving.end(self, held);
    }

    /// Before fork(2): nobody is inside until [`after_fork`](Self::after_fork).
    pub fn before_fork(&self) {
        self.shared.lock_for_fork();
    }

    /// # Safety
    /// This thread called [`before_fork`](Self::before_fork); in a child of fork it is the only one.
    pub unsafe fn after_fork(&self, in_child: bool) {
        // SAFETY: the caller's promise.
        unsafe { self.shared.unlock_after_fork() };
        if in_child {
            self.lock().pending = 0; // who was making a slab is not here
        }
    }
}
