//! Emptying blocks of the compressed pool, so that their frames are free again: into other blocks where there is room, else into
//! the swap file. Runs on the evict workers and wherever no chunk can be evicted. Each blob moves through its chunk's owner.

use super::arena::{self, Bay, HUGE_CLASS};
use super::pager::{Pager, Scratch};
use super::region::ChunkId;
use super::slot::{Kind, SlotId};
use super::state::{State, Word};
use super::swap::Swap;
use crate::os::file::Piece;
use core::sync::atomic::Ordering::Relaxed;

impl Pager {
    /// Moves the blobs of the pool's emptiest block elsewhere in the pool.
    pub fn compact(&'static self, scratch: &mut Scratch) {
        let Some(bay) = self.pool.emptiest() else { return };
        self.empty(bay, |slot, id| self.relocate(slot, id, scratch));
    }

    /// Sends the blobs of one block on to the swap file. Bytes of frames won by it, 0 if nothing could be sent.
    pub fn spill(&'static self, scratch: &mut Scratch) -> usize {
        let Some(swap) = self.swap_for_eviction() else { return 0 };
        let Some(bay) = self.pool.next_block() else { return 0 };
        let mut sent = 0;
        self.empty(bay, |slot, id| {
            let swappable = self.regions.both(id).is_some_and(|(_, region)| region.swappable.load(Relaxed));
            sent += usize::from(swappable && self.send_on(swap, slot, scratch));
        });
        if sent > 0 { arena::bytes(HUGE_CLASS) } else { 0 }
    }

    /// Calls `take_away` with every stored blob of a block that takes no new ones, its chunk owned meanwhile.
    fn empty(&self, bay: Bay, mut take_away: impl FnMut(SlotId, ChunkId)) {
        let mut from = 0;
        while let Some((id, next)) = self.pool.owner_in(bay, from) {
            from = next;
            if self.regions.chunk(id).is_none_or(|c| Word::step(&c.word, Word::hold_stored).is_none()) {
                continue;
            }
            let Some((chunk, region)) = self.regions.both(id) else { continue };
            let (address, size) = (region.address(id), region.chunk_bytes());
            take_away(SlotId(chunk.slot.load(Relaxed)), id);
            Word::step(&chunk.word, |w| Some(w.unfilled(State::Stored)));
            self.backend.wake(address, size);
        }
        self.pool.reopen(&self.arena, bay);
    }

    /// Writes a blob to the swap file instead of the pool; the caller owns its chunk. False if it stays: it is shared, damaged
    /// (which its next reader will tell), or the file takes no more.
    fn send_on(&self, swap: &Swap, id: SlotId, scratch: &mut Scratch) -> bool {
        if !self.slots.get(id).is_some_and(|s| s.kind == Kind::Compressed) || !self.withdraw(id) {
            return false;
        }
        let Some(mut slot) = self.slots.get(id) else { return false };
        let (room, _) = scratch.parts();
        let read = room.get_mut(..slot.len as usize).is_some_and(|blob| self.pool.load(&self.arena, slot.head, blob));
        if let Some(extent) = swap.allocate(slot.len as usize).filter(|_| read) {
            // SAFETY: the scratch is page-aligned and has room for whole units.
            match unsafe { swap.write(extent, &[Piece { start: room.as_ptr() as usize, len: extent.bytes() }]) } {
                Ok(()) => {
                    self.pool.free(&self.arena, slot.head);
                    slot.kind = Kind::SwappedBlob;
                    slot.extent = extent;
                    self.slots.set(id, slot);
                    return true;
                }
                Err(error) => {
                    self.swaps.release(extent);
                    self.write_failed(swap, error, slot.len as usize);
                }
            }
        }
        self.offer(id);
        false
    }
}
