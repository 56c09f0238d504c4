//! Every interleaving of a magazine's claim: its thread takes and returns blocks and goes round it where it is taken; others collect.
//! Run: `make test`, or `RUSTFLAGS="--cfg loom" cargo test --profile quick --test loom_pool`. Without `--cfg loom` this file is empty.
#![allow(clippy::undocumented_unsafe_blocks)] // loom checks every access
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Mutex};
use loom::thread;

mod atomics {
    pub use loom::sync::atomic::{AtomicU32, Ordering};
}
#[path = "../src/pool/claim.rs"]
mod claim;
use claim::Claim;

/// A magazine and what stands behind it, as `cache.rs` has them: the cell is checked by loom, blocks are numbers.
struct Size {
    claim: Claim,
    magazine: UnsafeCell<Vec<u32>>,
    shared: Mutex<Vec<u32>>,
}

// SAFETY: loom checks the accesses.
unsafe impl Sync for Size {}
unsafe impl Send for Size {}

impl Size {
    fn new(magazine: &[u32], shared: &[u32]) -> Arc<Self> {
        let claim = Claim { taken: AtomicU32::new(0) };
        Arc::new(Self { claim, magazine: UnsafeCell::new(magazine.to_vec()), shared: Mutex::new(shared.to_vec()) })
    }

    fn take(&self) -> Option<u32> {
        if self.claim.try_take() {
            let block = self.magazine.with_mut(|blocks| {
                let blocks = unsafe { &mut *blocks };
                if blocks.is_empty() {
                    blocks.extend(self.shared.lock().unwrap().pop());
                }
                blocks.pop()
            });
            self.claim.give();
            return block;
        }
        self.shared.lock().unwrap().pop()
    }

    fn put(&self, block: u32) {
        if self.claim.try_take() {
            self.magazine.with_mut(|blocks| unsafe { (*blocks).push(block) });
            self.claim.give();
        } else {
            self.shared.lock().unwrap().push(block);
        }
    }

    /// As who waits for the claim: it tries until it has it; the model follows the first two tries, after which nothing new can happen.
    fn collect(&self) {
        let tried = || !self.claim.is_taken() && self.claim.try_take();
        if !tried() && !tried() {
            return;
        }
        self.magazine.with_mut(|blocks| self.shared.lock().unwrap().append(unsafe { &mut *blocks }));
        self.claim.give();
    }

    /// Every block, once all threads are done.
    fn all(&self) -> Vec<u32> {
        let mut all = self.shared.lock().unwrap().clone();
        all.extend(self.magazine.with(|blocks| unsafe { (*blocks).clone() }));
        all.sort();
        all
    }
}

#[test]
fn a_thread_and_one_that_collects_lose_no_block() {
    loom::model(|| {
        let size = Size::new(&[1, 2], &[]);
        let other = {
            let size = size.clone();
            thread::spawn(move || {
                size.collect();
                size.shared.lock().unwrap().pop().inspect(|block| assert!([1, 2].contains(block)))
            })
        };
        let mine = size.take();
        if let Some(block) = mine {
            size.put(block);
        }
        let theirs = other.join().unwrap();
        assert!(mine.is_none() || mine != theirs || size.all().len() == 1);
        let mut all = size.all();
        all.extend(theirs);
        all.sort();
        assert_eq!(all, [1, 2]);
    });
}

#[test]
fn two_that_collect_wait_for_each_other_and_the_owner_for_neither() {
    loom::model(|| {
        let size = Size::new(&[1], &[2]);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let size = size.clone();
                thread::spawn(move || size.collect())
            })
            .collect();
        let mine = size.take();
        others.into_iter().for_each(|other| other.join().unwrap());
        let mut all = size.all();
        all.extend(mine);
        all.sort();
        assert_eq!(all, [1, 2]);
    });
}
