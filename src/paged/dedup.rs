//! Deduplication: chunks with equal bytes share one stored copy. A table of the stored copies by checksum; on a hit the bytes
//! themselves are compared. Called where slots are filled, given up, rewritten or moved. A slot that stands in the table is
//! changed only under the table's lock, and only while one chunk has it.

use super::pager::{Pager, Scratch};
use super::slot::{Kind, Slot, SlotId};
use crate::ds::MappedArray;
use crate::error::Error;
use crate::sync::Mutex;
use core::sync::atomic::Ordering::Relaxed;

/// Places of the table; at most three quarters are filled, what comes after is not shared.
const PLACES: usize = 1 << 22;

/// The table of stored copies: open addressing, linear probing, no tombstones.
pub struct Twins {
    table: Mutex<Table>,
}

struct Table {
    ids: MappedArray<u32>,
    len: usize,
}

impl Twins {
    /// An empty table; costs address space only.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { table: Mutex::new(Table { ids: MappedArray::new(PLACES)?, len: 0 }) })
    }
}

fn key(slot: &Slot) -> u64 {
    match slot.kind {
        Kind::Swapped => slot.identity as u64,
        _ => slot.sum ^ slot.codec as u64,
    }
}

impl Table {
    /// Calls `f` with the slots that may be equal until it says yes.
    fn find(&self, pager: &Pager, key_sought: u64, mut f: impl FnMut(SlotId, &Slot) -> bool) -> Option<SlotId> {
        let mut at = key_sought as usize % PLACES;
        loop {
            let id = SlotId(*self.ids.get(at).filter(|id| **id != 0)?);
            let slot = pager.slots.get(id)?;
            if key(&slot) == key_sought && f(id, &slot) {
                return Some(id);
            }
            at = (at + 1) % PLACES;
        }
    }

    fn insert(&mut self, id: SlotId, key: u64) -> bool {
        if self.len >= PLACES / 4 * 3 {
            return false;
        }
        let mut at = key as usize % PLACES;
        while self.ids.get(at).is_some_and(|id| *id != 0) {
            at = (at + 1) % PLACES;
        }
        let Some(place) = self.ids.get_mut(at) else { return false };
        *place = id.0;
        self.len += 1;
        true
    }

    /// Takes a slot out and closes the gap (Knuth, TAOCP 6.4, algorithm R).
    fn remove(&mut self, pager: &Pager, id: SlotId, key_of_it: u64) {
        let mut at = key_of_it as usize % PLACES;
        while let Some(here) = self.ids.get(at).copied().filter(|here| *here != 0) {
            if here == id.0 {
                break;
            }
            at = (at + 1) % PLACES;
        }
        if self.ids.get(at) != Some(&id.0) {
            return;
        }
        let mut gap = at;
        loop {
            at = (at + 1) % PLACES;
            let Some(next) = self.ids.get(at).copied().filter(|next| *next != 0) else { break };
            let home = pager.slots.get(SlotId(next)).map_or(at, |slot| key(&slot) as usize % PLACES);
            let stays = if gap <= at { gap < home && home <= at } else { gap < home || home <= at };
            if !stays {
                if let Some(place) = self.ids.get_mut(gap) {
                    *place = next;
                }
                gap = at;
            }
        }
        if let Some(place) = self.ids.get_mut(gap) {
            *place = 0;
        }
        self.len -= 1;
    }
}

impl Pager {
    /// Enters a slot that the caller has just filled, so that others may share it.
    pub fn offer(&self, id: SlotId) {
        let Some(mut slot) = self.slots.get(id).filter(|_| self.deduplicates()) else { return };
        let mut table = self.twins.table.lock();
        slot.offered = table.insert(id, key(&slot));
        self.slots.set(id, slot);
    }

    /// A stored blob with exactly these bytes; the caller has a share of it now.
    pub fn twin_of_blob(&self, blob: &Slot, bytes: &[u8]) -> Option<SlotId> {
        if !self.deduplicates() {
            return None;
        }
        let table = self.twins.table.lock();
        table.find(self, key(blob), |id, slot| {
            let alike = slot.kind == Kind::Compressed && slot.codec == blob.codec && slot.len == blob.len && slot.sum == blob.sum;
            alike && self.pool.holds(&self.arena, slot.head, bytes) && self.slots.share(id)
        })
    }

    /// A chunk in the swap file with exactly these bytes; the caller has a share of it now.
    pub fn twin_on_disk(&self, identity: u128, data: &[u8], scratch: &mut Scratch) -> Option<SlotId> {
        if !self.deduplicates() {
            return None;
        }
        let table = self.twins.table.lock();
        let id = table.find(self, identity as u64, |id, slot| {
            slot.kind == Kind::Swapped && slot.identity == identity && slot.len as usize == data.len() && self.slots.share(id)
        })?;
        drop(table); // our share keeps it as it is while it is read
        let slot = self.slots.get(id)?;
        let (room, _) = scratch.parts();
        let room = room.get_mut(..data.len())?;
        // SAFETY: the scratch is page-aligned and as long as the extent's bytes.
        let read =
            self.swaps.holder(slot.extent).map(|swap| unsafe { swap.read(slot.extent, room.as_ptr() as usize, data.len()) });
        if read == Some(Ok(())) && room == data {
            return Some(id);
        }
        self.release_slot(id);
        None
    }

    /// Takes a slot out of the table so that its owner may write it anew. False if others share it.
    pub fn withdraw(&self, id: SlotId) -> bool {
        let mut table = self.twins.table.lock();
        let Some(mut slot) = self.slots.get(id).filter(|_| self.slots.shares(id) == 1) else { return false };
        if slot.offered {
            table.remove(self, id, key(&slot));
            slot.offered = false;
            self.slots.set(id, slot);
        }
        true
    }

    /// One more chunk has the slot, whose present owner holds the caller. False if the slot has no room for one more.
    pub fn take_share(&self, id: SlotId) -> bool {
        let _table = self.twins.table.lock();
        id.0 != 0 && self.slots.share(id)
    }

    /// Remembers what a compressed chunk's bytes hash to, while no other chunk has its slot.
    pub fn note_identity(&self, id: SlotId, identity: u128) {
        let _table = self.twins.table.lock();
        if let Some(slot) = self.slots.get(id).filter(|s| s.identity == 0 && self.slots.shares(id) == 1) {
            self.slots.set(id, Slot { identity, ..slot });
        }
    }

    /// Gives up one share of a slot; with the last one its bytes and the slot.
    pub fn release_slot(&self, id: SlotId) {
        self.give_up_share(id, false);
    }

    /// Like [`Self::release_slot`] for a region that ends: what nobody else shares goes back to the disk too.
    pub fn discard_slot(&self, id: SlotId) {
        self.give_up_share(id, true);
    }

    fn give_up_share(&self, id: SlotId, discard: bool) {
        let mut table = self.twins.table.lock();
        let Some(slot) = self.slots.get(id) else { return };
        if !self.slots.unshare(id) {
            return;
        }
        if slot.offered {
            table.remove(self, id, key(&slot));
        }
        drop(table);
        self.release_bytes(&slot, discard);
        self.slots.remove(id);
    }

    /// Moves a blob to other units of the pool; the caller owns its chunk. Left where it is if others share it.
    pub fn relocate(&self, id: SlotId, chunk: super::region::ChunkId, scratch: &mut Scratch) {
        let _table = self.twins.table.lock();
        let Some(mut slot) = self.slots.get(id).filter(|s| matches!(s.kind, Kind::Compressed | Kind::LongPattern)) else {
            return;
        };
        let (room, _) = scratch.parts();
        let Some(blob) = room.get_mut(..slot.len as usize).filter(|_| self.slots.shares(id) == 1) else { return };
        if self.pool.load(&self.arena, slot.head, blob)
            && let Some(head) = self.pool.store(&self.arena, blob, chunk)
        {
            self.pool.free(&self.arena, slot.head);
            slot.head = head;
            self.slots.set(id, slot);
        }
    }

    /// Bytes that sharing saves now: what the shares beyond the first would take.
    pub fn saved_share(&self, id: SlotId, bytes: usize) -> usize {
        let shares = self.slots.shares(id).max(1) as usize;
        bytes - bytes / shares
    }

    fn deduplicates(&self) -> bool {
        self.deduplication.load(Relaxed)
    }
}
