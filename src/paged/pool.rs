//! The compressed pool: frames of the arena cut into units of 4 KiB; a blob is a chain of units, so nothing fragments and
//! every byte is inside the budget. Called by fill and evict with blobs whose chunk they own. Blobs move (to empty a block)
//! only through their chunk's owner too, so chains need no lock while they are read.

use super::arena::{Arena, Bay, HUGE_CLASS};
use super::region::ChunkId;
use crate::ds::MappedArray;
use crate::error::Error;
use crate::sync::Mutex;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

/// Bytes of a unit.
pub const UNIT: usize = 4096;
/// Units of a block (one frame).
const UNITS: usize = 512;
const WORDS: usize = UNITS / 64;

/// The pool.
pub struct Pool {
    /// Next unit of the same blob, plus one; 0 ends it.
    next: MappedArray<AtomicU32>,
    /// Chunk whose blob a unit belongs to.
    owner: MappedArray<AtomicU32>,
    space: Mutex<Space>,
    blocks: AtomicUsize,
    free_units: AtomicUsize,
}

struct Space {
    /// Bit set = unit in use; `WORDS` per bay.
    map: MappedArray<u64>,
    /// Units in use, by bay.
    used: MappedArray<u32>,
    /// 0 = no block of the pool, 1 = block, 2 = block on the stack of partly free ones, 3 = being emptied.
    role: MappedArray<u8>,
    partial: MappedArray<u32>,
    partials: usize,
    /// The block that was last sent on to the swap file.
    hand: u32,
}

impl Pool {
    /// A pool over an arena with that many bays of whole chunks; costs address space only.
    pub fn new(bays: usize) -> Result<Self, Error> {
        let space = Space {
            map: MappedArray::new(bays * WORDS)?,
            used: MappedArray::new(bays)?,
            role: MappedArray::new(bays)?,
            partial: MappedArray::new(bays)?,
            partials: 0,
            hand: 0,
        };
        Ok(Self {
            next: MappedArray::new(bays * UNITS)?,
            owner: MappedArray::new(bays * UNITS)?,
            space: Mutex::new(space),
            blocks: AtomicUsize::new(0),
            free_units: AtomicUsize::new(0),
        })
    }

    /// Resident bytes: whole blocks.
    pub fn bytes(&self) -> usize {
        self.blocks.load(Relaxed) * UNITS * UNIT
    }

    /// Would a blob of `len` bytes fit now?
    pub fn fits(&self, len: usize) -> bool {
        len.div_ceil(UNIT) <= self.free_units.load(Relaxed)
    }

    /// One more block: the frame in this bay is the pool's now.
    pub fn grow(&self, bay: Bay) {
        self.add(&mut self.space.lock(), bay);
    }

    fn add(&self, space: &mut Space, bay: Bay) {
        if let Some(role) = space.role.get_mut(bay as usize) {
            *role = 1;
        }
        space.push_partial(bay);
        self.blocks.fetch_add(1, Relaxed);
        self.free_units.fetch_add(UNITS, Relaxed);
    }

    /// Stores a blob; gives its first unit. None if there are not enough free units.
    pub fn store(&self, arena: &Arena, blob: &[u8], chunk: ChunkId) -> Option<u32> {
        let head = self.take(&mut self.space.lock(), blob.len().div_ceil(UNIT).max(1), chunk)?;
        self.write(arena, head, blob);
        Some(head)
    }

    /// As [`Self::store`], with one more block: nobody else's blob comes between. None if the blob is longer than a block; the
    /// frame stays the caller's then.
    pub fn store_and_grow(&self, arena: &Arena, blob: &[u8], chunk: ChunkId, bay: Bay) -> Option<u32> {
        if blob.len() > UNITS * UNIT {
            return None;
        }
        let mut space = self.space.lock();
        self.add(&mut space, bay);
        let head = self.take(&mut space, blob.len().div_ceil(UNIT).max(1), chunk)?;
        drop(space);
        self.write(arena, head, blob);
        Some(head)
    }

    fn write(&self, arena: &Arena, head: u32, blob: &[u8]) {
        let mut unit = head;
        for part in blob.chunks(UNIT) {
            // SAFETY: the unit was just taken for us, so its 4 KiB are ours to write and resident.
            unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), address(arena, unit) as *mut u8, part.len()) };
            unit = self.after(unit).unwrap_or(head);
        }
    }

    /// Copies a blob out; false if the chain is shorter than `out`.
    pub fn load(&self, arena: &Arena, head: u32, out: &mut [u8]) -> bool {
        let mut unit = Some(head);
        for part in out.chunks_mut(UNIT) {
            let Some(now) = unit else { return false };
            // SAFETY: a unit of the caller's blob: resident, and nobody writes it.
            unsafe { core::ptr::copy_nonoverlapping(address(arena, now) as *const u8, part.as_mut_ptr(), part.len()) };
            unit = self.after(now);
        }
        true
    }

    /// Are these a blob's bytes?
    pub fn holds(&self, arena: &Arena, head: u32, bytes: &[u8]) -> bool {
        let mut unit = Some(head);
        bytes.chunks(UNIT).all(|part| {
            let Some(now) = unit else { return false };
            unit = self.after(now);
            // SAFETY: a unit of a blob that the caller keeps from being freed: resident, and nobody writes it.
            let stored = unsafe { core::slice::from_raw_parts(address(arena, now) as *const u8, part.len()) };
            stored == part
        })
    }

    /// Frees a blob; blocks that become empty go back to the arena.
    pub fn free(&self, arena: &Arena, head: u32) {
        let mut space = self.space.lock();
        let mut unit = Some(head);
        while let Some(now) = unit {
            unit = self.after(now);
            let bay = now as usize / UNITS;
            space.mark(now, false);
            let Some(left) = space.used.get_mut(bay) else { continue };
            *left -= 1;
            let left = *left;
            let role = space.role.get(bay).copied().unwrap_or(0);
            if role != 3 {
                self.free_units.fetch_add(1, Relaxed);
            }
            if left == 0 && (role == 3 || self.free_units.load(Relaxed) > 2 * UNITS) {
                if role != 3 {
                    self.free_units.fetch_sub(UNITS, Relaxed);
                }
                space.forget(bay as u32);
                self.blocks.fetch_sub(1, Relaxed);
                arena.give(HUGE_CLASS, bay as u32);
            } else if role == 1 {
                space.push_partial(bay as u32);
            }
        }
    }

    /// A blob's chunk has another number now.
    pub fn rename(&self, head: u32, chunk: ChunkId) {
        let mut unit = Some(head);
        while let Some(now) = unit {
            if let Some(owner) = self.owner.get(now as usize) {
                owner.store(chunk, Relaxed);
            }
            unit = self.after(now);
        }
    }

    fn take(&self, space: &mut Space, units: usize, chunk: ChunkId) -> Option<u32> {
        if self.free_units.load(Relaxed) < units {
            return None;
        }
        let (mut head, mut last) = (None, None);
        for _ in 0..units {
            let unit = space.take_one()?; // never None: free_units counts exactly these
            self.owner.get(unit as usize)?.store(chunk, Relaxed);
            self.next.get(unit as usize)?.store(0, Relaxed);
            if let Some(before) = last {
                self.next.get(before as usize)?.store(unit + 1, Relaxed);
            }
            head = head.or(Some(unit));
            last = Some(unit);
        }
        self.free_units.fetch_sub(units, Relaxed);
        head
    }

    fn after(&self, unit: u32) -> Option<u32> {
        self.next.get(unit as usize)?.load(Relaxed).checked_sub(1)
    }

    /// If more than a quarter of the pool is free: the emptiest block, closed for new blobs. The caller moves its blobs
    /// away ([`Self::owner_in`]) and then calls [`Self::reopen`].
    pub fn emptiest(&self) -> Option<Bay> {
        let blocks = self.blocks.load(Relaxed);
        let free = self.free_units.load(Relaxed);
        if blocks < 2 || free < UNITS + blocks * UNITS / 4 {
            return None;
        }
        let mut space = self.space.lock();
        let candidates = space.partial.get(..space.partials)?;
        let bay = candidates.iter().copied().min_by_key(|bay| space.used.get(*bay as usize).copied().unwrap_or(u32::MAX))?;
        let free_here = UNITS - space.used.get(bay as usize).copied()? as usize;
        space.drop_partial(bay);
        *space.role.get_mut(bay as usize)? = 3;
        self.free_units.fetch_sub(free_here, Relaxed);
        Some(bay)
    }

    /// Some block, closed for new blobs, to be emptied as after [`Self::emptiest`]: the next one round.
    pub fn next_block(&self) -> Option<Bay> {
        let mut space = self.space.lock();
        let bays = space.role.len();
        let bay = (1..=bays).map(|i| (space.hand as usize + i) % bays).find(|bay| matches!(space.role.get(*bay), Some(1 | 2)))?;
        space.hand = bay as u32;
        let free_here = UNITS - space.used.get(bay).copied()? as usize;
        if space.role.get(bay) == Some(&2) {
            space.drop_partial(bay as Bay);
        }
        *space.role.get_mut(bay)? = 3;
        self.free_units.fetch_sub(free_here, Relaxed);
        Some(bay as Bay)
    }

    /// A chunk with units in a block that is being emptied, looking from unit `from` on; and where to look next.
    pub fn owner_in(&self, bay: Bay, from: usize) -> Option<(ChunkId, usize)> {
        let space = self.space.lock();
        (from..UNITS).find_map(|i| {
            let unit = bay as usize * UNITS + i;
            let used = space.map.get(unit / 64)? >> (unit % 64) & 1 == 1;
            used.then(|| Some((self.owner.get(unit)?.load(Relaxed), i + 1))).flatten()
        })
    }

    /// Ends the emptying of a block: if it is empty its frame has gone already, else it takes blobs again.
    pub fn reopen(&self, arena: &Arena, bay: Bay) {
        let mut space = self.space.lock();
        if space.role.get(bay as usize) != Some(&3) {
            return;
        }
        let used = space.used.get(bay as usize).copied().unwrap_or(0) as usize;
        if used == 0 {
            space.forget(bay);
            self.blocks.fetch_sub(1, Relaxed);
            arena.give(HUGE_CLASS, bay);
            return;
        }
        if let Some(role) = space.role.get_mut(bay as usize) {
            *role = 1;
        }
        self.free_units.fetch_add(UNITS - used, Relaxed);
        if used < UNITS {
            space.push_partial(bay);
        }
    }

    /// Gives every empty block back (at the end, and when nothing is stored any more).
    pub fn trim(&self, arena: &Arena) {
        let mut space = self.space.lock();
        let mut at = 0;
        while let Some(bay) = space.partial.get(..space.partials).and_then(|p| p.get(at)).copied() {
            if space.used.get(bay as usize) == Some(&0) {
                space.forget(bay);
                self.blocks.fetch_sub(1, Relaxed);
                self.free_units.fetch_sub(UNITS, Relaxed);
                arena.give(HUGE_CLASS, bay);
            } else {
                at += 1;
            }
        }
    }
}

fn address(arena: &Arena, unit: u32) -> usize {
    arena.address(HUGE_CLASS, unit / UNITS as u32) + unit as usize % UNITS * UNIT
}

impl Space {
    fn mark(&mut self, unit: u32, taken: bool) {
        if let Some(word) = self.map.get_mut(unit as usize / 64) {
            let bit = 1u64 << (unit % 64);
            *word = if taken { *word | bit } else { *word & !bit };
        }
    }

    /// A free unit of the block on top of the stack; a block without any leaves the stack.
    fn take_one(&mut self) -> Option<u32> {
        loop {
            let bay = *self.partial.get(self.partials.checked_sub(1)?)?;
            let base = bay as usize * WORDS;
            let words = self.map.get(base..base + WORDS)?;
            if let Some((i, word)) = words.iter().enumerate().find(|(_, w)| **w != u64::MAX) {
                let unit = bay * UNITS as u32 + (i * 64) as u32 + word.trailing_ones();
                self.mark(unit, true);
                *self.used.get_mut(bay as usize)? += 1;
                return Some(unit);
            }
            self.partials -= 1;
            *self.role.get_mut(bay as usize)? = 1;
        }
    }

    fn push_partial(&mut self, bay: Bay) {
        if let (Some(place), Some(role)) = (self.partial.get_mut(self.partials), self.role.get_mut(bay as usize)) {
            *place = bay;
            *role = 2;
            self.partials += 1;
        }
    }

    fn drop_partial(&mut self, bay: Bay) {
        let Some(at) = self.partial.get(..self.partials).and_then(|p| p.iter().position(|b| *b == bay)) else { return };
        self.partial.copy_within(at + 1..self.partials, at);
        self.partials -= 1;
    }

    fn forget(&mut self, bay: Bay) {
        if self.role.get(bay as usize) == Some(&2) {
            self.drop_partial(bay);
        }
        if let Some(role) = self.role.get_mut(bay as usize) {
            *role = 0;
        }
    }
}
