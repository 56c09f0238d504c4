//! Atomics and locks of the lower floors: a futex mutex that never allocates, and a futex-backed wait. Everything below
//! `system` that needs a lock takes it from here, so that model checkers and fork handlers have one place to look.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// A mutual-exclusion lock: 0 free, 1 held, 2 held with waiters (Drepper, "Futexes are tricky", mutex 2).
pub struct Mutex<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out one reference at a time.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

/// The lock is held while this lives.
pub struct Guard<'a, T> {
    lock: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits until the lock is free and takes it. Not recursive.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        if self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slow();
        }
        Guard { lock: self }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).ok().map(|_| Guard { lock: self })
    }

    /// Keeps the lock held across fork(2), where a guard cannot live; [`unlock_after_fork`](Self::unlock_after_fork) ends it.
    pub fn lock_for_fork(&self) {
        core::mem::forget(self.lock());
    }

    /// Frees what [`lock_for_fork`](Self::lock_for_fork) took, in the parent or in the child, where no waiter has survived.
    ///
    /// # Safety
    /// The calling thread holds the lock by `lock_for_fork`.
    pub unsafe fn unlock_after_fork(&self) {
        drop(Guard { lock: self });
    }

    /// Frees the lock in a child of fork, whoever held it in the parent.
    ///
    /// # Safety
    /// This is the child's only thread and does not hold the lock, and what the lock protects is whole.
    pub unsafe fn reset_after_fork(&self) {
        self.word.store(0, Ordering::Release);
    }

    #[cold]
    fn lock_slow(&self) {
        for _ in 0..100 {
            core::hint::spin_loop();
            if self.word.load(Ordering::Relaxed) == 0
                && self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
        }
        while self.word.swap(2, Ordering::Acquire) != 0 {
            futex_wait(&self.word, 2);
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock and is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if self.lock.word.swap(0, Ordering::Release) == 2 {
            futex_wake(&self.lock.word, 1);
        }
    }
}

/// Sleeps while `*word == expected`; may wake spuriously.
pub fn futex_wait(word: &AtomicU32, expected: u32) {
    // SAFETY: the word outlives the call; a null timeout waits without limit.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            core::ptr::null::<libc::timespec>(),
        )
    };
}

/// Sleeps while `*word == expected`, at most `milliseconds` (u32::MAX: without limit); may wake spuriously.
pub fn futex_wait_for(word: &AtomicU32, expected: u32, milliseconds: u32) {
    if milliseconds == u32::MAX {
        return futex_wait(word, expected);
    }
    let time = libc::timespec { tv_sec: i64::from(milliseconds / 1000), tv_nsec: i64::from(milliseconds % 1000) * 1_000_000 };
    // SAFETY: the word and the time outlive the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, expected, &raw const time)
    };
}

/// Wakes up to `count` sleepers.
pub fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: only the address is used.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count) };
}

/// A value that is set at most once between [`Once::take`]s and then read without a lock.
pub struct Once<T> {
    ready: AtomicU32,
    value: UnsafeCell<core::mem::MaybeUninit<T>>,
}

// SAFETY: the value is written before `ready` is set and only shared references are given out after.
unsafe impl<T: Send + Sync> Sync for Once<T> {}
// SAFETY: the value moves with it.
unsafe impl<T: Send> Send for Once<T> {}

impl<T> Once<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { ready: AtomicU32::new(0), value: UnsafeCell::new(core::mem::MaybeUninit::uninit()) }
    }

    /// The value, once it is there.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: `ready` is 1 only after the value was written, and it is taken away only when nobody reads.
        (self.ready.load(Ordering::Acquire) == 1).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// Sets it. The caller holds a lock that all setters hold, and nothing is set.
    pub fn set(&self, value: T) {
        if self.ready.load(Ordering::Acquire) == 0 {
            // SAFETY: not ready, so nobody reads; the caller's lock excludes other setters.
            unsafe { (*self.value.get()).write(value) };
            self.ready.store(1, Ordering::Release);
        }
    }

    /// Takes it out again.
    ///
    /// # Safety
    /// Nobody holds a reference from [`Self::get`], and the setters' lock is held.
    pub unsafe fn take(&self) -> Option<T> {
        if self.ready.swap(0, Ordering::AcqRel) == 0 {
            return None;
        }
        // SAFETY: it was ready and is not any more; by the caller's promise nobody reads it.
        Some(unsafe { (*self.value.get()).assume_init_read() })
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self` means that nobody reads.
        drop(unsafe { self.take() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes() {
        let lock = Mutex::new(0u64);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..100_000 {
                        *lock.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 400_000);
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(held);
    }
}
