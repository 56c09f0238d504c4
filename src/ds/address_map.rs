//! A hash map from addresses to small values in its own mapping: open addressing, linear probing, doubling. For what few blocks
//! have (more references than one, a layout). Called by the registry, which locks and charges it.

use super::{MappedArray, Zeroed};
use crate::error::Error;

/// One slot; key 0 = empty. All zero is valid.
#[derive(Clone, Copy)]
struct Slot<T> {
    key: usize,
    value: T,
}

// SAFETY: zero is a valid key, and a valid `T` by its bound.
unsafe impl<T: Zeroed> Zeroed for Slot<T> {}

/// Keys are addresses, never 0.
pub struct AddressMap<T: Zeroed + Copy> {
    /// A power of two of slots; None: empty, nothing mapped.
    slots: Option<MappedArray<Slot<T>>>,
    len: usize,
}

const FIRST_SLOTS: usize = 64;

impl<T: Zeroed + Copy> AddressMap<T> {
    /// No entries.
    pub const fn new() -> Self {
        Self { slots: None, len: 0 }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of slots.
    pub fn bytes(&self) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.len().saturating_mul(size_of::<Slot<T>>()))
    }

    /// Bytes of a new mapping that the next insert of a new key makes; to be charged before it.
    pub fn growth(&self) -> usize {
        match self.slots.as_ref().map_or(0, |slots| slots.len()) {
            0 => FIRST_SLOTS * size_of::<Slot<T>>(),
            slots if (self.len + 1) * 4 > slots * 3 => slots.saturating_mul(2 * size_of::<Slot<T>>()),
            _ => 0,
        }
    }

    /// The value at `key`.
    pub fn get(&self, key: usize) -> Option<&T> {
        let slots = self.slots.as_ref()?;
        slots.get(Self::seek(slots, key)).filter(|slot| slot.key == key && key != 0).map(|slot| &slot.value)
    }

    /// The value at `key`, to be changed.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        let slots = self.slots.as_mut()?;
        let at = Self::seek(slots, key);
        slots.get_mut(at).filter(|slot| slot.key == key && key != 0).map(|slot| &mut slot.value)
    }

    /// Calls `f` for every entry.
    pub fn for_each(&self, f: &mut dyn FnMut(usize, &T)) {
        let slots = self.slots.iter().flat_map(|slots| slots.iter());
        slots.filter(|slot| slot.key != 0).for_each(|slot| f(slot.key, &slot.value));
    }

    /// Enters `value`, in place of what was at `key`.
    pub fn insert(&mut self, key: usize, value: T) -> Result<(), Error> {
        if let Some(old) = self.get_mut(key) {
            *old = value;
            return Ok(());
        }
        if self.growth() > 0 {
            self.grow()?;
        }
        if let Some(slots) = self.slots.as_mut() {
            let at = Self::seek(slots, key);
            if let Some(slot) = slots.get_mut(at) {
                *slot = Slot { key, value };
                self.len += 1;
            }
        }
        Ok(())
    }

    /// Takes `key` out. The last entry to go gives the mapping back.
    pub fn remove(&mut self, key: usize) -> Option<T> {
        let value = *self.get(key)?;
        let slots = self.slots.as_mut()?;
        let mask = slots.len() - 1;
        let mut hole = Self::seek(slots, key);
        let mut next = hole;
        // Close the gap: move back each following entry whose own place is not between the hole and it.
        loop {
            next = (next + 1) & mask;
            let slot = *slots.get(next)?;
            if slot.key == 0 {
                break;
            }
            let home = Self::home(slot.key, slots.len());
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                *slots.get_mut(hole)? = slot;
                hole = next;
            }
        }
        slots.get_mut(hole)?.key = 0;
        self.len -= 1;
        if self.len == 0 {
            self.slots = None;
        }
        Some(value)
    }

    fn home(key: usize, slots: usize) -> usize {
        let hash = (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((hash >> 32) as usize) & (slots - 1)
    }

    /// The slot of `key`, or the empty one where it would go. There is always an empty one.
    fn seek(slots: &[Slot<T>], key: usize) -> usize {
        let mut at = Self::home(key, slots.len());
        while slots.get(at).is_some_and(|slot| slot.key != 0 && slot.key != key) {
            at = (at + 1) & (slots.len() - 1);
        }
        at
    }

    fn grow(&mut self) -> Result<(), Error> {
        let count = self.slots.as_ref().map_or(FIRST_SLOTS, |slots| slots.len() * 2);
        let mut larger = MappedArray::new(count)?;
        for slot in self.slots.iter().flat_map(|slots| slots.iter()).filter(|slot| slot.key != 0) {
            let at = Self::seek(&larger, slot.key);
            if let Some(place) = larger.get_mut(at) {
                *place = *slot;
            }
        }
        self.slots = Some(larger);
        Ok(())
    }
}

impl<T: Zeroed + Copy> Default for AddressMap<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn agrees_with_a_hash_map() {
        let (mut map, mut model) = (AddressMap::<u64>::new(), HashMap::new());
        let mut state = 9u64;
        for step in 0..200_000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Many keys collide in the low bits of the hash; sizes go up and down through several doublings.
            let key = (1 + (state >> 40) as usize % if step % 50_000 < 30_000 { 3000 } else { 40 }) << 14;
            if state >> 33 & 3 == 0 {
                assert_eq!(map.remove(key), model.remove(&key));
            } else if step % 50_000 > 40_000 {
                let some = model.keys().next().copied().unwrap_or(key);
                assert_eq!(map.remove(some), model.remove(&some));
            } else {
                let before = map.bytes();
                let growth = if model.contains_key(&key) { 0 } else { map.growth() };
                map.insert(key, step).unwrap();
                assert!(map.bytes() == before || map.bytes() == growth);
                model.insert(key, step);
            }
            assert_eq!(map.len(), model.len());
            assert_eq!(map.get(key), model.get(&key));
        }
        assert!(model.iter().all(|(key, value)| map.get(*key) == Some(value)));
        let mut seen = HashMap::new();
        map.for_each(&mut |key, value| assert!(seen.insert(key, *value).is_none()));
        assert_eq!(seen, model);
        assert_eq!((map.get(0), map.get(8)), (None, None));
        for key in model.into_keys() {
            assert!(map.remove(key).is_some());
        }
        assert_eq!((map.len(), map.bytes()), (0, 0));
    }
}
