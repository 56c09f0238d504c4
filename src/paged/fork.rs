//! fork(2) with paged buffers: the child gets its own copy of everything, like of any other memory. Regions and frames are
//! inherited copy-on-write, the compressed pool with them; what lies in the swap file is read there by both, and frozen until
//! the child has ended (`swap.rs`). The child opens its own backend and starts one worker before fork returns to it; the
//! others follow with its first fault. Regions are advised MADV_DONTFORK except while fork runs, so that a child made behind the
//! C library's back (a bare clone system call) gets a clean segmentation fault and not zeros. Called by `os::fork`.

use super::pager::{self, Pager};
use super::state::{State, Word};
use crate::config;
use crate::error::Error;
use crate::monitor::account;
use crate::os::{fork, output, vm};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The fork under way carries the pager over to the child. Written while the gate is closed.
static CARRIES: AtomicBool = AtomicBool::new(false);

/// Sees to it that forks are safe from now on.
pub fn prepare() {
    fork::register(fork::Hooks { before, parent, child });
}

fn before() {
    let Some(pager) = pager::get() else { return };
    pager.gate.close();
    // Nobody owns a chunk now, and nobody but program threads that pin or prefetch holds a lock.
    pager.policy.before_fork();
    pager.workers.before_fork();
    pager.troubles.before_fork();
    pager.names.before_fork();
    let carries = pager.swaps.before_fork();
    CARRIES.store(carries, Relaxed);
    if carries {
        pager.arena.trim(0); // free frames would be shared for nothing
        inherit(pager, libc::MADV_DOFORK);
    }
}

/// Lets children have the regions and frames, or not.
fn inherit(pager: &Pager, advice: i32) {
    for (_, region) in pager.regions.live() {
        let (start, span) = (region.start.load(Relaxed), region.span.load(Relaxed));
        // SAFETY: a live region's own mapping, which this advice does not change.
        let _ = unsafe { vm::advise(start as *mut u8, span, advice) };
    }
    pager.arena.advise(advice);
}

/// # Safety
/// [`before`] ran on this thread.
unsafe fn unlock(pager: &Pager) {
    // SAFETY: the caller's promise.
    unsafe {
        pager.names.after_fork();
        pager.troubles.after_fork();
        pager.workers.after_fork();
        pager.policy.after_fork();
    }
}

fn parent() {
    let Some(pager) = pager::get() else { return };
    if CARRIES.load(Relaxed) {
        inherit(pager, libc::MADV_DONTFORK);
    }
    // SAFETY: `before` ran on this thread.
    unsafe {
        pager.swaps.after_fork_in_parent();
        unlock(pager);
    }
    pager.gate.open();
}

fn child() {
    let Some(pager) = pager::get() else { return };
    // SAFETY: `before` ran on this thread, which is the only one here.
    unsafe {
        pager.swaps.after_fork_in_child();
        unlock(pager);
        pager.life.reset_after_fork();
        pager.scratch.reset_after_fork();
        pager.workers.reset_after_fork();
    }
    pager.troubles.drain(|id| {
        let Some(chunk) = pager.regions.chunk(id) else { return };
        let was = if chunk.slot.load(Relaxed) == 0 { State::Zero } else { State::Stored };
        Word::step(&chunk.word, |w| (w.state() == State::Filling).then(|| w.unfilled(was)));
    });
    if !CARRIES.load(Relaxed) {
        pager::leave_behind(); // the regions are not mapped here
    } else if let Err(error) = take_over(pager) {
        for (_, region) in pager.regions.live() {
            // SAFETY: the region cannot be served here; a clean fault instead of zeros.
            unsafe { vm::forbid(region.start.load(Relaxed), region.span.load(Relaxed)) };
        }
        pager::leave_behind();
        output::line(format_args!(
            "qmem: paged buffers are not available in this child of fork: {error}; accesses to them raise SIGSEGV"
        ));
    }
    pager.gate.open();
}

/// The child's own way of being told of faults, and somebody to serve them.
fn take_over(pager: &'static Pager) -> Result<(), Error> {
    inherit(pager, libc::MADV_DONTFORK);
    pager.backend.reopen()?;
    pager.workers.reopen()?;
    pager.arena.take_over(&pager.backend)?;
    let mut any = false;
    for (_, region) in pager.regions.live() {
        pager.backend.take_over_region(region.start.load(Relaxed), region.chunks().len() * region.chunk_bytes())?;
        any = true;
    }
    let budget = match config::FORK_BUDGET.get() {
        0 if account::swap() > 0 => account::budget() / 4,
        0 => account::budget(),
        set => set.min(account::budget()),
    };
    account::set_budget(budget.max(config::MIN_PAGED_BUDGET).min(account::budget()));
    if any { pager.workers.start_one() } else { Ok(()) }
}
