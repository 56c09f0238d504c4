//! Keeps this process's status page (`monitor/status.rs`): with the first paged buffer a thread begins to write its numbers there
//! ten times a second, if QMEM_STATUS_DIR names a directory. Called by the preload and by `memory`; may run inside malloc.

use crate::error::Class;
use crate::monitor::account::{self, Holder};
use crate::monitor::counters::{FAULTS, PAGER};
use crate::monitor::fidelity;
use crate::monitor::status::{BUFFERS, Buffer, COMMAND, Numbers, Page};
use crate::os::fork::{self, Hooks};
use crate::os::worker::{self, Thread};
use crate::os::{clock, limits, shared};
use crate::sync::Mutex;
use crate::{config, error, paged};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed};

/// The page, once it is there; null in a child of fork, until that has its own.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(core::ptr::null_mut());
static STARTED: AtomicBool = AtomicBool::new(false);
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// What is written next: the peaks and the start are kept from one time to the next.
static NUMBERS: Mutex<Numbers> = Mutex::new(EMPTY);
const EMPTY: Numbers = {
    // SAFETY: every field is a number.
    unsafe { core::mem::zeroed() }
};

/// Begins, if it is wanted and was not begun yet. The process runs on without where that fails.
#[inline]
pub fn start() {
    if !STARTED.load(Relaxed) {
        begin();
    }
}

#[cold]
fn begin() {
    if STARTED.swap(true, Relaxed) {
        return;
    }
    let Some(dir) = config::environment(config::STATUS_DIR_ENV) else { return };
    static HOOKED: AtomicBool = AtomicBool::new(false);
    if !HOOKED.swap(true, Relaxed) {
        fork::register(Hooks { before: nothing, parent: nothing, child: in_child });
    }
    let made = shared::page(dir).and_then(|page| {
        let page = page.cast::<Page>();
        let mut command = [0; COMMAND];
        limits::command(&mut command);
        *NUMBERS.lock() = Numbers { pid: u64::from(std::process::id()), started: clock::wall(), ..EMPTY };
        // SAFETY: a zero page that is never unmapped; all its fields are atomic.
        unsafe { page.as_ref() }.begin(&command);
        PAGE.store(page.as_ptr(), Relaxed);
        publish(false);
        Thread::spawn(c"qmem-status", keep_writing, 0).map(drop)
    });
    if let Err(why) = made {
        error::report(Class::Resources, &why);
    }
}

fn nothing() {}

/// The page is the parent's, and the thread is not here.
fn in_child() {
    PAGE.store(core::ptr::null_mut(), Relaxed);
    STARTED.store(false, Relaxed);
    REFUSED.store(0, Relaxed);
    // SAFETY: called by fork(2) in the child, which has one thread, and that one was not writing.
    unsafe { NUMBERS.reset_after_fork() };
}

/// A block was refused.
pub fn refused() {
    REFUSED.fetch_add(1, Relaxed);
}

fn keep_writing(_: usize) {
    loop {
        let from = clock::monotonic();
        publish(false);
        // Where a look at every chunk takes long, it is taken less often: at most a twentieth of one core.
        let took = clock::monotonic().saturating_sub(from) / 1000;
        worker::pause((config::STATUS_INTERVAL * 1000) as i64 + 20 * took as i64);
    }
}

/// Writes the numbers a last time. The process ends.
pub fn publish_last() {
    publish(true);
}

fn publish(ended: bool) {
    // SAFETY: null or a page that is never unmapped.
    let Some(page) = (unsafe { PAGE.load(Relaxed).as_ref() }) else { return };
    let paged = paged::stats();
    let budget = account::budget();
    let mut numbers = NUMBERS.lock();
    let n = &mut *numbers;
    n.updated = clock::wall();
    n.ended |= u64::from(ended);
    n.budget = if budget == usize::MAX { 0 } else { budget as u64 };
    n.resident = account::resident() as u64;
    n.peak_resident = account::peak() as u64;
    n.swap_capacity = account::swap() as u64;
    for (now, peak, value) in [
        (&mut n.heap, &mut n.peak_heap, account::held(Holder::Heap)),
        (&mut n.logical, &mut n.peak_logical, paged.logical_bytes),
        (&mut n.compressed, &mut n.peak_compressed, paged.compressed_bytes),
        (&mut n.swapped, &mut n.peak_swapped, paged.swapped_bytes),
        (&mut n.deduplicated, &mut n.peak_deduplicated, paged.deduplicated_bytes),
    ] {
        *now = value as u64;
        *peak = (*peak).max(*now);
    }
    n.faults = paged.page_faults as u64;
    n.evictions = paged.evictions as u64;
    n.fault_nanos = FAULTS.nanos.load(Relaxed);
    n.refaults = FAULTS.again.load(Relaxed);
    n.refault_nanos = FAULTS.again_nanos.load(Relaxed);
    n.refused = REFUSED.load(Relaxed);
    n.ahead_hits = PAGER.ahead_hits.get() as u64;
    n.error_spent = (fidelity::PROCESS.spent() * 1e15).ceil() as u64;
    n.error_budget = (fidelity::PROCESS.limit() * 1e15).round() as u64;
    n.lossy = paged.lossy_bytes as u64;
    page.write(n, &largest());
}

/// The largest buffers, in order. Their chunks are looked at once it is known which they are.
fn largest() -> [Buffer; BUFFERS] {
    let mut found = [Buffer::default(); BUFFERS];
    paged::for_each_region(&mut |region| {
        let mut next = Buffer { start: region.start as u64, logical: region.size as u64, ..Buffer::default() };
        for place in &mut found {
            if next.logical > place.logical {
                core::mem::swap(&mut next, place);
            }
        }
    });
    for buffer in found.iter_mut().take_while(|buffer| buffer.start != 0) {
        if let Some(stats) = paged::region_stats(buffer.start as *const u8) {
            buffer.resident = stats.resident_bytes as u64;
            buffer.compressed = stats.compressed_bytes as u64;
            buffer.swapped = stats.swapped_bytes as u64;
            buffer.faults = stats.page_faults as u64;
        }
    }
    found
}
