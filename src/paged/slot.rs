//! Slots: where the bytes of chunks lie that are not resident. A slot is a few bytes of pattern, a chain of units in the
//! compressed pool, or an extent of the swap file. Called by fill and evict, who own the chunk a slot belongs to; this file
//! keeps only the table.

use super::swap::Extent;
use crate::ds::{MappedArray, Zeroed};
use crate::error::Error;
use crate::sync::Mutex;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Longest pattern kept inside the slot itself.
pub const INLINE: usize = 64;

/// What a slot's bytes are and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// On the free list.
    Free = 0,
    /// A period of up to [`INLINE`] bytes, here.
    Pattern = 1,
    /// A longer period, in the pool.
    LongPattern = 2,
    /// A blob in the pool.
    Compressed = 3,
    /// A blob in the swap file.
    SwappedBlob = 4,
    /// The chunk's own bytes in the swap file.
    Swapped = 5,
}

/// What made a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Codec {
    /// `codec::lz4`
    Lz4 = 0,
    /// `codec::dictionary`
    Dictionary = 1,
    /// `codec::amplitude`
    Amplitude = 2,
}

/// One slot. All-zero bytes are a free one.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Slot {
    /// Which of the fields below count.
    pub kind: Kind,
    /// Bytes of the stored form.
    pub len: u32,
    /// First unit in the pool, or the next free slot.
    pub head: u32,
    /// What made the blob.
    pub codec: Codec,
    /// Stands in the table of copies that may be shared.
    pub offered: bool,
    /// Place in the swap file.
    pub extent: Extent,
    /// XXH3-64 of the stored form.
    pub sum: u64,
    /// XXH3-128 of the chunk itself, so that an unchanged chunk is recognised; 0 if it was not taken.
    pub identity: u128,
    /// A short pattern.
    pub pattern: [u8; INLINE],
}

struct Cell(UnsafeCell<Slot>);
// SAFETY: zero is Kind::Free and zero numbers.
unsafe impl Zeroed for Cell {}
// SAFETY: a slot is accessed under the table's lock while free, and by the one owner of its chunk while in use.
unsafe impl Sync for Cell {}

/// All slots of the process.
pub struct Slots {
    cells: MappedArray<Cell>,
    /// How many chunks have each slot.
    shares: MappedArray<AtomicU32>,
    free: Mutex<FreeList>,
}

struct FreeList {
    head: u32,
    fresh: u32,
}

/// A slot in use; 0 is never one, so that a zeroed chunk has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId(pub u32);

impl Slots {
    /// Room for `count` slots; costs address space only.
    pub fn new(count: usize) -> Result<Self, Error> {
        Ok(Self {
            cells: MappedArray::new(count + 1)?,
            shares: MappedArray::new(count + 1)?,
            free: Mutex::new(FreeList { head: 0, fresh: 1 }),
        })
    }

    /// Takes a free slot and sets it. None if all are taken, which the bound on chunks rules out.
    pub fn insert(&self, slot: Slot) -> Option<SlotId> {
        let mut list = self.free.lock();
        let id = if list.head != 0 {
            let id = list.head;
            // SAFETY: a free slot is ours under the lock.
            list.head = unsafe { (*self.cells.get(id as usize)?.0.get()).head };
            id
        } else {
            let id = list.fresh;
            self.cells.get(id as usize)?;
            list.fresh += 1;
            id
        };
        drop(list);
        // SAFETY: just taken off the list, so nobody else has this id.
        unsafe { *self.cells.get(id as usize)?.0.get() = slot };
        self.shares.get(id as usize)?.store(1, Relaxed);
        Some(SlotId(id))
    }

    /// Chunks that have it.
    pub fn shares(&self, id: SlotId) -> u32 {
        self.shares.get(id.0 as usize).map_or(0, |s| s.load(Relaxed))
    }

    /// One more chunk has it. Under the lock of the table of copies; true, for use as a condition.
    pub fn share(&self, id: SlotId) -> bool {
        self.shares.get(id.0 as usize).is_some_and(|s| s.fetch_add(1, Relaxed) < u32::MAX / 2)
    }

    /// One chunk less; was it the last? Under the lock of the table of copies.
    pub fn unshare(&self, id: SlotId) -> bool {
        self.shares.get(id.0 as usize).is_some_and(|s| s.fetch_sub(1, Relaxed) == 1)
    }

    /// A copy of the slot. The caller owns the chunk it belongs to.
    pub fn get(&self, id: SlotId) -> Option<Slot> {
        // SAFETY: the owner of the chunk is the only one to change an in-use slot.
        self.cells.get(id.0 as usize).map(|cell| unsafe { *cell.0.get() })
    }

    /// Replaces a slot that the caller owns.
    pub fn set(&self, id: SlotId, slot: Slot) {
        if let Some(cell) = self.cells.get(id.0 as usize) {
            // SAFETY: as in `get`.
            unsafe { *cell.0.get() = slot };
        }
    }

    /// Puts a slot back on the free list. Its bytes have been given back already.
    pub fn remove(&self, id: SlotId) {
        let Some(cell) = self.cells.get(id.0 as usize) else { return };
        let mut list = self.free.lock();
        // SAFETY: the caller owned the slot and gives it up; under the lock it is the list's.
        unsafe {
            let slot = &mut *cell.0.get();
            slot.kind = Kind::Free;
            slot.head = list.head;
        }
        list.head = id.0;
    }
}

impl Slot {
    /// An empty slot of a kind.
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            len: 0,
            head: 0,
            codec: Codec::Lz4,
            offered: false,
            extent: Extent { first: 0, units: 0, file: 0 },
            sum: 0,
            identity: 0,
            pattern: [0; INLINE],
        }
    }
}
