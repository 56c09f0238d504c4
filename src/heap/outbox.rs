//! What a thread frees of other heaps' blocks: gathered by slice in a small ring, so that a heap gets lists instead of blocks, and
//! handed over a few lists at a time. Called by `fast.rs` and `thread.rs`; touched by its thread alone.

use super::block::{Block, Messages};
use super::classes::{Class, SLICE};
use super::local::Heap;
use super::medium::bit_of;
use super::remote::Links;
use super::span::Span;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Slices gathered for at a time.
const RING: usize = 16;
/// Heaps gathered for at a time.
const TARGETS: usize = 4;
/// Blocks in one message at most: what is gathered is memory that nobody can use.
const MOST_BLOCKS: u32 = 32;
/// Messages that are handed over at once.
const MOST_MESSAGES: u32 = 16;
/// Blocks that are handed over at once, a little more at most: a producer waits for them.
const ENOUGH: u32 = 128;

/// Freed blocks of one slice.
#[repr(align(64))]
struct Gathered {
    /// The slice's number in the address space; 0 = nothing.
    slice: usize,
    heap: *const Heap,
    /// Plain blocks: the slice's span, which stays what it is as long as it has not got these back.
    span: *const Span,
    /// Plain blocks: where they start; else 0, by which nothing does.
    magic: u32,
    /// Plain blocks of more than 1 KiB: which of the slice are live.
    live: *const AtomicU64,
    /// How many more may come.
    left: u32,
    first: *mut Block,
    last: *mut Block,
}

const NOTHING: Gathered =
    Gathered { slice: 0, heap: null(), span: null(), magic: 0, live: null(), left: 0, first: null_mut(), last: null_mut() };

/// Messages for one heap.
struct Parcel {
    heap: *const Heap,
    first: usize,
    last: usize,
    messages: u32,
    blocks: u32,
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
            ring: [NOTHING; RING],
            parcels: [const { Parcel { heap: null(), first: 0, last: 0, messages: 0, blocks: 0 } }; TARGETS],
        }
    }

    /// Adds a plain block that its user gave up, if others of its slice are here already: nothing has to be looked up. False, and
    /// nothing happens: there are none, it is no block's start, freed already, or somebody watches. `full` where they are enough for a
    /// message: [`hand_over`](Self::hand_over).
    ///
    /// # Safety
    /// The outbox is the calling thread's heap's, or a stand-in's, in which there is nothing for ever. If it is a live block, nobody uses it.
    #[inline(always)]
    pub unsafe fn add_again(outbox: *mut Self, ptr: *mut u8, full: impl FnOnce(*mut u8)) -> bool {
        let (slice, block) = (ptr as usize / SLICE, ptr.cast::<Block>());
        // SAFETY: the index is below RING. What is many threads' is only read: no block starts where nothing was gathered.
        let gathered = unsafe {
            let place = (&raw mut (*outbox).ring).cast::<Gathered>().add(slice % RING);
            let magic = (*place).magic;
            if (*place).slice != slice || u32::from(ptr as u16).wrapping_mul(magic) >= magic {
                return false;
            }
            &mut *place
        };
        // SAFETY: where blocks start, there is a span; and the block is mapped memory of a heap.
        if unsafe { (*gathered.span).watched.load(Relaxed) || (*block).mark == gathered.heap as usize } {
            return false;
        }
        // SAFETY: the entries of slices with blocks are mapped for ever.
        if unsafe { gathered.live.as_ref() }.is_some_and(|live| live.load(Relaxed) & bit_of(ptr as usize) == 0) {
            return false;
        }
        // SAFETY: the caller gave it up.
        if unsafe { gathered.join(block) } == 0 {
            full(ptr);
        }
        true
    }

    /// Hands over what was gathered of the slice around `ptr`.
    pub fn hand_over(&mut self, ptr: *mut u8, post: &mut dyn FnMut(&'static Heap)) {
        if let Some(gathered) = self.ring.get_mut(ptr as usize / SLICE % RING) {
            let full = core::mem::replace(gathered, NOTHING);
            self.send(full, post);
        }
    }

    /// Adds a block of `heap`'s that its user gave up, and for a plain one its span and class; `post` is called with an
    /// idle heap that got messages.
    ///
    /// # Safety
    /// Nobody uses the block, and the caller has made sure that it is freed once.
    #[inline]
    pub unsafe fn add(
        &mut self,
        heap: &'static Heap,
        block: *mut Block,
        plain: Option<(&'static Span, Class)>,
        post: &mut dyn FnMut(&'static Heap),
    ) {
        let slice = block as usize / SLICE;
        let Some(gathered) = self.ring.get_mut(slice % RING) else { return };
        if gathered.slice == slice {
            // SAFETY: the caller's promise.
            if unsafe { gathered.join(block) } == 0 {
                self.hand_over(block.cast(), post);
            }
            return;
        }
        // SAFETY: the caller's promise.
        unsafe { (*block).mark = heap.mark() };
        let mut fresh = Gathered { slice, heap, left: MOST_BLOCKS - 1, first: block, last: block, ..NOTHING };
        if let Some((span, class)) = plain {
            (fresh.span, fresh.magic) = (span, class.shape().magic);
            if class.is_medium() {
                // SAFETY: the slice has blocks.
                fresh.live = unsafe { heap.live(heap.slice_of(block as usize) as usize) };
            }
        }
        if plain.is_none_or(|(_, class)| class.is_medium()) {
            // SAFETY: the slice has blocks.
            unsafe { heap.way(heap.slice_of(block as usize) as usize) }.share();
        }
        let old = core::mem::replace(gathered, fresh);
        self.send(old, post);
    }

    /// Hands over everything.
    pub fn flush(&mut self, post: &mut dyn FnMut(&'static Heap)) {
        for index in 0..RING {
            if let Some(gathered) = self.ring.get_mut(index) {
                let old = core::mem::replace(gathered, NOTHING);
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
        let count = MOST_BLOCKS - gathered.left;
        // SAFETY: we hold the blocks, which are marked.
        unsafe { Messages::seal(gathered.first, gathered.last, count) };
        let message = gathered.last as usize;
        Messages.set(message, parcel.first);
        if parcel.first == 0 {
            parcel.last = message;
        }
        parcel.first = message;
        parcel.messages += 1;
        parcel.blocks += count;
        if parcel.messages >= MOST_MESSAGES || parcel.blocks >= ENOUGH {
            parcel.post(post);
        }
    }
}

impl Gathered {
    /// Puts a block to those of its slice. How many more may come.
    ///
    /// # Safety
    /// The block is free and the caller's.
    #[inline(always)]
    unsafe fn join(&mut self, block: *mut Block) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { *block = Block { mark: self.heap as usize, next: self.first } };
        self.first = block;
        self.left -= 1;
        self.left
    }
}

impl Parcel {
    fn post(&mut self, post: &mut dyn FnMut(&'static Heap)) {
        // SAFETY: null or a heap, which is never unmapped.
        let Some(heap) = (unsafe { self.heap.as_ref() }).filter(|_| self.messages > 0) else { return };
        if heap.inbox.0.push(self.first, self.last, &Messages) {
            post(heap);
        }
        (self.first, self.last, self.messages, self.blocks) = (0, 0, 0, 0);
    }
}
