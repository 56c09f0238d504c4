//! Pools against a naive model: random operations with fixed seeds, alone and from several threads, and object pools. One process-wide
//! heap: tests that look at totals take turns (`ALONE`).
#![allow(clippy::undocumented_unsafe_blocks)] // every pointer used is live by the model, or the call under test must refuse it

mod blocks;
mod objects;
mod threads;

use qmem::pool::{self, Config};
use std::sync::Mutex;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
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
}

fn create(sizes: &[usize], initial: usize, max: usize, thread_cache: bool) -> usize {
    pool::create(&Config { sizes, initial, max, thread_cache }).unwrap()
}

/// Ends a pool that must have no live block.
fn end(handle: usize) {
    unsafe { pool::destroy(handle, &mut |start, size| panic!("{size} bytes at {start:#x} are live")).unwrap() };
}

unsafe fn fill(start: usize, size: usize) {
    for at in (0..size).step_by(97).chain([size - 1]) {
        unsafe { (start as *mut u8).add(at).write((start ^ (at * 31)) as u8) };
    }
}

unsafe fn check(start: usize, size: usize) {
    for at in (0..size).step_by(97).chain([size - 1]) {
        assert_eq!(
            unsafe { (start as *const u8).add(at).read() },
            (start ^ (at * 31)) as u8,
            "byte {at} of {size} at {start:#x}"
        );
    }
}
