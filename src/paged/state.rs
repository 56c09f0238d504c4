//! The chunk's state machine: every state, every transition, who may make it. Read this first.
//! Pure functions from one word to the next; the callers apply them by compare-and-swap ([`Word::step`]). May not touch
//! memory, frames or slots.
#![forbid(unsafe_code)]
//!
//! | from | to | by | when |
//! |---|---|---|---|
//! | Zero, Stored | Filling | fault, read-ahead | a worker starts to prepare a frame |
//! | Staged | Filling | fault, read-ahead | a frame read ahead is about to be mapped |
//! | Filling | Resident | its filler | the frame was moved in |
//! | Filling | Staged | its filler | read ahead, and nobody waits |
//! | Filling | Zero, Stored | its filler | no frame was to be had; waiters are woken and fault again |
//! | Filling | Poisoned | its filler | what was stored cannot be read back |
//! | Resident | Evicting | evictor | unpinned, and no longer mapped from here on |
//! | Staged | Evicting | evictor | read ahead in vain |
//! | Evicting | Zero, Stored | its evictor | stored, and nobody waits |
//! | Evicting | Filling | its evictor | somebody waits or pinned it, or nothing could take it: the same frame goes back in |
//! | Evicting | Resident | its owner | it never left: the move out was refused, or it was only held |
//! | Resident | Evicting | whoever must look at it | held in place: a fault in a mapped chunk, a slot to be given up |
//! | Stored | Filling | the pool | held in place: its blob moves to another block |
//! | Zero, Stored, Staged, Resident, Poisoned | Gone | free | the region ends |
//! | Gone | Zero | allocate | a new region |
//! | Zero, Staged, Resident | Filling | resize | a chunk of the new region gets what one of the old region had |
//! | Filling | Zero, Stored, Resident, Poisoned | resize | it has it |
//!
//! Filling and Evicting have one owner, who alone may touch the chunk's frame and slot; all others leave a note (`WANTED`)
//! and wait. "Compressed", "shared" and "swapped" of a Stored chunk are properties of its slot (`slot.rs`).

use core::sync::atomic::{AtomicU64, Ordering};

/// Where a chunk is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Belongs to no region.
    Gone = 0,
    /// Reads as zeros; costs nothing.
    Zero = 1,
    /// A worker prepares or maps a frame.
    Filling = 2,
    /// A complete frame waits in its bay, not mapped.
    Staged = 3,
    /// Mapped: the program reads and writes it without qmem.
    Resident = 4,
    /// A worker has moved the frame out and is storing it.
    Evicting = 5,
    /// In its slot: a pattern, compressed bytes, or a place in the swap file.
    Stored = 6,
    /// Cannot be read back: access raises SIGBUS.
    Poisoned = 7,
}

/// What the caller of a step must do after it has won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    None,
    /// The caller owns the chunk now (Filling): make a frame.
    Fill,
    /// The caller owns the chunk now (Filling): map the frame in this bay.
    Map(u32),
    /// The caller owns the chunk now (Evicting): move it out of the region.
    MoveOut,
    /// The caller owns the chunk now (Evicting): its frame is in this bay already.
    Drop(u32),
    /// Let waiters of its range try again.
    Wake,
    /// Someone else owns it and has been told that it is wanted.
    Wait,
    /// Raise SIGBUS for it.
    Poison,
}

/// State, notes and frame of one chunk in 64 bits: state 0–3, WANTED 4, pins 8–23, bay 32–63.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

const WANTED: u64 = 1 << 4;
const PIN: u64 = 1 << 8;
const PINS: u64 = 0xFFFF << 8;
/// The most pins one chunk can have.
pub const MAX_PINS: u32 = 0xFFFF;

impl Word {
    /// A settled chunk without frame, pins or notes.
    pub const fn new(state: State) -> Self {
        Self(state as u64)
    }

    /// Its state.
    pub fn state(self) -> State {
        match self.0 & 15 {
            0 => State::Gone,
            1 => State::Zero,
            2 => State::Filling,
            3 => State::Staged,
            4 => State::Resident,
            5 => State::Evicting,
            6 => State::Stored,
            _ => State::Poisoned,
        }
    }

    /// Pins held.
    pub fn pins(self) -> u32 {
        ((self.0 & PINS) >> 8) as u32
    }

    /// Somebody waits for its present owner.
    pub fn wanted(self) -> bool {
        self.0 & WANTED != 0
    }

    /// The bay that holds its frame (Staged only).
    pub fn bay(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn with(self, state: State) -> Self {
        Self((self.0 & PINS) | state as u64)
    }

    fn with_bay(self, state: State, bay: u32) -> Self {
        Self(self.with(state).0 | (bay as u64) << 32)
    }

    /// A page fault on it.
    pub fn fault(self) -> (Self, Act) {
        match self.state() {
            State::Zero | State::Stored => (self.with(State::Filling), Act::Fill),
            State::Staged => (self.with(State::Filling), Act::Map(self.bay())),
            State::Filling | State::Evicting => (Self(self.0 | WANTED), Act::Wait),
            State::Resident | State::Gone => (self, Act::Wake),
            State::Poisoned => (self, Act::Poison),
        }
    }

    /// Reading it ahead.
    pub fn read_ahead(self) -> Option<(Self, Act)> {
        matches!(self.state(), State::Zero | State::Stored).then(|| (self.with(State::Filling), Act::Fill))
    }

    /// Its filler has the frame ready in `bay`. `mapped_anyway`: on behalf of a fault.
    pub fn filled(self, bay: u32, mapped_anyway: bool) -> (Self, Act) {
        debug_assert_eq!(self.state(), State::Filling);
        if mapped_anyway || self.wanted() || self.pins() > 0 {
            (self.with(State::Filling), Act::Map(bay))
        } else {
            (self.with_bay(State::Staged, bay), Act::None)
        }
    }

    /// Its owner has moved the frame in.
    pub fn mapped(self) -> Self {
        debug_assert!(matches!(self.state(), State::Filling | State::Evicting));
        self.with(State::Resident)
    }

    /// Its filler gives up for want of a frame; it is again what it was.
    pub fn unfilled(self, was: State) -> (Self, Act) {
        debug_assert!(self.state() == State::Filling && matches!(was, State::Zero | State::Stored));
        (self.with(was), Act::Wake)
    }

    /// What was stored cannot be read back.
    pub fn poisoned(self) -> (Self, Act) {
        debug_assert_eq!(self.state(), State::Filling);
        (self.with(State::Poisoned), Act::Poison)
    }

    /// Taking it as a victim.
    pub fn evict(self) -> Option<(Self, Act)> {
        if self.pins() > 0 {
            return None;
        }
        match self.state() {
            State::Resident => Some((self.with(State::Evicting), Act::MoveOut)),
            State::Staged => Some((self.with(State::Evicting), Act::Drop(self.bay()))),
            _ => None,
        }
    }

    /// Its evictor found no place for it: the frame in `bay` goes back in.
    pub fn returned(self, bay: u32) -> (Self, Act) {
        debug_assert_eq!(self.state(), State::Evicting);
        (self.with(State::Filling), Act::Map(bay))
    }

    /// Owning a mapped chunk without moving it; pins do not matter. [`Self::mapped`] ends it, and its range is woken.
    pub fn hold_resident(self) -> Option<(Self, ())> {
        (self.state() == State::Resident).then(|| (self.with(State::Evicting), ()))
    }

    /// Owning a chunk of a region that nobody uses yet, to make it the heir of another's: its frame, if it has one by a stray
    /// hint, is the caller's to give back (Drop), or to drop where it is mapped (MoveOut). None while somebody owns it.
    pub fn claim(self) -> Option<(Self, Act)> {
        match self.state() {
            State::Filling | State::Evicting => None,
            State::Staged => Some((self.with(State::Filling), Act::Drop(self.bay()))),
            State::Resident => Some((self.with(State::Filling), Act::MoveOut)),
            _ => Some((self.with(State::Filling), Act::None)),
        }
    }

    /// Owning a stored chunk without filling it. [`Self::unfilled`] ends it, and its range is woken.
    pub fn hold_stored(self) -> Option<(Self, ())> {
        (self.state() == State::Stored).then(|| (self.with(State::Filling), ()))
    }

    /// Its evictor has stored it (`to` is Zero or Stored) and still has the frame in `bay` (None: given away).
    pub fn evicted(self, to: State, bay: Option<u32>) -> (Self, Act) {
        debug_assert!(self.state() == State::Evicting && matches!(to, State::Zero | State::Stored));
        match bay {
            Some(bay) if self.wanted() || self.pins() > 0 => (self.with(State::Filling), Act::Map(bay)),
            _ if self.wanted() => (self.with(to), Act::Wake),
            _ => (self.with(to), Act::None),
        }
    }

    /// One more pin; whoever owns it now will see that it is wanted.
    pub fn pin(self) -> Option<Self> {
        if self.pins() >= MAX_PINS {
            return None;
        }
        let note = if matches!(self.state(), State::Filling | State::Evicting) { WANTED } else { 0 };
        Some(Self((self.0 | note) + PIN))
    }

    /// One pin less.
    pub fn unpin(self) -> Option<Self> {
        (self.pins() > 0).then(|| Self(self.0 - PIN))
    }

    /// The region ends. None while somebody owns the chunk: wait and try again.
    pub fn free(self) -> Option<(Self, Act)> {
        match self.state() {
            State::Filling | State::Evicting => None,
            State::Staged => Some((Self::new(State::Gone), Act::Drop(self.bay()))),
            _ => Some((Self::new(State::Gone), Act::None)),
        }
    }

    /// Applies `next` by compare-and-swap until it wins or declines; gives the word before and what `next` said.
    pub fn step<T>(cell: &AtomicU64, mut next: impl FnMut(Self) -> Option<(Self, T)>) -> Option<(Self, T)> {
        let mut now = cell.load(Ordering::Acquire);
        loop {
            let (new, said) = next(Self(now))?;
            match cell.compare_exchange_weak(now, new.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((Self(now), said)),
                Err(seen) => now = seen,
            }
        }
    }

    /// The word as it is now.
    pub fn load(cell: &AtomicU64) -> Self {
        Self(cell.load(Ordering::Acquire))
    }

    /// Sets a word that nobody else can reach (a new or ended region's).
    pub fn store(self, cell: &AtomicU64) {
        cell.store(self.0, Ordering::Release);
    }
}

#[cfg(test)]
#[path = "state_model.rs"]
mod model;
