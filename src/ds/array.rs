//! An array in its own mapping: zero-filled, grown by the kernel page by page, never moved. For metadata sized by a bound
//! (chunks of a region, bays of the arena) that must not come from any heap.

use crate::error::Error;
use crate::os::vm;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// `len` elements of `T`, all bytes zero at first. `T` must be valid when zeroed.
pub struct MappedArray<T: Zeroed> {
    data: NonNull<T>,
    len: usize,
}

/// Types for which all-zero bytes are a valid value.
///
/// # Safety
/// The implementor promises exactly that.
pub unsafe trait Zeroed {}
// SAFETY: zero is a valid value of each.
unsafe impl Zeroed for u8 {}
// SAFETY: as above.
unsafe impl Zeroed for u32 {}
// SAFETY: as above.
unsafe impl Zeroed for u64 {}
// SAFETY: an atomic has its integer's layout.
unsafe impl Zeroed for core::sync::atomic::AtomicU32 {}
// SAFETY: as above.
unsafe impl Zeroed for core::sync::atomic::AtomicU64 {}

// SAFETY: the array owns its mapping; sharing it shares `T`s.
unsafe impl<T: Zeroed + Send> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroed + Sync> Sync for MappedArray<T> {}

impl<T: Zeroed> MappedArray<T> {
    /// Reserves address space for `len` elements; pages become resident when touched.
    pub fn new(len: usize) -> Result<Self, Error> {
        let bytes = vm::round_up(len.max(1) * size_of::<T>(), vm::PAGE);
        let data = vm::reserve(bytes, vm::PAGE)?;
        // SAFETY: our own range. A core dump would count all that is reserved.
        let _ = unsafe { vm::advise(data.as_ptr(), bytes, libc::MADV_DONTDUMP) };
        Ok(Self { data: data.cast(), len })
    }

    /// The same of huge pages where the kernel has them: for what is touched from end to end.
    pub fn new_huge(len: usize) -> Result<Self, Error> {
        let bytes = vm::round_up(len.max(1) * size_of::<T>(), vm::PAGE);
        let data = vm::reserve(bytes, vm::HUGE)?;
        // SAFETY: our own range. A kernel without huge pages refuses, and gives small ones.
        let _ = unsafe { vm::advise(data.as_ptr(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Self { data: data.cast(), len })
    }
}

impl<T: Zeroed> Deref for MappedArray<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` elements, zero-filled (valid by `Zeroed`) and owned by self.
        unsafe { core::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Zeroed> DerefMut for MappedArray<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T: Zeroed> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size and nothing borrows it any more.
        unsafe { vm::release(self.data.cast(), vm::round_up(self.len.max(1) * size_of::<T>(), vm::PAGE)) };
    }
}
