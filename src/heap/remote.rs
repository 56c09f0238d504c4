//! The inbox of a heap: a lock-free list of messages (lists of freed blocks) from other threads, many senders and one receiver.
//! A heap that no thread runs is idle; who sends to it is told so and collects in the owner's place, under the depot's lock.
//! Called by `thread.rs` and `outbox.rs`. Free of thread-local state and of heap types: tests/loom_remote.rs compiles this very
//! file against loom's atomics (`super::atomics`) and explores every interleaving.

use super::atomics::{AtomicUsize, Ordering};

/// How messages are linked while they wait: the list keeps its links in the freed blocks.
pub trait Links {
    /// Stores `next` in `message`.
    fn set(&self, message: usize, next: usize);
    /// What was last stored in `message`.
    fn next(&self, message: usize) -> usize;
}

/// No message: the end of a list.
pub const END: usize = 0;
/// Beside the first message: nobody runs the heap. Messages are blocks, at multiples of 16.
const IDLE: usize = 1;

/// Messages waiting for the owner, newest first. All zero: empty, with an owner.
pub struct Inbox {
    head: AtomicUsize,
}

impl Inbox {
    /// An inbox around an atomic that holds zero.
    pub const fn new(head: AtomicUsize) -> Self {
        Self { head }
    }

    /// Any thread: hands over the messages from `first` to `last`, which are linked already. True: the heap is idle, and the
    /// sender has to see to it that someone collects.
    pub fn push(&self, first: usize, last: usize, links: &impl Links) -> bool {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            links.set(last, head & !IDLE);
            // Release: who takes the list sees the links and all that the sender did to the blocks before.
            match self.head.compare_exchange_weak(head, first | (head & IDLE), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return head & IDLE != 0,
                Err(now) => head = now,
            }
        }
    }

    /// The owner: everything that waits, as a list that ends with [`END`]. There is no ABA: a take empties the list.
    #[inline]
    pub fn take(&self) -> usize {
        if self.head.load(Ordering::Relaxed) & !IDLE == END {
            return END;
        }
        self.head.swap(END, Ordering::Acquire) & !IDLE
    }

    /// The owner leaves: takes what waits and tells senders from now on that the heap is idle. Under the depot's lock, where it
    /// also collects for an idle heap.
    pub fn take_and_idle(&self) -> usize {
        self.head.swap(IDLE, Ordering::AcqRel) & !IDLE
    }

    /// A new owner: takes what waits. Under the depot's lock.
    pub fn take_over(&self) -> usize {
        self.head.swap(END, Ordering::AcqRel) & !IDLE
    }

    /// Does nobody run the heap?
    pub fn is_idle(&self) -> bool {
        self.head.load(Ordering::Relaxed) & IDLE != 0
    }
}
