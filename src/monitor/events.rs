//! What happened last: a ring of events that any thread may write to and read from without waiting. When it is full the oldest
//! give way. Written where the level asks for it, read by exporters and `qmem_read_events`.
#![forbid(unsafe_code)]

use super::level;
use crate::os::clock;
use core::sync::atomic::{AtomicU64, Ordering};

/// Events kept.
pub const KEPT: usize = 1024;

/// What kind of thing happened; the values are those of `qmem_event_kind_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // as at `qmem_event_kind_t`
pub enum Kind {
    Failure = 0,
    Repair = 1,
    Fallback = 2,
    Swapping = 3,
    BufferBegin = 4,
    BufferEnd = 5,
    ChunkLost = 6,
    Checkpoint = 7,
    Rebalance = 8,
    Level = 9,
}

/// Names of the kinds, in order.
pub const NAMES: [&str; 10] =
    ["failure", "repair", "fallback", "swapping", "buffer_begin", "buffer_end", "chunk_lost", "checkpoint", "rebalance", "level"];

/// One event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its number, from 0.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// A [`Kind`].
    pub kind: u32,
    /// The kernel's number of the thread.
    pub thread: u32,
    /// What it is about: an address, a class of error.
    pub subject: u64,
    /// How much: bytes, a count.
    pub amount: u64,
}

/// A slot holds number n while `state` is 2n + 2; it is being written while that is odd.
struct Slot {
    state: AtomicU64,
    time: AtomicU64,
    kind: AtomicU64,
    subject: AtomicU64,
    amount: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            time: AtomicU64::new(0),
            kind: AtomicU64::new(0),
            subject: AtomicU64::new(0),
            amount: AtomicU64::new(0),
        }
    }
}

/// A ring of events.
pub struct Ring {
    slots: [Slot; KEPT],
    next: AtomicU64,
}

/// The process's events.
pub static EVENTS: Ring = Ring::new();

/// Notes an event, if the level asks for it.
#[inline]
pub fn note(kind: Kind, subject: u64, amount: u64) {
    if level::detailed() {
        EVENTS.write(clock::wall(), kind as u32, clock::thread(), subject, amount);
    }
}

impl Ring {
    /// Empty.
    pub const fn new() -> Self {
        Self { slots: [const { Slot::new() }; KEPT], next: AtomicU64::new(0) }
    }

    /// Number of the next event: so many there have been.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Writes one. Dropped if another thread is still writing to its slot, a whole ring behind.
    pub fn write(&self, time: u64, kind: u32, thread: u32, subject: u64, amount: u64) {
        let number = self.next.fetch_add(1, Ordering::AcqRel);
        let Some(slot) = self.slots.get(number as usize % KEPT) else { return };
        let before = slot.state.load(Ordering::Relaxed);
        let writing = 2 * number + 1;
        let free = before.is_multiple_of(2) && before < writing;
        if !free || slot.state.compare_exchange(before, writing, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        slot.time.store(time, Ordering::Release);
        slot.kind.store(u64::from(kind) | u64::from(thread) << 32, Ordering::Release);
        slot.subject.store(subject, Ordering::Release);
        slot.amount.store(amount, Ordering::Release);
        slot.state.store(writing + 1, Ordering::Release);
    }

    /// The event with this number, while it is kept.
    pub fn read(&self, number: u64) -> Option<Event> {
        let slot = self.slots.get(number as usize % KEPT)?;
        let whole = 2 * number + 2;
        if slot.state.load(Ordering::Acquire) != whole {
            return None;
        }
        let kind = slot.kind.load(Ordering::Acquire);
        let event = Event {
            number,
            time: slot.time.load(Ordering::Acquire),
            kind: kind as u32,
            thread: (kind >> 32) as u32,
            subject: slot.subject.load(Ordering::Acquire),
            amount: slot.amount.load(Ordering::Acquire),
        };
        // A writer sets the state before the fields, so fields of a later event come with a later state.
        (slot.state.load(Ordering::Acquire) == whole).then_some(event)
    }

    /// Events from `from` on that are kept, oldest first, until `f` says enough; the number to go on from.
    pub fn since(&self, from: u64, f: &mut dyn FnMut(Event) -> bool) -> u64 {
        let end = self.next();
        let mut at = from.max(end.saturating_sub(KEPT as u64));
        while at < end {
            if let Some(event) = self.read(at)
                && !f(event)
            {
                return at;
            }
            at += 1;
        }
        end
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_in_order() {
        let ring = Box::new(Ring::new());
        for n in 0..3000u64 {
            ring.write(n, (n % 10) as u32, 7, n * 2, n * 3);
        }
        let mut seen = Vec::new();
        assert_eq!(
            ring.since(0, &mut |event| {
                seen.push(event);
                true
            }),
            3000
        );
        assert_eq!(seen.len(), KEPT);
        for (event, n) in seen.iter().zip(3000 - KEPT as u64..) {
            assert_eq!(*event, Event { number: n, time: n, kind: (n % 10) as u32, thread: 7, subject: n * 2, amount: n * 3 });
        }
        let mut few = 0;
        assert_eq!(
            ring.since(2990, &mut |_| {
                few += 1;
                few < 4
            }),
            2993
        );
        assert_eq!(ring.read(100), None);
    }

    #[test]
    fn threads_tear_nothing() {
        let ring = Box::new(Ring::new());
        std::thread::scope(|scope| {
            for thread in 1..4u32 {
                let ring = &ring;
                scope.spawn(move || (0..200_000u64).for_each(|n| ring.write(n, 3, thread, n ^ u64::from(thread), n + 1)));
            }
            let mut read = 0;
            let mut end = 0;
            while end < 600_000 {
                end = ring.next();
                ring.since(end.saturating_sub(50), &mut |event| {
                    read += 1;
                    assert_eq!((event.subject, event.amount), (event.time ^ u64::from(event.thread), event.time + 1));
                    true
                });
            }
            assert!(read > 0);
        });
    }
}
