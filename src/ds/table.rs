//! A bounded table of records in its own mapping: entries keep their address for ever, so a reader needs no lock, and a record
//! that is no longer used can still be read. Called by heap (segments, large blocks, thread heaps), which serialises `push`.

use super::array::Zeroed;
use crate::error::Error;
use crate::fail;
use crate::os::vm;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Up to `limit` records, all zero bytes at first.
pub struct Table<T: Zeroed> {
    base: AtomicPtr<T>,
    len: AtomicUsize,
    limit: usize,
}

impl<T: Zeroed> Table<T> {
    /// An empty table; reserves nothing yet.
    pub const fn new(limit: usize) -> Self {
        Self { base: AtomicPtr::new(null_mut()), len: AtomicUsize::new(0), limit }
    }

    /// Records ever pushed.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Record `index`, if it was pushed.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        if index >= self.len.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: `base` holds `limit` records before `len` leaves 0, `index < len <= limit`, and zero bytes are a valid `T`;
        // the table is never unmapped while it can be borrowed.
        Some(unsafe { &*self.base.load(Ordering::Acquire).add(index) })
    }

    /// Bytes that the next [`push`](Self::push) makes resident, to be charged before it.
    pub fn growth(&self) -> usize {
        let used = self.len().saturating_mul(size_of::<T>());
        vm::round_up(used + size_of::<T>(), vm::PAGE) - vm::round_up(used, vm::PAGE)
    }

    /// Adds a zeroed record and returns its index. One caller at a time.
    pub fn push(&self) -> Result<usize, Error> {
        let index = self.len();
        if index >= self.limit {
            return Err(fail!(Limit, "a table of the heap holds at most {} entries, and all are in use", self.limit));
        }
        if self.base.load(Ordering::Acquire).is_null() {
            let bytes = vm::round_up(self.limit.saturating_mul(size_of::<T>()), vm::PAGE);
            self.base.store(vm::reserve(bytes, vm::PAGE)?.as_ptr().cast(), Ordering::Release);
        }
        self.len.store(index + 1, Ordering::Release);
        Ok(index)
    }
}
