//! What a thread frees of other heaps' blocks: gathered by slice in a small ring, so that a heap gets lists instead of blocks, and
//! handed over a few lists at a time. Called by `thread.rs`; touched by its thread alone.

use super::block::{Block, Messages};
use super::classes::SLICE;
use super::local::Heap;
use super::remote::Links;
use core::ptr::{null, null_mut};

/// Slices gathered for at a time.
const RING: usize = 16;
/// Heaps gathered for at a time.
const TARGETS: usize = 4;
/// Blocks in one message at most: a producer waits for them.
const MOST_BLOCKS: u32 = 128;
/// Messages that are handed over at once.
const MOST_MESSAGES: u32 = 16;

/// Freed blocks of one slice.
struct Gathered {
    /// The slice's number in the address space; 0 = nothing.
    slice: usize,
    heap: *const Heap,
    first: *mut Block,
    last: *mut Block,
    count: u32,
}

/// Messages for one heap.
struct Parcel {
    heap: *const Heap,
    first: usize,
    last: usize,
    messages: u32,
}

/// All zero: nothing on its way.
pub struct Outbox {
    ring: [Gathered; RING],
    parcels: [Parcel; TARGETS],
}

impl Outbox {
    /// Nothing on its way.
    pub const fn new() -> Self {
        Self {
            ring: [const { Gathered { slice: 0, heap: null(), first: null_mut(), last: null_mut(), count: 0 } }; RING],
            parcels: [const { Parcel { heap: null(), first: 0, last: 0, messages: 0 } }; TARGETS],
        }
    }

    /// Adds a block of `heap`'s that its user gave up; `post` is called with an idle heap that got messages.
    ///
    /// # Safety
    /// Nobody uses the block, and the caller has made sure that it is freed once.
    #[inline]
    pub unsafe fn add(&mut self, heap: &'static Heap, block: *mut Block, post: &mut dyn FnMut(&'static Heap)) {
        let slice = block as usize / SLICE;
        let Some(gathered) = self.ring.get_mut(slice % RING) else { return };
        // SAFETY: the caller's promise; `last` is a block of the same kind that we hold.
        unsafe { (*block).mark = heap.mark() };
        if gathered.slice == slice {
            // SAFETY: as above.
            unsafe { (*block).next = gathered.first };
            gathered.first = block;
            gathered.count += 1;
            if gathered.count < MOST_BLOCKS {
                return;
            }
            let full = core::mem::replace(gathered, Gathered { slice: 0, heap, first: null_mut(), last: null_mut(), count: 0 });
            self.send(full, post);
        } else {
            let fresh = Gathered { slice, heap, first: block, last: block, count: 1 };
            let old = core::mem::replace(gathered, fresh);
            self.send(old, post);
        }
    }

    /// Hands over everything.
    pub fn flush(&mut self, post: &mut dyn FnMut(&'static Heap)) {
        for index in 0..RING {
            if let Some(gathered) = self.ring.get_mut(index) {
                let nothing = Gathered { slice: 0, heap: null(), first: null_mut(), last: null_mut(), count: 0 };
                let old = core::mem::replace(gathered, nothing);
                self.send(old, post);
            }
        }
        self.parcels.iter_mut().for_each(|parcel| parcel.post(post));
    }

    fn send(&mut self, gathered: Gathered, post: &mut dyn FnMut(&'static Heap)) {
        // Windows are 16 GiB or 512 MiB apart.
        let target = (gathered.heap as usize >> 29 ^ gathered.heap as usize >> 34) % TARGETS;
        let Some(parcel) = self.parcels.get_mut(target).filter(|_| gathered.slice != 0) else { return };
        if parcel.heap != gathered.heap {
            parcel.post(post);
            parcel.heap = gathered.heap;
        }
        // SAFETY: we hold the blocks, which are marked.
        unsafe { Messages::seal(gathered.first, gathered.last, gathered.count) };
        let message = gathered.last as usize;
        Messages.set(message, parcel.first);
        if parcel.first == 0 {
            parcel.last = message;
        }
        parcel.first = message;
        parcel.messages += 1;
        if parcel.messages >= MOST_MESSAGES || gathered.count >= MOST_BLOCKS {
            parcel.post(post);
        }
    }
}

impl Parcel {
    fn post(&mut self, post: &mut dyn FnMut(&'static Heap)) {
        // SAFETY: null or a heap, which is never unmapped.
        let Some(heap) = (unsafe { self.heap.as_ref() }).filter(|_| self.messages > 0) else { return };
        if heap.inbox.0.push(self.first, self.last, &Messages) {
            post(heap);
        }
        (self.first, self.last, self.messages) = (0, 0, 0);
    }
}
