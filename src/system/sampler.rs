//! Samplers: each a thread that looks at the process's numbers at an interval and keeps the last look with its rates. Called by
//! `ffi::monitoring`. Bounded in number; a handle that is out of date is told.

use super::numbers::{self, Numbers};
use crate::error::Error;
use crate::fail;
use crate::monitor::counters::PAGER;
use crate::monitor::{account, level};
use crate::os::worker::Thread;
use crate::os::{clock, limits};
use crate::sync::{Mutex, futex_wait_for, futex_wake};
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

/// Samplers at a time.
const MOST: usize = 64;

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Memory and its statistics.
    pub memory: bool,
    /// Processor time.
    pub cpu: bool,
    /// Time spent on the swap file.
    pub io: bool,
}

/// One look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Resident bytes of the budget, or without one of the machine's memory.
    pub memory_percent: f64,
    /// Processor time of the whole process since the look before, of one processor.
    pub cpu_percent: f64,
    /// Share of the pager's faults since the look before whose chunk had been read ahead.
    pub hit_rate: f64,
    /// Milliseconds of reads and writes of the swap file since the look before.
    pub io_ms: f64,
    /// All numbers.
    pub numbers: Numbers,
    /// Nanoseconds since 1970.
    pub time: u64,
}

#[derive(Clone, Copy, Default)]
struct Marks {
    at: u64,
    cpu: u64,
    io: usize,
    faults: usize,
    hits: usize,
}

struct Sampler {
    number: usize,
    interval_ms: u32,
    wanted: Wanted,
    ending: AtomicU32,
    look: Mutex<Look>,
    thread: Mutex<Option<Thread>>,
}

static SAMPLERS: Mutex<Vec<Arc<Sampler>>> = Mutex::new(Vec::new());

fn marks() -> Marks {
    let at = clock::monotonic();
    let numbers = crate::paged::events();
    Marks { at, cpu: clock::processor(), io: PAGER.swap_nanos.get(), faults: numbers.0, hits: PAGER.ahead_hits.get() }
}

fn look(wanted: Wanted, before: Marks, now: Marks) -> Look {
    let elapsed = now.at.saturating_sub(before.at).max(1) as f64;
    let mut look = Look { time: clock::wall(), ..Look::default() };
    if wanted.memory {
        look.numbers = numbers::now();
        let whole = if account::budget() == usize::MAX { limits::allowed() } else { account::budget() };
        look.memory_percent = look.numbers.resident_bytes as f64 / whole.max(1) as f64 * 100.0;
        let (faults, hits) = (now.faults.wrapping_sub(before.faults), now.hits.wrapping_sub(before.hits));
        look.hit_rate = if faults > 0 { hits as f64 / faults as f64 } else { 0.0 };
    }
    if wanted.cpu {
        look.cpu_percent = now.cpu.saturating_sub(before.cpu) as f64 / elapsed * 100.0;
    }
    if wanted.io {
        look.io_ms = now.io.wrapping_sub(before.io) as f64 / 1e6;
    }
    look
}

/// Starts one; its number, from 1.
pub fn start(interval_ms: u32, wanted: Wanted) -> Result<usize, Error> {
    let mut samplers = SAMPLERS.lock();
    if samplers.len() == MOST {
        return Err(fail!(Limit, "{MOST} monitors run already, which is the bound: stop one"));
    }
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
    let now = marks();
    let sampler = Arc::new(Sampler {
        number,
        interval_ms,
        wanted,
        ending: AtomicU32::new(0),
        look: Mutex::new(look(wanted, now, now)),
        thread: Mutex::new(None),
    });
    samplers.push(sampler.clone());
    drop(samplers);
    match Thread::spawn(c"qmem-monitor", body, number) {
        Ok(thread) => *sampler.thread.lock() = Some(thread),
        Err(error) => {
            SAMPLERS.lock().retain(|s| s.number != number);
            return Err(error);
        }
    }
    level::watch();
    Ok(number)
}

fn find(number: usize) -> Result<Arc<Sampler>, Error> {
    let found = SAMPLERS.lock().iter().find(|sampler| sampler.number == number).cloned();
    found.ok_or_else(|| fail!(NotFound, "this monitor does not run: it was never started, or was stopped"))
}

fn body(number: usize) {
    let Ok(sampler) = find(number) else { return };
    let mut before = marks();
    while sampler.ending.load(Ordering::Acquire) == 0 {
        futex_wait_for(&sampler.ending, 0, sampler.interval_ms);
        let now = marks();
        if now.at.saturating_sub(before.at) < u64::from(sampler.interval_ms) * 1_000_000 {
            continue; // woken early, to end
        }
        let seen = look(sampler.wanted, before, now);
        before = now;
        *sampler.look.lock() = seen;
    }
}

/// The last look.
pub fn last(number: usize) -> Result<Look, Error> {
    Ok(*find(number)?.look.lock())
}

/// Ends one.
pub fn stop(number: usize) -> Result<(), Error> {
    let sampler = find(number)?;
    SAMPLERS.lock().retain(|s| s.number != number);
    sampler.ending.store(1, Ordering::Release);
    futex_wake(&sampler.ending, 1);
    let thread = sampler.thread.lock().take();
    if let Some(thread) = thread {
        thread.join();
        level::unwatch();
    }
    Ok(())
}

/// Before fork(2): nobody is inside until [`after_fork`].
pub fn before_fork() {
    SAMPLERS.lock_for_fork();
}

/// The child has no samplers: their threads are not there.
///
/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(in_child: bool) {
    // SAFETY: the caller's promise.
    unsafe { SAMPLERS.unlock_after_fork() };
    if in_child {
        core::mem::forget(core::mem::take(&mut *SAMPLERS.lock())); // a sampler's own locks may be held for good
    }
}
