//! The heap against a naive model: random operations with fixed seeds, contents and look-ups checked at every step, alone and
//! with threads that free each other's blocks. One process-wide heap: the tests that look at totals take turns (`ALONE`).
#![allow(clippy::undocumented_unsafe_blocks)] // every pointer used is live by the model, or the call under test must refuse it

mod memory;
mod operations;
mod ordered;
mod plain;
mod threads;

use qmem::heap;
use std::sync::RwLock;

/// Written: nobody else allocates. Read: anyone may.
static ALONE: RwLock<()> = RwLock::new(());

fn shared() -> std::sync::RwLockReadGuard<'static, ()> {
    ALONE.read().unwrap_or_else(|e| e.into_inner())
}

fn alone() -> std::sync::RwLockWriteGuard<'static, ()> {
    let guard = ALONE.write().unwrap_or_else(|e| e.into_inner());
    at_most(0); // the thread of the test before gives up its heap after its guard
    guard
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Sizes of every magnitude up to `1 << bits`, borders of powers of two included.
    fn size(&mut self, bits: usize) -> usize {
        let top = 1usize << self.below(bits + 1);
        match self.below(4) {
            0 => top,
            1 => top + 1,
            2 => top.saturating_sub(1),
            _ => self.below(top) + 1,
        }
    }
}

/// First, last and some bytes in between carry a pattern of the block's own.
fn marks(size: usize) -> impl Iterator<Item = usize> {
    (0..size.min(40)).chain((0..size).step_by(509)).chain(size.saturating_sub(40)..size)
}

fn byte(seed: u64, at: usize) -> u8 {
    (seed ^ at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]
}

unsafe fn fill(start: *mut u8, size: usize, seed: u64) {
    for at in marks(size) {
        unsafe { start.add(at).write(byte(seed, at)) };
    }
}

unsafe fn check(start: *const u8, size: usize, seed: u64, upto: usize) {
    for at in marks(size).filter(|at| *at < upto) {
        assert_eq!(unsafe { start.add(at).read() }, byte(seed, at), "byte {at} of {size} at {start:?}");
    }
}

/// Waits, twenty seconds at most, until no more threads than these have heaps: a scope ends before its threads' last destructors have
/// run. The test's own thread has one once it allocated or freed.
fn at_most(threads: usize) {
    for _ in 0..20_000 {
        if heap::stats().threads <= threads {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
