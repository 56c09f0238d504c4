//! Handles instead of pointers: a number that leads to an object while that lives, and is known to be out of date afterwards. Called
//! by the pools and the object pools. Objects keep their place, so the way to one is two loads and no lock.

use crate::ds::{Table, Zeroed};
use crate::error::Error;
use crate::fail;
use crate::monitor::account::{self, Holder};
use crate::sync::Mutex;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Bits of a handle that say which place; those above count how often it was used. Below both: never a multiple of 16, so that a
/// handle is no block's address.
const PLACE_BITS: u32 = 20;
const LOW_BITS: u32 = 3;
const LOW: usize = 0b101;

struct Place<T> {
    /// The handle that leads here; 0 while there is nothing.
    handle: AtomicUsize,
    /// How often it was used, under the lock.
    uses: UnsafeCell<usize>,
    /// Index plus one of the next free place, under the lock.
    next: UnsafeCell<usize>,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: zero is an atomic's and a number's value, and the value may be anything while there is none.
unsafe impl<T> Zeroed for Place<T> {}
// SAFETY: the value is shared while the handle is set; the other cells are touched under the lock.
unsafe impl<T: Send + Sync> Sync for Place<T> {}

/// Objects of one kind.
pub struct Handles<T> {
    places: Table<Place<T>>,
    /// Index plus one of the first free place.
    free: Mutex<usize>,
    what: &'static str,
    most: usize,
}

fn index_of(handle: usize) -> usize {
    handle >> LOW_BITS & ((1 << PLACE_BITS) - 1)
}

impl<T: Send + Sync> Handles<T> {
    /// None yet, and at most `most` at a time.
    pub const fn new(what: &'static str, most: usize) -> Self {
        assert!(most < 1 << PLACE_BITS);
        Self { places: Table::new(most), free: Mutex::new(0), what, most }
    }

    /// Gives an object its handle. Holds no lock while it waits for room in the budget.
    pub fn open(&self, make: impl FnOnce(usize) -> T) -> Result<usize, Error> {
        loop {
            let mut free = self.free.lock();
            if let Some(index) = free.checked_sub(1)
                && let Some(place) = self.places.get(index)
            {
                // SAFETY: under the lock; a free place's value is nobody's.
                unsafe {
                    *free = *place.next.get();
                    *place.uses.get() += 1;
                    let handle = (*place.uses.get() << PLACE_BITS | index) << LOW_BITS | LOW;
                    (*place.value.get()).write(make(handle));
                    place.handle.store(handle, Ordering::Release);
                    return Ok(handle);
                }
            }
            if self.places.len() >= self.most {
                return Err(fail!(Limit, "there are {} {}s, the most there can be; destroy some", self.most, self.what));
            }
            let bytes = self.places.growth();
            if account::try_charge(Holder::Tables, bytes) {
                let index = self.places.push().inspect_err(|_| account::uncharge(Holder::Tables, bytes))?;
                *free = index + 1; // its `next` is zero
                continue;
            }
            drop(free);
            account::charge(Holder::Tables, bytes)?;
            account::uncharge(Holder::Tables, bytes);
        }
    }

    #[inline]
    fn place(&self, handle: usize) -> Option<&Place<T>> {
        let place = self.places.get(index_of(handle))?;
        (handle & ((1 << LOW_BITS) - 1) == LOW && place.handle.load(Ordering::Acquire) == handle).then_some(place)
    }

    /// The object that a handle leads to, if there is one.
    #[inline]
    pub fn find(&self, handle: usize) -> Option<&T> {
        // SAFETY: the handle is set, so the value was written; it is taken away only by `close`, whose caller promises that nobody
        // uses the object any more.
        self.place(handle).map(|place| unsafe { (*place.value.get()).assume_init_ref() })
    }

    /// The object that a handle leads to; the error says what it is instead.
    #[inline]
    pub fn get(&self, handle: usize) -> Result<&T, Error> {
        self.find(handle).ok_or_else(|| self.stranger(handle))
    }

    #[cold]
    fn stranger(&self, handle: usize) -> Error {
        if handle == 0 {
            return fail!(InvalidArgument, "the {} is NULL", self.what);
        }
        fail!(NotFound, "{handle:#x} is no {}: it was destroyed already, or is something else", self.what)
    }

    /// Takes an object away from its handle: of several threads exactly one gets it.
    ///
    /// # Safety
    /// Nobody uses the object any more.
    pub unsafe fn close(&self, handle: usize) -> Result<T, Error> {
        let place = self.place(handle).ok_or_else(|| self.stranger(handle))?;
        let mut free = self.free.lock(); // before the handle goes: fork finds the same objects before and after it
        if place.handle.compare_exchange(handle, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(self.stranger(handle));
        }
        // SAFETY: this thread alone took the handle away, and the value was there; the place is free under the lock.
        unsafe {
            let value = (*place.value.get()).assume_init_read();
            *place.next.get() = *free;
            *free = index_of(handle) + 1;
            Ok(value)
        }
    }

    /// Every object that there is.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let places = (0..self.places.len()).filter_map(|index| self.places.get(index));
        // SAFETY: as in `find`.
        places
            .filter(|place| place.handle.load(Ordering::Acquire) != 0)
            .map(|place| unsafe { (*place.value.get()).assume_init_ref() })
    }

    /// Before fork(2): nobody opens or closes until [`after_fork`](Self::after_fork).
    pub fn before_fork(&self) {
        self.free.lock_for_fork();
    }

    /// # Safety
    /// This thread called [`before_fork`](Self::before_fork).
    pub unsafe fn after_fork(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.free.unlock_after_fork() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_lead_to_their_object_while_it_lives() {
        static ALL: Handles<usize> = Handles::new("thing", 3);
        let handles: Vec<usize> = (0..3).map(|n| ALL.open(|_| n).unwrap()).collect();
        assert!(ALL.open(|_| 9).unwrap_err().to_string().contains("3 things"));
        for (n, handle) in handles.iter().enumerate() {
            assert_eq!(ALL.get(*handle).unwrap(), &n);
            assert!(ALL.get(handle + (8 << PLACE_BITS)).is_err() && ALL.get(handle + 1).is_err());
        }
        // SAFETY: nobody uses them.
        unsafe {
            assert_eq!(ALL.close(handles[1]).unwrap(), 1);
            assert!(ALL.close(handles[1]).is_err());
        }
        assert_eq!(ALL.all().sum::<usize>(), 2);
        let next = ALL.open(|handle| handle).unwrap();
        assert!(next != handles[1] && ALL.get(handles[1]).is_err());
        assert_eq!(ALL.get(next).unwrap(), &next);
        for bad in [0, 1, 5, 16, usize::MAX, handles[0] | 1 << 60] {
            assert!(ALL.get(bad).is_err(), "{bad:#x}");
        }
    }
}
