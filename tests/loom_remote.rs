//! Every interleaving of a heap's inbox: senders, an owner that takes, one that ends, one that begins.
//! Run: `make test`, or `RUSTFLAGS="--cfg loom" cargo test --profile quick --test loom_remote`. Without `--cfg loom` this file is empty.
#![allow(clippy::undocumented_unsafe_blocks)] // loom checks every access
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Mutex};
use loom::thread;

mod atomics {
    pub use loom::sync::atomic::{AtomicUsize, Ordering};
}
#[path = "../src/heap/remote.rs"]
mod remote;
use remote::{END, Inbox, Links};

/// Message `n` of the model has address `16 * n`, n from 1.
const BLOCKS: usize = 3;

/// Links whose cells loom checks for races: an unordered access to a block by two threads fails the test.
struct Blocks {
    links: [UnsafeCell<usize>; BLOCKS + 1],
}

impl Blocks {
    fn new() -> Self {
        Self { links: std::array::from_fn(|_| UnsafeCell::new(0)) }
    }
}

// SAFETY: loom checks the accesses.
unsafe impl Sync for Blocks {}
unsafe impl Send for Blocks {}

impl Links for Blocks {
    fn set(&self, block: usize, next: usize) {
        self.links[block / 16].with_mut(|link| unsafe { *link = next });
    }
    fn next(&self, block: usize) -> usize {
        self.links[block / 16].with(|link| unsafe { *link })
    }
}

fn blocks_of(links: &Blocks, mut list: usize) -> Vec<usize> {
    let mut all = Vec::new();
    while list != END {
        all.push(list);
        list = links.next(list);
    }
    all
}

fn sorted(mut all: Vec<usize>) -> Vec<usize> {
    all.sort();
    all
}

#[test]
fn every_message_sent_is_taken_once() {
    loom::model(|| {
        let shared = Arc::new((Inbox::new(AtomicUsize::new(0)), Blocks::new()));
        let senders: Vec<_> = [vec![16, 32], vec![48]]
            .into_iter()
            .map(|mine| {
                let shared = shared.clone();
                thread::spawn(move || {
                    for message in mine {
                        assert!(!shared.0.push(message, message, &shared.1), "the heap has an owner");
                    }
                })
            })
            .collect();
        let mut got = blocks_of(&shared.1, shared.0.take());
        got.extend(blocks_of(&shared.1, shared.0.take()));
        senders.into_iter().for_each(|s| s.join().unwrap());
        got.extend(blocks_of(&shared.1, shared.0.take()));
        assert_eq!(sorted(got), [16, 32, 48]);
        assert_eq!(shared.0.take(), END);
    });
}

#[test]
fn messages_that_are_sent_together_arrive_in_order() {
    loom::model(|| {
        let shared = Arc::new((Inbox::new(AtomicUsize::new(0)), Blocks::new()));
        let sender = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.1.set(16, 32);
                shared.0.push(16, 32, &shared.1)
            })
        };
        let mut got = blocks_of(&shared.1, shared.0.take());
        sender.join().unwrap();
        got.extend(blocks_of(&shared.1, shared.0.take()));
        assert_eq!(got, [16, 32]);
    });
}

/// The protocol of `thread.rs`: the owner leaves under the depot's lock; a sender that is told that nobody runs the heap takes the
/// lock and collects.
struct Heap {
    inbox: Inbox,
    links: Blocks,
    /// What was collected. The owner's alone, or the lock holder's while there is none: loom checks that.
    collected: UnsafeCell<Vec<usize>>,
    depot: Mutex<()>,
}

// SAFETY: loom checks the accesses.
unsafe impl Sync for Heap {}

impl Heap {
    fn new() -> Self {
        let (inbox, links) = (Inbox::new(AtomicUsize::new(0)), Blocks::new());
        Self { inbox, links, collected: UnsafeCell::new(Vec::new()), depot: Mutex::new(()) }
    }

    fn collect(&self, list: usize) {
        self.collected.with_mut(|all| unsafe { (*all).extend(blocks_of(&self.links, list)) });
    }

    fn send(&self, message: usize) {
        if self.inbox.push(message, message, &self.links) {
            let _depot = self.depot.lock().unwrap();
            if self.inbox.is_idle() {
                self.collect(self.inbox.take_and_idle());
            }
        }
    }

    fn end(&self) {
        let _depot = self.depot.lock().unwrap();
        self.collect(self.inbox.take_and_idle());
    }

    fn begin(&self) {
        let _depot = self.depot.lock().unwrap();
        self.collect(self.inbox.take_over());
    }
}

#[test]
fn an_owner_that_ends_leaves_nothing_uncollected() {
    loom::model(|| {
        let heap = Arc::new(Heap::new());
        let senders: Vec<_> = [16, 32]
            .into_iter()
            .map(|message| {
                let heap = heap.clone();
                thread::spawn(move || heap.send(message))
            })
            .collect();
        heap.collect(heap.inbox.take());
        heap.end();
        senders.into_iter().for_each(|s| s.join().unwrap());
        assert_eq!(heap.inbox.take_and_idle(), END, "a message waits for nobody");
        assert_eq!(sorted(heap.collected.with(|all| unsafe { (*all).clone() })), [16, 32]);
    });
}

/// An owner ends and a next one begins while a sender is under way: the one, the other or the sender collects.
#[test]
fn a_late_sender_reaches_the_next_owner() {
    loom::model(|| {
        let heap = Arc::new(Heap::new());
        let late = {
            let heap = heap.clone();
            thread::spawn(move || heap.send(16))
        };
        heap.end();
        heap.begin();
        heap.collect(heap.inbox.take());
        late.join().unwrap();
        heap.collect(heap.inbox.take());
        assert_eq!(heap.collected.with(|all| unsafe { (*all).clone() }), [16]);
    });
}
