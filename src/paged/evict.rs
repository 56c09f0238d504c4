//! Taking chunks out of memory: choosing where their bytes go (nowhere if zero, a pattern, the compressed pool, the swap
//! file), writing in batches, and giving frames back. Runs on the evict workers, on a fill worker that finds no frame, and on
//! a program's thread that asks for it. Takes no lock across a codec or I/O call.

use super::arena::{self, Bay, HUGE_CLASS};
use super::backend::Moved;
use super::lossy::Permit;
use super::pager::{Pager, Scratch};
use super::region::{Chunk, ChunkId, Region};
use super::slot::{Codec, INLINE, Kind, Slot, SlotId};
use super::state::{Act, State, Word};
use super::swap::{Extent, Swap};
use super::{Strategy, state};
use crate::codec::dictionary::{self, Encoded};
use crate::codec::{hash, lz4, pattern};
use crate::error::Class;
use crate::fail;
use crate::monitor::counters::{self, Transfer};
use crate::monitor::{histogram, level};
use crate::os::file::Piece;
use crate::os::worker;
use core::sync::atomic::Ordering::Relaxed;

/// Bytes written to the swap file in one go.
const BATCH_BYTES: usize = 2 << 20;
/// Chunks in one batch, however small.
const BATCH: usize = 32;
/// A chunk that fits into one part of so many without loss is not compressed with it.
const SHORT: usize = 8;
/// Victims in a row that find no place before eviction is given up for now.
const PATIENCE: usize = 64;

/// A chunk that is out of its region: its frame stands in a bay, complete and the evictor's alone.
#[derive(Clone, Copy)]
struct Victim<'a> {
    id: ChunkId,
    chunk: &'a Chunk,
    region: &'a Region,
    data: &'a [u8],
    bay: Bay,
    permit: Option<Permit>,
}

/// Its frame, when it has been stored.
#[derive(Clone, Copy)]
struct Rest {
    bay: Bay,
    ragged: bool,
    /// What the frame holds came from the slot, and not from the program.
    stale: bool,
}

/// A chunk made shorter.
enum Packed {
    /// It repeats its first so many bytes.
    Pattern(usize),
    /// A blob in the scratch.
    Blob { codec: Codec, at: usize, len: usize },
}

/// A chunk that is out of its region and waits for the batch to be written.
#[derive(Clone, Copy)]
struct Pending {
    id: ChunkId,
    bay: Bay,
    ragged: bool,
    size: usize,
    address: usize,
    extent: Extent,
    identity: u128,
}

/// Chunks on their way to the swap file.
struct Batch {
    items: [Option<Pending>; BATCH],
    len: usize,
    bytes: usize,
    /// Chunks that could not be written and went back.
    failed: usize,
}

/// Where a chunk's bytes ended.
enum Stored {
    /// In the chunk's slot, or nowhere because it is zero; the frame is free.
    Done(State),
    /// In the chunk's slot; the frame became a block of the pool.
    FrameGone,
    /// To be written with the batch.
    Later(u128),
    /// Nothing would take it.
    Nowhere,
}

impl Pager {
    /// Evicts until `need` bytes of frames are free again or nothing more can go; gives the bytes freed.
    pub fn evict_some(&'static self, need: usize, pooled_only: bool, scratch: &mut Scratch) -> usize {
        let mut batch = Batch { items: [None; BATCH], len: 0, bytes: 0, failed: 0 };
        let (mut freed, mut failures) = (0, 0);
        while freed + batch.bytes < need && failures + batch.failed < PATIENCE {
            let may = |id| {
                let pooled = !pooled_only || self.regions.both(id).is_some_and(|(_, r)| r.pooled.load(Relaxed));
                pooled && self.regions.chunk(id).is_some_and(|c| Word::load(&c.word).pins() == 0)
            };
            let Some(id) = self.policy.victim(&self.regions, may) else { break };
            let measured = histogram::EVICTIONS.start();
            match self.evict_one(id, &mut batch, scratch) {
                Some(bytes) => freed += bytes,
                None => failures += 1,
            }
            if let Some(measured) = measured {
                measured.stop();
            }
            if batch.bytes >= BATCH_BYTES || batch.len == BATCH {
                freed += self.write(&mut batch);
            }
        }
        freed + self.write(&mut batch)
    }

    /// Evicts one chunk if it can be: bytes of frames freed now (0 if they come with the batch), None if it stays.
    fn evict_one(&'static self, id: ChunkId, batch: &mut Batch, scratch: &mut Scratch) -> Option<usize> {
        let chunk = self.regions.chunk(id)?;
        let Some((_, act)) = Word::step(&chunk.word, Word::evict) else {
            // Somebody owns it for a moment. It was taken off its queue, and must not be forgotten.
            if !matches!(Word::load(&chunk.word).state(), State::Zero | State::Stored | State::Gone | State::Poisoned) {
                self.enqueue(id, chunk);
            }
            return None;
        };
        let (_, region) = self.regions.both(id)?;
        let (class, size) = (region.class(), region.chunk_bytes());
        let bay = match act {
            Act::Drop(bay) => {
                // Read ahead in vain: its slot still holds it.
                if level::basic() {
                    counters::PAGER.ahead_wasted.add(1);
                }
                self.policy.nobody_came(chunk);
                self.streams.lock().judged(false);
                let to = if chunk.slot.load(Relaxed) == 0 { State::Zero } else { State::Stored };
                let rest = Rest { bay, ragged: false, stale: true };
                return self.settle(id, chunk, region, to, rest).then_some(size);
            }
            _ => self.arena.take_empty(class),
        };
        let address = region.address(id);
        let moved = match bay {
            // SAFETY: the chunk is ours and mapped, the bay is empty and ours.
            Some(bay) => unsafe { self.backend.map_out(self.arena.address(class, bay), address, size) },
            None => Moved::Refused,
        };
        let ragged = moved == Moved::InPieces;
        let Some(bay) = bay.filter(|_| moved != Moved::Refused) else {
            if let Some(bay) = bay {
                self.arena.give_empty(class, bay);
            }
            Word::step(&chunk.word, |w| Some((w.mapped(), ())));
            self.backend.wake(address, size);
            self.enqueue(id, chunk);
            return None;
        };
        self.left(region, size);
        // SAFETY: the frame is complete and ours alone; only we may write it until it is settled.
        let data = unsafe { core::slice::from_raw_parts(self.arena.address(class, bay) as *const u8, size) };
        let victim = Victim { id, chunk, region, data, bay, permit: self.leaves(id, region, data) };
        match self.store(victim, scratch) {
            Stored::Done(to) => self.settle(id, chunk, region, to, Rest { bay, ragged, stale: false }).then_some(size),
            Stored::FrameGone => {
                self.leave_pool(region.pooled.load(Relaxed), size);
                let settled = Word::step(&chunk.word, |w| Some(w.evicted(State::Stored, None)));
                if settled.is_some_and(|(_, act)| act == Act::Wake) {
                    self.backend.wake(address, size);
                }
                Some(0)
            }
            Stored::Later(identity) => {
                let item =
                    Pending { id, bay, ragged, size, address: data.as_ptr() as usize, extent: Extent::default(), identity };
                if let Some(place) = batch.items.get_mut(batch.len) {
                    *place = Some(item);
                    batch.len += 1;
                    batch.bytes += size;
                }
                Some(0)
            }
            Stored::Nowhere => {
                self.put_back(id, chunk, region, bay);
                None
            }
        }
    }

    /// A chunk's frame left its region.
    pub fn left(&self, region: &Region, size: usize) {
        self.counters.resident.fetch_sub(size, Relaxed);
        self.counters.evictions.fetch_add(1, Relaxed);
        region.evictions.fetch_add(1, Relaxed);
    }

    /// Ends an eviction whose chunk is stored: the frame is free, unless the chunk is wanted back at once.
    fn settle(&self, id: ChunkId, chunk: &Chunk, region: &Region, to: State, rest: Rest) -> bool {
        let Rest { bay, ragged, stale } = rest;
        // Asked before the step: after it the region may be another one.
        let (class, size, pooled) = (region.class(), region.chunk_bytes(), region.pooled.load(Relaxed));
        match Word::step(&chunk.word, |w| Some(w.evicted(to, Some(bay)))) {
            Some((_, Act::Map(bay))) => {
                if !stale {
                    self.keeps_its_bytes(id, region);
                }
                self.map(id, chunk, region, bay);
                false
            }
            _ => {
                if ragged {
                    self.arena.scrap(class, bay);
                } else {
                    self.arena.give(class, bay);
                }
                self.leave_pool(pooled, size);
                true
            }
        }
    }

    fn put_back(&self, id: ChunkId, chunk: &Chunk, region: &Region, bay: Bay) {
        Word::step(&chunk.word, |w| Some(w.returned(bay)));
        self.map(id, chunk, region, bay);
    }

    /// Finds a place for a chunk's bytes and puts them there, or leaves that to the batch.
    fn store(&'static self, victim: Victim<'_>, scratch: &mut Scratch) -> Stored {
        let Victim { id, chunk, region, data, .. } = victim;
        let old = SlotId(chunk.slot.load(Relaxed));
        let swappable = self.swap_for_eviction().filter(|_| region.swappable.load(Relaxed));
        if !self.compresses() {
            // Repetition costs no memory worth mentioning, so it needs no permission.
            if let Some(to) = pattern::period(data).and_then(|p| self.store_pattern(id, chunk, old, data.get(..p)?)) {
                return Stored::Done(to);
            }
        }
        let mut identity = 0;
        if let Some(slot) = self.slots.get(old).filter(|s| old.0 != 0 && s.kind == Kind::Swapped) {
            identity = hash::sum128(data);
            if slot.identity == identity {
                return Stored::Done(State::Stored); // unchanged since it was read
            }
        }
        if self.compresses() {
            match self.store_compressed(victim, old, swappable, scratch) {
                Stored::Nowhere => self.keeps_its_bytes(id, region),
                done => return done,
            }
        }
        if swappable.is_none() {
            return Stored::Nowhere;
        }
        if identity == 0 {
            identity = hash::sum128(data);
        }
        if let Some(twin) = self.twin_on_disk(identity, data, scratch) {
            self.adopt(chunk, old, twin);
            return Stored::Done(State::Stored);
        }
        Stored::Later(identity)
    }

    fn store_pattern(&self, id: ChunkId, chunk: &Chunk, old: SlotId, period: &[u8]) -> Option<State> {
        if pattern::is_zero(period) {
            self.replace(chunk, old, None)?;
            return Some(State::Zero);
        }
        let mut slot = Slot::new(Kind::Pattern);
        slot.len = period.len() as u32;
        if let Some(to) = slot.pattern.get_mut(..period.len()).filter(|_| period.len() <= INLINE) {
            to.copy_from_slice(period);
        } else {
            slot.kind = Kind::LongPattern;
            slot.sum = hash::sum64(period);
            if !self.pool.fits(period.len()) {
                self.grow_pool();
            }
            slot.head = self.pool.store(&self.arena, period, id)?;
        }
        self.replace(chunk, old, Some(slot))?;
        Some(State::Stored)
    }

    fn store_compressed(&'static self, victim: Victim<'_>, old: SlotId, swap: Option<&Swap>, scratch: &mut Scratch) -> Stored {
        let Victim { id, chunk, region, data, .. } = victim;
        let limit = match (swap.is_some(), self.strategy()) {
            (false, _) | (_, Strategy::Compact) => data.len() / 32 * 31,
            (_, Strategy::Adaptive) => data.len() / 4 * 3,
            (_, Strategy::Throughput) => data.len() / 3 * 2,
            (_, Strategy::Latency) => data.len() / 2,
        };
        let (codec, at, len) = match self.pack(victim, limit, scratch) {
            Some(Packed::Blob { codec, at, len }) => (codec, at, len),
            Some(Packed::Pattern(period)) => {
                let page = data.get(..period).unwrap_or(data);
                return self.store_pattern(id, chunk, old, page).map_or(Stored::Nowhere, Stored::Done);
            }
            None => return Stored::Nowhere,
        };
        let Some(blob) = scratch.parts().0.get(at..at + len) else { return Stored::Nowhere };
        let slot = Slot { len: len as u32, codec, sum: hash::sum64(blob), ..Slot::new(Kind::Compressed) };
        if let Some(twin) = self.twin_of_blob(&slot, blob) {
            self.adopt(chunk, old, twin);
            return Stored::Done(State::Stored);
        }
        let crowded = codec == Codec::Amplitude && self.pool_is_crowded();
        if crowded && let Some(done) = swap.and_then(|swap| self.swap_blob(swap, chunk, old, slot, blob.as_ptr() as usize)) {
            return done;
        }
        if (self.pool.fits(len) || self.grow_pool())
            && let Some(head) = self.pool.store(&self.arena, blob, id)
        {
            return self
                .replace(chunk, old, Some(Slot { head, ..slot }))
                .map_or(Stored::Nowhere, |()| Stored::Done(State::Stored));
        }
        if region.class() == HUGE_CLASS && self.pool.bytes() + arena::bytes(HUGE_CLASS) <= self.pool_bound() {
            return self.store_in_own_frame(victim, old, slot, blob);
        }
        swap.and_then(|swap| self.swap_blob(swap, chunk, old, slot, blob.as_ptr() as usize)).unwrap_or(Stored::Nowhere)
    }

    /// Makes a chunk shorter, into the scratch: which codec it gets. None if it cannot be brought below `limit` bytes.
    fn pack(&self, victim: Victim<'_>, limit: usize, scratch: &mut Scratch) -> Option<Packed> {
        let data = victim.data;
        let (room, context) = scratch.parts();
        let few = |encoded: &Option<Encoded>, most: usize| match encoded {
            Some(Encoded::Pattern(period)) => Some(Packed::Pattern(*period)),
            Some(Encoded::Blob { at, len }) if *len <= most => {
                Some(Packed::Blob { codec: Codec::Dictionary, at: *at, len: *len })
            }
            _ => None,
        };
        let pages = dictionary::encode(&mut context.table, data, room);
        let Some(permit) = victim.permit else {
            return few(&pages, limit).or_else(|| {
                let len = lz4::compress(context, data, room, limit)?;
                Some(Packed::Blob { codec: Codec::Lz4, at: 0, len })
            });
        };
        if let Some(packed) = few(&pages, limit.min(data.len() / SHORT)) {
            return Some(packed); // nothing need be lost
        }
        match self.encode(permit, victim.id, victim.region, data, room, context) {
            Some(len) if len <= limit => return Some(Packed::Blob { codec: Codec::Amplitude, at: 0, len }),
            _ => self.keeps_its_bytes(victim.id, victim.region),
        }
        self.pack(Victim { permit: None, ..victim }, limit, scratch)
    }

    /// The chunk's own frame becomes the block that its blob lies in: eviction needs no other memory, ever.
    fn store_in_own_frame(&self, victim: Victim<'_>, old: SlotId, slot: Slot, blob: &[u8]) -> Stored {
        let Victim { id, chunk, bay, .. } = victim;
        // The slot first: once the frame is given there is no way back.
        let Some(place) = self.slots.insert(Slot::new(Kind::Pattern)) else { return Stored::Nowhere };
        let Some(head) = self.pool.store_and_grow(&self.arena, blob, id, bay) else {
            self.slots.remove(place);
            return Stored::Nowhere;
        };
        self.enter(chunk, place, old, Slot { head, ..slot });
        Stored::FrameGone
    }

    fn enter(&self, chunk: &Chunk, place: SlotId, old: SlotId, slot: Slot) {
        self.slots.set(place, slot);
        self.adopt(chunk, old, place);
        self.offer(place);
    }

    /// The chunk has this slot from now on, and no longer the old one.
    fn adopt(&self, chunk: &Chunk, old: SlotId, slot: SlotId) {
        chunk.slot.store(slot.0, Relaxed);
        if old.0 != 0 {
            self.release_slot(old);
        }
    }

    /// A blob that the pool has no room for goes to the swap file as it is.
    fn swap_blob(&self, swap: &Swap, chunk: &Chunk, old: SlotId, mut slot: Slot, blob: usize) -> Option<Stored> {
        let extent = swap.allocate(slot.len as usize)?;
        slot.kind = Kind::SwappedBlob;
        slot.extent = extent;
        let transfer = Transfer::begin();
        // SAFETY: blobs begin at a page of the scratch, which has room for whole units beyond them.
        let written = unsafe { swap.write(extent, &[Piece { start: blob, len: extent.bytes() }]) };
        transfer.end(if written.is_ok() { extent.bytes() } else { 0 }, true);
        if let Err(error) = written {
            self.swaps.release(extent);
            self.write_failed(swap, error, slot.len as usize);
            return None;
        }
        self.replace(chunk, old, Some(slot)).map(|()| Stored::Done(State::Stored))
    }

    /// One more block for the pool, if its bound and the budget allow.
    fn grow_pool(&self) -> bool {
        if self.pool.bytes() + arena::bytes(HUGE_CLASS) > self.pool_bound() {
            return false;
        }
        let Some(frame) = self.arena.take(HUGE_CLASS, &self.backend) else { return false };
        self.pool.grow(frame.bay);
        true
    }

    /// The chunk's slot from now on, open to others with the same bytes; the old one is given up.
    fn replace(&self, chunk: &Chunk, old: SlotId, slot: Option<Slot>) -> Option<()> {
        let id = match slot {
            Some(slot) => self.slots.insert(slot)?,
            None => SlotId(0),
        };
        self.adopt(chunk, old, id);
        if slot.is_some_and(|s| matches!(s.kind, Kind::Compressed | Kind::Swapped)) {
            self.offer(id);
        }
        Some(())
    }

    /// Writes the batch to the swap file, in as few writes as its extents allow, and settles its chunks. Gives bytes freed.
    /// What cannot be written goes back into its region: nothing is lost.
    fn write(&'static self, batch: &mut Batch) -> usize {
        let count = core::mem::take(&mut batch.len);
        batch.bytes = 0;
        let Some(items) = batch.items.get_mut(..count).filter(|items| !items.is_empty()) else { return 0 };
        let Some(swap) = self.swaps.own() else { return 0 };
        let mut freed = 0;
        for item in items.iter_mut().flatten() {
            item.extent = self.extent_for(swap, item).unwrap_or_default();
        }
        let mut at = 0;
        while let Some(Some(first)) = items.get(at).copied() {
            let mut pieces = [Piece { start: 0, len: 0 }; BATCH];
            let mut n = 0;
            let mut end = first.extent.first;
            for item in items.get(at..).unwrap_or(&[]).iter().flatten() {
                if n > 0 && (item.extent.units == 0 || item.extent.first != end) {
                    break;
                }
                end = item.extent.first + u32::from(item.extent.units);
                if let Some(piece) = pieces.get_mut(n) {
                    *piece = Piece { start: item.address, len: item.size };
                }
                n += 1;
            }
            let transfer = Transfer::begin();
            let written = if first.extent.units == 0 {
                Err(libc::ENOSPC)
            } else {
                // SAFETY: the pieces are frames that we own until they are settled below.
                unsafe { swap.write(first.extent, pieces.get(..n).unwrap_or(&[])) }
            };
            transfer.end(if written.is_ok() { pieces.iter().map(|piece| piece.len).sum() } else { 0 }, true);
            if let Err(error) = written {
                self.write_failed(swap, error, first.size);
            }
            batch.failed += if written.is_ok() { 0 } else { n };
            for item in items.get(at..at + n).unwrap_or(&[]).iter().flatten() {
                freed += self.settle_written(item, written.is_ok());
            }
            at += n;
        }
        freed
    }

    /// Where a chunk is written: over its own old copy if there is one, else in free space.
    fn extent_for(&self, swap: &Swap, item: &Pending) -> Option<Extent> {
        let chunk = self.regions.chunk(item.id)?;
        let old = SlotId(chunk.slot.load(Relaxed));
        if let Some(slot) = self.slots.get(old).filter(|s| old.0 != 0 && s.kind == Kind::Swapped)
            && self.swaps.is_ours(slot.extent)
            && self.withdraw(old)
        {
            return Some(slot.extent);
        }
        swap.allocate(item.size).or_else(|| {
            self.give_up_copies();
            swap.allocate(item.size)
        })
    }

    fn settle_written(&self, item: &Pending, written: bool) -> usize {
        let Some((chunk, region)) = self.regions.both(item.id) else { return 0 };
        let old = SlotId(chunk.slot.load(Relaxed));
        let own = self.slots.get(old).filter(|s| old.0 != 0 && s.extent == item.extent && s.kind == Kind::Swapped);
        let slot = Slot { len: item.size as u32, extent: item.extent, identity: item.identity, ..Slot::new(Kind::Swapped) };
        let entered = written
            && match own {
                Some(_) => {
                    self.slots.set(old, slot);
                    self.offer(old);
                    true
                }
                None => self.replace(chunk, old, Some(slot)).is_some(),
            };
        if entered {
            let rest = Rest { bay: item.bay, ragged: item.ragged, stale: false };
            return if self.settle(item.id, chunk, region, State::Stored, rest) { item.size } else { 0 };
        }
        // Half-written bytes must not be taken for the chunk: an old copy in the same place is no copy any more.
        if own.is_some() {
            chunk.slot.store(0, Relaxed);
            self.release_slot(old);
        } else {
            self.swaps.release(item.extent);
        }
        self.put_back(item.id, chunk, region, item.bay);
        0
    }

    /// Told once a second at most: a full disk fails every write.
    #[cold]
    pub fn write_failed(&self, swap: &Swap, error: i32, bytes: usize) {
        let now = worker::seconds();
        if self.counters.write_error_told.swap(now, Relaxed) == now {
            return;
        }
        self.troubles.tell(
            Class::Io,
            &fail!(
                Io,
                "{bytes} bytes could not be written to the swap file (errno {error}{}; {} of {} bytes used); the data stays in memory: make room on that disk or give QMEM_SWAP_DIR another",
                if error == libc::ENOSPC { ", no space" } else { "" },
                swap.used(),
                swap.capacity
            ),
        );
    }

    /// Swap space ran out: copies of chunks that are resident again are given up.
    fn give_up_copies(&self) {
        for (_, region) in self.regions.live() {
            for id in region.chunks() {
                let Some(chunk) = self.regions.chunk(id) else { continue };
                if chunk.slot.load(Relaxed) == 0 || Word::step(&chunk.word, Word::hold_resident).is_none() {
                    continue;
                }
                let Some((chunk, region)) = self.regions.both(id) else { continue };
                let (address, size) = (region.address(id), region.chunk_bytes());
                let slot = SlotId(chunk.slot.swap(0, Relaxed));
                if slot.0 != 0 {
                    self.release_slot(slot);
                }
                Word::step(&chunk.word, |w| Some((w.mapped(), ())));
                self.backend.wake(address, size);
                self.enqueue(id, chunk);
            }
        }
    }

    /// Evicts one chunk by number, for a program that asks for it. False if it stays.
    pub fn evict_chunk(&'static self, id: ChunkId, scratch: &mut Scratch) -> bool {
        self.policy.remove(&self.regions, id);
        let mut batch = Batch { items: [None; BATCH], len: 0, bytes: 0, failed: 0 };
        let gone = self.evict_one(id, &mut batch, scratch).is_some();
        self.write(&mut batch);
        let settled = self.regions.chunk(id).map(|c| Word::load(&c.word).state());
        if settled == Some(state::State::Resident) || settled == Some(state::State::Staged) {
            self.policy.insert(&self.regions, id);
            return false;
        }
        gone || matches!(settled, Some(state::State::Zero | state::State::Stored))
    }
}
