//! What fork(2) must find whole: registry, pools and heap are locked around it, in the order of the floors. (The pager looks after
//! itself.) Called with the first allocation.

use super::{allocation, dispatch, recovery, resources, sampler, serve, tags, whole};
use crate::os::fork::{Hooks, register_first};
use crate::{heap, paged, pool, registry};
use core::sync::atomic::{AtomicBool, Ordering};

/// Sees to it that forks are safe from now on.
pub fn prepare() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Relaxed) && !DONE.swap(true, Ordering::AcqRel) {
        register_first(Hooks { before, parent, child });
    }
}

/// The locks of this floor, in the order in which one may be taken under another.
const BEFORE: [fn(); 7] = [
    whole::before_fork,
    resources::before_fork,
    recovery::before_fork,
    tags::before_fork,
    dispatch::before_fork,
    sampler::before_fork,
    serve::before_fork,
];
/// What ends each: in the parent, and in the child, whose other threads are gone.
const AFTER: [unsafe fn(bool); 7] = [
    whole::after_fork,
    resources::after_fork,
    recovery::after_fork,
    tags::after_fork,
    dispatch::after_fork,
    sampler::after_fork,
    serve::after_fork,
];

fn before() {
    BEFORE.iter().for_each(|lock| lock());
    registry::before_fork();
    pool::before_fork();
    heap::before_fork();
}

fn child() {
    after(true);
    // SAFETY: a child of fork has one thread, and that one forked outside of the subsystem.
    unsafe {
        allocation::after_fork_in_child();
        paged::after_fork_in_child();
    }
}

fn parent() {
    after(false);
}

fn after(in_child: bool) {
    // SAFETY: `before` ran on this thread, which in the child is the only one.
    unsafe {
        heap::after_fork();
        pool::after_fork(in_child);
        registry::after_fork();
        AFTER.iter().rev().for_each(|unlock| unlock(in_child));
    }
}
