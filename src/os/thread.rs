//! The end of threads: one pthread key whose destructor calls one hook with what the thread left there. Called by `heap`, which
//! may not use a TLS destructor. The destructor may run before those of other libraries, which may allocate again.

use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// 0 = no key yet, else the key plus one.
static KEY: AtomicU64 = AtomicU64::new(0);
static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// What is called when a thread ends, with the value that it gave to [`on_exit`].
pub type Hook = fn(*mut ());

extern "C" fn destructor(value: *mut c_void) {
    let hook = HOOK.load(Ordering::Acquire);
    if hook.is_null() {
        return;
    }
    // SAFETY: HOOK holds null or a `Hook` stored by `on_exit`; fn pointers and data pointers have one size here.
    let hook: Hook = unsafe { core::mem::transmute(hook) };
    hook(value.cast());
}

/// Has `hook` called with `value` (not null) when the calling thread ends. There is one hook per process: every call names the
/// same. False if the OS has no key left; the hook will not be called then.
pub fn on_exit(hook: Hook, value: *mut ()) -> bool {
    HOOK.store(hook as *mut (), Ordering::Release);
    let Some(key) = key() else { return false };
    // SAFETY: the key was created and is never deleted; the value is only handed back to the destructor.
    unsafe { libc::pthread_setspecific(key, value.cast()) == 0 }
}

fn key() -> Option<libc::pthread_key_t> {
    let known = KEY.load(Ordering::Acquire);
    if known != 0 {
        return Some((known - 1) as libc::pthread_key_t);
    }
    let mut made: libc::pthread_key_t = 0;
    // SAFETY: `made` is ours and the destructor is safe for any value that `on_exit` stores.
    if unsafe { libc::pthread_key_create(&mut made, Some(destructor)) } != 0 {
        return None;
    }
    match KEY.compare_exchange(0, u64::from(made) + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(made),
        Err(first) => {
            // SAFETY: no thread has stored anything under the key that lost the race.
            unsafe { libc::pthread_key_delete(made) };
            Some((first - 1) as libc::pthread_key_t)
        }
    }
}
