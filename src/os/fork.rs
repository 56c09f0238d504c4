//! fork(2): functions to run before it and after it in parent and child. Called by whoever has state that a child must not
//! find half-changed.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Three functions around fork.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// In the parent, before.
    pub before: fn(),
    /// In the parent, after.
    pub parent: fn(),
    /// In the child. Only what a signal handler may do: its other threads are gone.
    pub child: fn(),
}

const MAX: usize = 4;
static HOOKS: [[AtomicPtr<()>; 3]; MAX] = [const { [const { AtomicPtr::new(core::ptr::null_mut()) }; 3] }; MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Has the hooks called around every fork from now on: `before` in the reverse of the order of registration, the others in it.
/// There is room for three beside the [`register_first`] ones.
pub fn register(hooks: Hooks) {
    enter(COUNT.fetch_add(1, Ordering::AcqRel) + 1, hooks);
}

/// As [`register`], for those whose locks the other hooks may need after fork (the heap's: a thread that is started wants memory):
/// the last before fork and the first after it, whenever they are registered. Once in a process.
pub fn register_first(hooks: Hooks) {
    enter(0, hooks);
}

fn enter(index: usize, hooks: Hooks) {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    if ASKED.fetch_add(1, Ordering::AcqRel) == 0 {
        // SAFETY: the three functions are safe to call at any fork.
        unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) };
    }
    if let Some(row) = HOOKS.get(index) {
        for (cell, hook) in row.iter().zip([hooks.before, hooks.parent, hooks.child]) {
            cell.store(hook as *mut (), Ordering::Release);
        }
    }
}

fn call(row: &[AtomicPtr<()>; 3], which: usize) {
    let Some(hook) = row.get(which).map(|cell| cell.load(Ordering::Acquire)).filter(|hook| !hook.is_null()) else { return };
    // SAFETY: a cell holds null or a `fn()` stored by `register`; fn pointers and data pointers have one size here.
    let hook: fn() = unsafe { core::mem::transmute(hook) };
    hook();
}

extern "C" fn before() {
    HOOKS.iter().rev().for_each(|row| call(row, 0));
}

extern "C" fn parent() {
    HOOKS.iter().for_each(|row| call(row, 1));
}

extern "C" fn child() {
    HOOKS.iter().for_each(|row| call(row, 2));
}
