//! A store that keeps equal blocks once: data is cut into blocks of one size, a block that is there already is found by its XXH3 and
//! believed only after its bytes were compared. Called by the C API.
#![forbid(unsafe_code)]

use crate::codec::hash::sum64;
use crate::config::{DEDUP_BLOCK, DEDUP_BLOCK_DEFAULT};
use crate::error::Error;
use crate::fail;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A deduplicating store; any thread may use it.
pub struct Dedup {
    block_size: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    blocks: Vec<Option<Block>>,
    /// Places in `blocks` that are free.
    free: Vec<u32>,
    /// Of each sum, the blocks that have it: nearly always one.
    by_sum: HashMap<u64, Vec<u32>>,
    items: HashMap<u64, Item>,
    last_id: u64,
    bytes_in: u64,
    bytes_unique: u64,
}

struct Block {
    bytes: Box<[u8]>,
    sum: u64,
    users: u64,
}

struct Item {
    blocks: Box<[u32]>,
    size: usize,
}

/// What is in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Bytes of all items.
    pub bytes_in: u64,
    /// Bytes of their different blocks.
    pub bytes_unique: u64,
}

impl Dedup {
    /// An empty store. 0 is the default block size.
    pub fn new(block_size: usize) -> Result<Self, Error> {
        let block_size = if block_size == 0 { DEDUP_BLOCK_DEFAULT } else { block_size };
        let (least, most) = DEDUP_BLOCK;
        if !(least..=most).contains(&block_size) {
            return Err(fail!(InvalidArgument, "block_size = {block_size} is outside {least} to {most} bytes"));
        }
        Ok(Self { block_size, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a copy of `data`; its id, which is never 0 and never given again. A failure changes nothing.
    pub fn put(&self, data: &[u8]) -> Result<u64, Error> {
        let mut inner = self.lock();
        let mut blocks = Vec::new();
        let count = data.len().div_ceil(self.block_size);
        let none = |_| fail!(OutOfMemory, "an item of {} bytes does not fit into memory", data.len());
        blocks.try_reserve_exact(count).map_err(none)?;
        for bytes in data.chunks(self.block_size) {
            match inner.add(bytes, sum64(bytes)) {
                Ok(block) => blocks.push(block),
                Err(error) => {
                    blocks.into_iter().for_each(|block| inner.drop_user(block));
                    return Err(error);
                }
            }
        }
        inner.last_id += 1;
        let id = inner.last_id;
        inner.bytes_in += data.len() as u64;
        inner.items.insert(id, Item { blocks: blocks.into_boxed_slice(), size: data.len() });
        Ok(id)
    }

    /// Copies an item to `out`; its size.
    pub fn get(&self, id: u64, out: &mut [u8]) -> Result<usize, Error> {
        let inner = self.lock();
        let item = inner.items.get(&id).ok_or_else(|| unknown(id))?;
        let (size, room) = (item.size, out.len());
        let out = out
            .get_mut(..size)
            .ok_or_else(|| fail!(Limit, "item {id} has {size} bytes, which do not fit into the {room} of dst"))?;
        for (to, block) in out.chunks_mut(self.block_size).zip(&item.blocks) {
            let block = inner.blocks.get(*block as usize).and_then(Option::as_ref);
            to.copy_from_slice(&block.ok_or_else(|| fail!(Internal, "a block of item {id} is missing; please report it"))?.bytes);
        }
        Ok(size)
    }

    /// Forgets an item; blocks that no other one has are freed.
    pub fn remove(&self, id: u64) -> Result<(), Error> {
        let mut inner = self.lock();
        let item = inner.items.remove(&id).ok_or_else(|| unknown(id))?;
        inner.bytes_in -= item.size as u64;
        item.blocks.iter().for_each(|block| inner.drop_user(*block));
        Ok(())
    }

    /// What is in it now.
    pub fn numbers(&self) -> Numbers {
        let inner = self.lock();
        Numbers { bytes_in: inner.bytes_in, bytes_unique: inner.bytes_unique }
    }
}

fn unknown(id: u64) -> Error {
    fail!(NotFound, "no item has the id {id}: it was never given, or was removed")
}

impl Inner {
    /// A block with these bytes, found or made; it has one user more.
    fn add(&mut self, bytes: &[u8], sum: u64) -> Result<u32, Error> {
        for place in self.by_sum.get(&sum).into_iter().flatten() {
            if let Some(Some(block)) = self.blocks.get_mut(*place as usize)
                && *block.bytes == *bytes
            {
                block.users += 1;
                return Ok(*place);
            }
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes.len())
            .map_err(|_| fail!(OutOfMemory, "a block of {} bytes does not fit into memory", bytes.len()))?;
        copy.extend_from_slice(bytes);
        let block = Some(Block { bytes: copy.into_boxed_slice(), sum, users: 1 });
        let place = match self.free.pop() {
            Some(place) => {
                self.blocks[place as usize] = block;
                place
            }
            None => {
                let place = u32::try_from(self.blocks.len())
                    .map_err(|_| fail!(Limit, "the store holds {} blocks, which is the most", u32::MAX))?;
                self.blocks.push(block);
                place
            }
        };
        self.by_sum.entry(sum).or_default().push(place);
        self.bytes_unique += bytes.len() as u64;
        Ok(place)
    }

    fn drop_user(&mut self, place: u32) {
        let Some(slot) = self.blocks.get_mut(place as usize) else { return };
        let Some(block) = slot.as_mut() else { return };
        block.users -= 1;
        if block.users > 0 {
            return;
        }
        let (sum, len) = (block.sum, block.bytes.len() as u64);
        *slot = None;
        self.free.push(place);
        self.bytes_unique -= len;
        if let Some(places) = self.by_sum.get_mut(&sum) {
            places.retain(|other| *other != place);
            if places.is_empty() {
                self.by_sum.remove(&sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sums_are_not_believed() {
        let mut inner = Inner::default();
        let (a, b) = (inner.add(&[1; 64], 7).unwrap(), inner.add(&[2; 64], 7).unwrap());
        assert!(a != b && inner.add(&[1; 64], 7).unwrap() == a && inner.bytes_unique == 128);
        inner.drop_user(a);
        inner.drop_user(a);
        assert_eq!((inner.bytes_unique, inner.add(&[2; 64], 7).unwrap()), (64, b));
        assert_eq!(inner.add(&[3; 64], 7).unwrap(), a, "the place of the dropped block is used again");
    }

    #[test]
    fn agrees_with_a_map() {
        let store = Dedup::new(64).unwrap();
        let mut model: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut seed = 5u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..3000 {
            if next(3) > 0 {
                // Few different blocks, some cut short.
                let data: Vec<u8> = (0..next(6)).flat_map(|_| vec![next(5) as u8; 64]).take(300).collect();
                let data = data[..data.len() - (next(10) as usize).min(data.len())].to_vec();
                let id = store.put(&data).unwrap();
                assert!(model.insert(id, data).is_none());
            } else if let Some(id) = model.keys().nth(next(8) as usize).copied() {
                store.remove(id).unwrap();
                model.remove(&id);
                assert!(store.remove(id).is_err());
            }
            let unique: std::collections::HashSet<&[u8]> = model.values().flat_map(|data| data.chunks(64)).collect();
            let want = Numbers {
                bytes_in: model.values().map(|data| data.len() as u64).sum(),
                bytes_unique: unique.iter().map(|block| block.len() as u64).sum(),
            };
            assert_eq!(store.numbers(), want);
        }
        for (id, data) in &model {
            let mut out = vec![0; data.len() + 1];
            assert_eq!(store.get(*id, &mut out).unwrap(), data.len());
            assert!(out[..data.len()] == data[..]);
            assert!(data.is_empty() || store.get(*id, &mut out[..data.len() - 1]).is_err());
        }
    }
}
