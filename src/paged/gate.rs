//! The gate that every step which owns a chunk or changes the pager's tables passes, so that fork(2) can wait until none is
//! under way and keep further ones out. Called by workers, by the face where the program's own threads do a worker's job, and
//! by `fork.rs`. Whoever is inside never touches a region's addresses (its fault could not be served), and takes no lock that is
//! held while somebody waits to come in: `life` and `scratch` come before the gate, all other locks after it.

use crate::sync::{futex_wait, futex_wake};
use core::sync::atomic::{AtomicU32, Ordering};

const CLOSED: u32 = 1 << 31;

/// How many are inside, and whether it is closed.
pub struct Gate {
    word: AtomicU32,
}

/// Inside while this lives.
pub struct Pass<'a>(&'a Gate);

impl Gate {
    /// Open, and nobody inside.
    pub const fn new() -> Self {
        Self { word: AtomicU32::new(0) }
    }

    /// Goes in, waiting while the gate is closed. Not recursive: who is inside and comes again may wait for himself.
    pub fn enter(&self) -> Pass<'_> {
        loop {
            let now = self.word.load(Ordering::Relaxed);
            if now & CLOSED != 0 {
                futex_wait(&self.word, now);
            } else if self.word.compare_exchange_weak(now, now + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Pass(self);
            }
        }
    }

    /// Does somebody wait for those inside to leave, or is it closed already?
    pub fn is_closed(&self) -> bool {
        self.word.load(Ordering::Relaxed) & CLOSED != 0
    }

    fn leave(&self) {
        if self.word.fetch_sub(1, Ordering::Release) == CLOSED + 1 {
            futex_wake(&self.word, i32::MAX);
        }
    }

    /// Keeps everybody out and waits until nobody is inside. One thread at a time.
    pub fn close(&self) {
        let mut now = self.word.fetch_or(CLOSED, Ordering::Acquire) | CLOSED;
        while now != CLOSED {
            futex_wait(&self.word, now);
            now = self.word.load(Ordering::Acquire);
        }
    }

    /// Ends [`Self::close`], in the parent and in the child.
    pub fn open(&self) {
        self.word.store(0, Ordering::Release);
        futex_wake(&self.word, i32::MAX);
    }
}

impl Pass<'_> {
    /// To be called where somebody inside waits for another owner of a chunk, who may have to come in first: lets a fork go before.
    pub fn give_way(&self) {
        if self.0.is_closed() {
            self.0.leave();
            core::mem::forget(self.0.enter()); // this pass goes on
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let (gate, inside, stop) = (Gate::new(), AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let _pass = gate.enter();
                        inside.fetch_add(1, Ordering::Relaxed);
                        inside.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..2000 {
                gate.close();
                assert_eq!(inside.load(Ordering::Relaxed), 0);
                gate.open();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
