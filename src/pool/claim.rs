//! Who may touch a thread's magazine at this moment: its thread, or one that found the pool exhausted and collects what others keep.
//! Never waited for on the common path: a thread whose magazine is taken goes round it. Called by `cache.rs`. Free of everything
//! else: tests/loom_pool.rs compiles this very file against loom's atomics (`super::atomics`) and explores every interleaving.

use super::atomics::{AtomicU32, Ordering};

/// A right that one thread has at a time. All zero: nobody has it.
pub struct Claim {
    /// 1 while somebody has it.
    pub(super) taken: AtomicU32,
}

impl Claim {
    /// Takes it if nobody has it. What its last holder did is seen.
    #[inline]
    pub fn try_take(&self) -> bool {
        self.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Gives it back.
    #[inline]
    pub fn give(&self) {
        self.taken.store(0, Ordering::Release);
    }

    /// Does somebody have it?
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed) != 0
    }
}
