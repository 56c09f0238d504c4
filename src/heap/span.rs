//! What is known of a slice: the span that it is, alone or as part of a run, and for described blocks the state and size of each.
//! Called by the rest of the heap. Readers (`locate`, `Place`) need no lock and bear any address in a window; what only the heap's
//! owner may touch is in cells.

use super::OWNED_TAG;
use super::block::Block;
use super::classes::{Class, INLINE_SIDE, SLICE, SMALL, Shape};
use super::local::Heap;
use crate::ds::Zeroed;
use crate::ds::page_map::{Entry, Tag};
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// State of a block that was never given since the span was made.
const NEVER: u8 = 0;
/// State of a block that was given and freed.
const FREED: u8 = 1;
/// State of a live block, plus its tag.
const LIVE: u8 = 0x80;
/// Tag of plain blocks, which `malloc` gave.
pub const PLAIN_TAG: u8 = LIVE - 1;
/// Largest tag a block can carry.
pub const MAX_TAG: u8 = PLAIN_TAG - 1;

/// What a slice is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Blocks of one class, of which nothing is known beside the list of free ones.
    Plain,
    /// Blocks of one class with tag and size each.
    Described,
    /// The first slice of one block.
    Run,
}

const NONE: u64 = 0;
const PLAIN: u64 = 1;
const DESCRIBED: u64 = 2;
const RUN: u64 = 3;
const INNER: u64 = 4;

/// Where a span of blocks is in its class's lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stand {
    /// In no list: it has no block to give, or too few to be worth a visit.
    Full = 0,
    /// Its free blocks wait.
    Waiting = 1,
    /// Blocks are taken from it.
    Current = 2,
}

/// The record of one slice. All zero: in no span.
#[repr(C, align(128))]
pub struct Span {
    /// Kind in bits 0..8, class in 8..16, slices back to the first one (inner) in 16..32, epoch in 32..64.
    word: AtomicU64,
    /// Run: bytes requested.
    pub size: AtomicUsize,
    /// Run: its state.
    state: AtomicU8,
    /// See [`Stand`].
    pub stand: Cell<Stand>,
    /// Its pages were zero when it was made.
    pub fresh: Cell<bool>,
    /// Plain blocks: somebody wants to know when one is freed; `free` goes the long way, which tells.
    pub watched: AtomicBool,
    /// While it has no block to give: how many must come back before it does.
    pub wake: Cell<u32>,
    /// Blocks ever given; those after it are untouched.
    pub carved: AtomicU32,
    /// Blocks of more than 1 KiB, by number: which of them lie here and are free.
    pub free: Cell<u64>,
    /// Slices of the run.
    pub slices: AtomicU32,
    /// Neighbours in the list of waiting spans; 0 = none.
    pub next: Cell<u32>,
    /// See `next`.
    pub prev: Cell<u32>,
    /// Run: where in its heap the bin lies that keeps it when it is freed.
    pub bin: Cell<u32>,
    /// The side arrays, where they fit; in a run the first word is its owner's.
    side: UnsafeCell<[u64; INLINE_SIDE / 8]>,
}

const _: () = assert!(size_of::<Span>() == 128);

// SAFETY: the heap's owner alone touches the cells; the side arrays are atomics.
unsafe impl Sync for Span {}
// SAFETY: zero is a valid value of every field.
unsafe impl Zeroed for Span {}

/// Where an address lies in a span.
#[derive(Clone, Copy)]
pub struct Place {
    /// Whose it is.
    pub heap: &'static Heap,
    /// Its number in the heap.
    pub slice: u32,
    /// The span.
    pub span: &'static Span,
    /// What it is.
    pub kind: Kind,
    /// Which block, by number; 0 in a run.
    index: usize,
    /// Start of that block.
    pub start: usize,
    /// Bytes of that block.
    pub usable: usize,
    shape: Option<&'static Shape>,
    word: u64,
}

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Not given since the span was made.
    Never,
    /// Given and freed.
    Freed,
    /// In use, with this tag and requested size.
    Live(u8, usize),
}

/// The heap that an entry of the page map leads to.
#[inline]
pub fn heap_of(entry: Entry) -> Option<&'static Heap> {
    // SAFETY: the heap enters its units with its own address, and is never unmapped.
    (entry.tag == Tag::Segment).then(|| unsafe { &*(entry.payload as usize as *const Heap) })
}

/// Where `address`, which the page map says is in a unit of `heap`, is among its spans; None outside any block.
#[inline]
pub fn locate(heap: &'static Heap, address: usize) -> Option<Place> {
    let mut slice = heap.slice_of(address);
    // SAFETY: the unit was entered into the page map after it was mapped.
    let mut span = unsafe { heap.span(slice) };
    let mut word = span.word.load(Ordering::Acquire);
    if word & 0xff == INNER {
        slice = slice.checked_sub((word >> 16 & 0xffff) as u32)?;
        // SAFETY: a run lies in one unit.
        span = unsafe { heap.span(slice) };
        word = span.word.load(Ordering::Acquire);
    }
    let first = heap.start_of(slice);
    let offset = address.checked_sub(first)?;
    let kind = match word & 0xff {
        PLAIN => Kind::Plain,
        DESCRIBED => Kind::Described,
        RUN => {
            let usable = span.slices.load(Ordering::Relaxed) as usize * SLICE;
            let place = Place { heap, slice, span, kind: Kind::Run, index: 0, start: first, usable, shape: None, word };
            return (offset < usable).then_some(place);
        }
        _ => return None,
    };
    let shape = Class::from_number((word >> 8) as u8)?.shape();
    let index = shape.index_of(offset);
    let blocks = if kind == Kind::Plain { shape.blocks } else { shape.described };
    if offset >= SLICE || index >= blocks as usize {
        return None;
    }
    let (start, usable) = (first + index * shape.size as usize, shape.size as usize);
    Some(Place { heap, slice, span, kind, index, start, usable, shape: Some(shape), word })
}

impl Place {
    /// What the block is; None if its span was recycled meanwhile. A plain block that its thread keeps changing may be seen as it
    /// was a moment ago.
    #[inline]
    pub fn state(&self) -> Option<State> {
        let state = match (self.kind, self.shape) {
            (Kind::Described, Some(shape)) => {
                let state = self.span.state(shape, self.first(), self.index).load(Ordering::Acquire);
                let slack = self.span.slack(shape, self.first(), self.index);
                decode(state, self.usable.saturating_sub(slack))
            }
            (Kind::Run, _) => decode(self.span.state.load(Ordering::Acquire), self.span.size.load(Ordering::Relaxed)),
            _ if self.index >= self.span.carved.load(Ordering::Relaxed) as usize => State::Never,
            _ if self.is_free() => State::Freed,
            _ => State::Live(PLAIN_TAG, self.usable),
        };
        core::sync::atomic::fence(Ordering::Acquire);
        (self.span.word.load(Ordering::Relaxed) == self.word).then_some(state)
    }

    /// Is it a live block of an owner's?
    #[inline]
    pub fn is_owned(&self) -> bool {
        self.kind == Kind::Run && self.span.state.load(Ordering::Acquire) == LIVE | OWNED_TAG
    }

    fn first(&self) -> usize {
        self.heap.start_of(self.slice)
    }

    /// Is the plain block free? It carries its heap's mark then, or if it is of more than 1 KiB and not on its way to its heap, is not live
    /// by the slice's bits.
    #[inline]
    fn is_free(&self) -> bool {
        let medium = self.shape.is_some_and(|shape| shape.size > SMALL as u32);
        // SAFETY: a slice with blocks.
        if medium && !unsafe { self.heap.is_live(self.start - self.heap.window()) } {
            return true;
        }
        // SAFETY: units stay mapped for ever; the word is read as an atomic since its thread may write it at the same time.
        let word = unsafe { &*(&raw const (*(self.start as *const Block)).mark).cast::<AtomicUsize>() };
        word.load(Ordering::Relaxed) == self.heap.mark()
    }

    /// Takes a described block or a run from its user: of several threads that free it exactly one gets true.
    #[inline]
    pub fn claim(&self) -> bool {
        let state = match (self.kind, self.shape) {
            (Kind::Described, Some(shape)) => self.span.state(shape, self.first(), self.index),
            (Kind::Run, _) => &self.span.state,
            _ => return self.index < self.span.carved.load(Ordering::Relaxed) as usize && !self.is_free(),
        };
        let now = state.load(Ordering::Relaxed);
        now >= LIVE && state.compare_exchange(now, FREED, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Makes a block that was just taken live, with its tag and requested size.
    pub fn give(&self, size: usize, tag: u8) {
        match (self.kind, self.shape) {
            (Kind::Described, Some(shape)) => {
                self.span.set_slack(shape, self.first(), self.index, size);
                self.span.state(shape, self.first(), self.index).store(LIVE | tag, Ordering::Release);
            }
            (Kind::Run, _) => self.span.give_run(size, tag),
            _ => {}
        }
    }

    /// See the face.
    pub fn watch(&self) {
        self.span.watched.store(true, Ordering::Relaxed);
        core::sync::atomic::fence(Ordering::SeqCst); // as in `refill::open_to_free`
        // SAFETY: the page map led here, so the slice is of a mapped unit.
        unsafe {
            self.heap.check(self.slice as usize).magic.store(0, Ordering::Relaxed);
            self.heap.way(self.slice as usize).close();
        }
    }

    /// Stores another requested size for a live block; at most the block's own.
    pub fn set_size(&self, size: usize) {
        match (self.kind, self.shape) {
            (Kind::Described, Some(shape)) => self.span.set_slack(shape, self.first(), self.index, size),
            (Kind::Run, _) => self.span.size.store(size, Ordering::Relaxed),
            _ => {}
        }
    }
}

fn decode(state: u8, size: usize) -> State {
    match state {
        NEVER => State::Never,
        FREED => State::Freed,
        tag => State::Live(tag & !LIVE, size),
    }
}

impl Span {
    /// Makes the slice that starts at `first` a span of `class`. `fresh`: all its bytes are zero.
    ///
    /// # Safety
    /// The caller owns the heap, and the slice is taken from its free ones.
    pub unsafe fn carve(&self, first: usize, class: Class, described: bool, fresh: bool) {
        if described {
            // SAFETY: the side arrays are inside the slice or the record, which the caller owns.
            unsafe { self.side(class.shape(), first).write_bytes(0, class.shape().described as usize) };
        }
        self.carved.store(0, Ordering::Relaxed);
        self.free.set(0);
        self.watched.store(false, Ordering::Relaxed);
        self.fresh.set(fresh);
        self.stand.set(Stand::Full);
        self.set(if described { DESCRIBED } else { PLAIN }, u64::from(class.number()) << 8);
    }

    /// Makes this slice the first of a run of `slices`.
    pub fn begin_run(&self, slices: u32, bin: u32) {
        self.state.store(NEVER, Ordering::Relaxed);
        self.slices.store(slices, Ordering::Relaxed);
        self.bin.set(bin);
        self.set(RUN, 0);
    }

    /// Makes this slice part of the run that starts `back` slices before it.
    pub fn join_run(&self, back: u32) {
        self.set(INNER, u64::from(back) << 16);
    }

    /// The run's block is live from now on.
    pub fn give_run(&self, size: usize, tag: u8) {
        self.size.store(size, Ordering::Relaxed);
        self.state.store(LIVE | tag, Ordering::Release);
    }

    /// Does a live plain run start here? (The state is that of a live block in runs alone.)
    #[inline]
    pub fn is_plain_run(&self) -> bool {
        self.state.load(Ordering::Relaxed) == LIVE | PLAIN_TAG
    }

    /// Ends the plain run that starts here, if there is a live one; what another thread does with the same block at the same time is a
    /// mistake that may go unseen.
    #[inline]
    pub fn end_run(&self) -> bool {
        let live = self.is_plain_run();
        if live {
            self.state.store(FREED, Ordering::Relaxed);
        }
        live
    }

    /// A run: the word that its owner keeps with it.
    pub fn owner(&self) -> &AtomicU64 {
        // SAFETY: the array is inside the record, which is mapped for ever, and has an atomic's size and alignment.
        unsafe { &*self.side.get().cast::<AtomicU64>() }
    }

    /// In no span any more: its addresses are no blocks.
    pub fn dissolve(&self) {
        self.set(NONE, 0);
    }

    /// Kind and epoch change in one step, after what readers find through them.
    fn set(&self, kind: u64, detail: u64) {
        let epoch = (self.word.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.word.store(epoch << 32 | detail | kind, Ordering::Release);
    }

    /// Kind and class, if it is the first slice of a span. Runs have the class of the smallest blocks.
    #[inline]
    pub fn what(&self) -> Option<(Kind, Class)> {
        let word = self.word.load(Ordering::Acquire);
        let kind = match word & 0xff {
            PLAIN => Kind::Plain,
            DESCRIBED => Kind::Described,
            RUN => Kind::Run,
            _ => return None,
        };
        Some((kind, Class::from_number((word >> 8) as u8)?))
    }

    #[inline]
    fn side(&self, shape: &Shape, first: usize) -> *mut u8 {
        if shape.side == 0 { self.side.get().cast() } else { (first + shape.side as usize) as *mut u8 }
    }

    #[inline]
    fn state(&self, shape: &Shape, first: usize, index: usize) -> &AtomicU8 {
        // SAFETY: `index < shape.described`, whose state bytes all lie inside the record or the slice, both mapped for ever.
        unsafe { &*self.side(shape, first).add(index).cast() }
    }

    #[inline]
    fn slack(&self, shape: &Shape, first: usize, index: usize) -> usize {
        // SAFETY: as in `state`; the slack array follows it, aligned to its width.
        unsafe {
            let array = self.side(shape, first).add(shape.slack as usize);
            match shape.width {
                1 => (*array.cast::<AtomicU8>().add(index)).load(Ordering::Relaxed).into(),
                _ => (*array.cast::<AtomicU16>().add(index)).load(Ordering::Relaxed).into(),
            }
        }
    }

    #[inline]
    fn set_slack(&self, shape: &Shape, first: usize, index: usize, size: usize) {
        // A size of 0 counts as 1, so that the slack is less than the block and fits into its width.
        let slack = (shape.size as usize).saturating_sub(size.max(1));
        // SAFETY: as in `slack`.
        unsafe {
            let array = self.side(shape, first).add(shape.slack as usize);
            match shape.width {
                1 => (*array.cast::<AtomicU8>().add(index)).store(slack as u8, Ordering::Relaxed),
                _ => (*array.cast::<AtomicU16>().add(index)).store(slack as u16, Ordering::Relaxed),
            }
        }
    }
}
