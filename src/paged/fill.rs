//! Bringing chunks into memory: faults, reading ahead, and what a frame is made of. Runs on the fill workers. Takes no lock
//! across a codec or I/O call, and never touches a region's own addresses.

use super::Strategy;
use super::arena::{self, Frame};
use super::pager::{POOL_LIMIT, Pager, Scratch};
use super::region::{Chunk, ChunkId, Region};
use super::slot::{Codec, Kind, Slot, SlotId};
use super::state::{Act, State, Word};
use crate::codec::{amplitude, dictionary, hash, lz4, pattern, stream};
use crate::config;
use crate::error::{Class, Error};
use crate::fail;
use crate::monitor::counters::{self, FAULTS, Transfer};
use crate::monitor::events::{self, Kind as Event};
use crate::monitor::{histogram, level};
use crate::os::uffd::Fault;
use crate::os::{clock, output, worker};
use core::sync::atomic::Ordering::Relaxed;

/// Chunks looked at ahead of a fault: those in memory are passed.
const LOOK_AHEAD: usize = 4096;
/// Times a stream must have been right for its chunks to be mapped before they are asked for.
const SURE: u32 = 4;
/// Tries for a frame before the error handler is asked, a fifth of a second; each waits a little longer than the one before.
const FIRST_TRIES: i64 = 20;
/// Tries where no handler can be asked, about ten seconds, before an access is given up.
const LAST_TRIES: i64 = 140;

impl Pager {
    /// Serves one fault.
    pub fn serve(&'static self, fault: Fault, scratch: &mut Scratch) {
        self.counters.faults.fetch_add(1, Relaxed);
        let from = clock::monotonic();
        let found = super::region_index(fault.address).and_then(|index| {
            let region = self.regions.region(index)?;
            Some((index, region, region.chunk_at(fault.address)?))
        });
        let Some((index, region, id)) = found else {
            self.backend.wake(fault.address, crate::os::vm::PAGE);
            return;
        };
        region.faults.fetch_add(1, Relaxed);
        let Some(chunk) = self.regions.chunk(id) else { return };
        let Some((before, act)) = Word::step(&chunk.word, |w| Some(w.fault())) else { return };
        // The fault may be out of date and its region another one by now; what we own is sure.
        let Some((chunk, region)) = self.regions.both(id) else { return self.backend.wake(fault.address, crate::os::vm::PAGE) };
        let again = matches!(before.state(), State::Stored | State::Staged) && chunk.slot.load(Relaxed) != 0;
        match act {
            Act::Fill => self.fill(id, chunk, region, before.state(), Some(fault.thread), scratch),
            Act::Map(bay) => self.map(id, chunk, region, bay),
            Act::Wake => self.fault_in_place(chunk, id, &fault),
            Act::Poison => self.backend.poison(region.address(id), region.chunk_bytes()),
            // Its owner himself met a page that the program had dropped.
            // SAFETY: the chunk is mapped: it is being made ready to be moved out.
            _ if self.backend.is_unsharing(&fault) => unsafe { self.backend.repair(&fault) },
            Act::Wait => self.deadlocked(id, fault.thread),
            _ => {}
        }
        let nanos = clock::monotonic().saturating_sub(from);
        FAULTS.served(nanos, again);
        if before.state() == State::Staged {
            counters::PAGER.ahead_hits.add(1);
            self.streams.lock().judged(true);
        }
        if level::detailed() {
            histogram::FAULTS.record(nanos);
        }
        self.look_ahead(fault.thread, index, region, id);
    }

    /// A fault in a chunk that is mapped, or was when we looked.
    fn fault_in_place(&self, chunk: &Chunk, id: ChunkId, fault: &Fault) {
        let address = fault.address;
        if Word::step(&chunk.word, Word::hold_resident).is_some()
            && let Some((chunk, region)) = self.regions.both(id)
        {
            let (start, size) = (region.address(id), region.chunk_bytes());
            if region.chunk_at(address) == Some(id) {
                // SAFETY: the chunk is mapped and ours until `mapped` below, so the page cannot be one that is moving.
                unsafe { self.backend.repair(fault) };
            }
            Word::step(&chunk.word, |w| Some((w.mapped(), ())));
            self.backend.wake(start, size); // whoever met the chunk while we held it
            self.enqueue(id, chunk); // an evictor may have met it too and dropped it from the queue
        }
        self.backend.wake(address, crate::os::vm::PAGE);
    }

    /// Prepares a frame for a chunk that the caller owns (Filling), and maps it if somebody waits. `fault`: the thread that does;
    /// None: it is read ahead.
    pub fn fill(
        &'static self,
        id: ChunkId,
        chunk: &Chunk,
        region: &Region,
        was: State,
        fault: Option<u32>,
        scratch: &mut Scratch,
    ) {
        let patience = if fault.is_some() { FIRST_TRIES } else { 1 };
        let Some(frame) = self.frame_for(region, patience, scratch) else {
            return self.no_frame_for(id, chunk, region, was, fault, scratch);
        };
        self.fill_frame(id, chunk, region, was, fault, frame, scratch);
    }

    #[allow(clippy::too_many_arguments)] // the second half of `fill`
    fn fill_frame(
        &'static self,
        id: ChunkId,
        chunk: &Chunk,
        region: &Region,
        was: State,
        fault: Option<u32>,
        frame: Frame,
        scratch: &mut Scratch,
    ) {
        let (class, size) = (region.class(), region.chunk_bytes());
        let data = self.frame_bytes(region, frame);
        if let Err(why) = self.load_chunk(chunk, frame, data, scratch) {
            self.arena.give(class, frame.bay);
            self.leave_pool(region.pooled.load(Relaxed), size);
            match fault {
                None => self.unfill(id, chunk, region, was), // whoever needs it will be told
                Some(thread) => self.poison(id, chunk, region, thread, why),
            }
            return;
        }
        match Word::step(&chunk.word, |w| Some(w.filled(frame.bay, fault.is_some()))) {
            Some((_, Act::Map(bay))) => self.map(id, chunk, region, bay),
            _ => self.policy.insert(&self.regions, id),
        }
    }

    /// The bytes of a frame that was taken for the caller.
    pub fn frame_bytes(&self, region: &Region, frame: Frame) -> &'static mut [u8] {
        let start = self.arena.address(region.class(), frame.bay) as *mut u8;
        // SAFETY: the frame was taken for us: resident, a chunk's bytes long, nobody else's until it is mapped or given back.
        unsafe { core::slice::from_raw_parts_mut(start, region.chunk_bytes()) }
    }

    /// Fills a frame with the chunk's bytes.
    pub fn load_chunk(&self, chunk: &Chunk, frame: Frame, data: &mut [u8], scratch: &mut Scratch) -> Result<(), &'static str> {
        self.load(SlotId(chunk.slot.load(Relaxed)), frame, data, scratch)
    }

    /// The bytes of a chunk, from wherever they are, into a frame. Err: why they are not to be had.
    fn load(&self, id: SlotId, frame: Frame, data: &mut [u8], scratch: &mut Scratch) -> Result<(), &'static str> {
        let Some(slot) = self.slots.get(id).filter(|_| id.0 != 0) else {
            if !frame.fresh {
                stream::zero(data);
            }
            return Ok(());
        };
        let (room, _) = scratch.parts();
        let Some((blob, work)) = room.split_at_mut_checked(slot.len as usize) else { return Err("its slot is damaged") };
        match slot.kind {
            Kind::Pattern => pattern::repeat(slot.pattern.get(..slot.len as usize).unwrap_or(&[]), data),
            Kind::LongPattern => {
                let whole = self.pool.load(&self.arena, slot.head, blob) && hash::sum64(blob) == slot.sum;
                whole.then_some(()).ok_or("its pattern in the compressed pool fails its checksum")?;
                pattern::repeat(blob, data);
            }
            Kind::Compressed => {
                let whole = self.pool.load(&self.arena, slot.head, blob) && unpack(&slot, blob, data, work);
                whole.then_some(()).ok_or("its bytes in the compressed pool fail their checksum")?;
            }
            Kind::SwappedBlob => {
                self.read(&slot, blob.as_ptr() as usize, slot.len as usize)?;
                unpack(&slot, blob, data, work).then_some(()).ok_or("its bytes in the swap file fail their checksum")?;
            }
            Kind::Swapped => {
                self.read(&slot, data.as_ptr() as usize, data.len())?;
                (hash::sum128(data) == slot.identity).then_some(()).ok_or("its bytes in the swap file fail their checksum")?;
            }
            Kind::Free => return Err("its slot is empty"),
        }
        Ok(())
    }

    fn read(&self, slot: &Slot, to: usize, len: usize) -> Result<(), &'static str> {
        let swap = self.swaps.holder(slot.extent).ok_or("its swap file is gone")?;
        let transfer = Transfer::begin();
        // SAFETY: `to` is a frame or scratch of ours, page-aligned, with room for whole units.
        let mut result = unsafe { swap.read(slot.extent, to, len) };
        if result.is_err() {
            worker::pause(1000); // a disk may recover from one bad moment
            // SAFETY: as above.
            result = unsafe { swap.read(slot.extent, to, len) };
        }
        transfer.end(len, false);
        result.map_err(|_| "the swap file cannot be read")
    }

    /// Moves a complete frame into its region. The caller owns the chunk.
    pub fn map(&self, id: ChunkId, chunk: &Chunk, region: &Region, bay: arena::Bay) {
        let (class, size) = (region.class(), region.chunk_bytes());
        self.comes_back(id, region);
        // What was stored is given up before the program can write: either it is kept to recognise an unchanged chunk, or
        // its bytes are of no more use.
        let slot = SlotId(chunk.slot.load(Relaxed));
        if slot.0 != 0 && !self.worth_keeping(slot) {
            chunk.slot.store(0, Relaxed);
            self.release_slot(slot);
        }
        let address = region.address(id);
        // SAFETY: the chunk is ours, nothing is mapped there, and the bay holds its complete frame.
        unsafe { self.backend.map_in(address, self.arena.address(class, bay), size) };
        self.arena.give_empty(class, bay);
        self.counters.resident.fetch_add(size, Relaxed);
        let settled = Word::step(&chunk.word, |w| Some((w.mapped(), ())));
        if settled.is_some_and(|(before, ())| before.wanted()) {
            // A fault may have come after the pages did: in one that the program has dropped since. It waits for us.
            self.backend.wake(address, size);
        }
        self.enqueue(id, chunk);
    }

    /// Has a chunk with a frame where the policy finds it, unless it is pinned.
    pub fn enqueue(&self, id: ChunkId, chunk: &Chunk) {
        if Word::load(&chunk.word).pins() > 0 {
            self.policy.remove(&self.regions, id);
            if Word::load(&chunk.word).pins() > 0 {
                return; // whoever unpins it does this again
            }
        }
        self.policy.insert(&self.regions, id);
    }

    /// A copy in the swap file is kept while the chunk is resident, so that it need not be written again if it does not
    /// change; not when swap space runs so low that resident chunks might need it.
    fn worth_keeping(&self, id: SlotId) -> bool {
        let Some(slot) = self.slots.get(id) else { return false };
        slot.kind == Kind::Swapped && self.swaps.own().is_none_or(|s| s.free() > 2 * crate::monitor::account::budget())
    }

    /// A frame for a chunk of this region: free, new, or won by eviction, in so many tries that wait longer and longer.
    pub fn frame_for(&'static self, region: &Region, tries: i64, scratch: &mut Scratch) -> Option<Frame> {
        let class = region.class();
        let size = region.chunk_bytes();
        for attempt in 0..tries {
            if self.join_pool(region, size, scratch) {
                loop {
                    if let Some(frame) = self.arena.take(class, &self.backend) {
                        self.workers.wake_evictors_if(self);
                        return Some(frame);
                    }
                    if self.evict_some(size, false, scratch) == 0 && self.spill(scratch) == 0 {
                        break;
                    }
                }
                self.leave_pool(region.pooled.load(Relaxed), size);
            }
            if self.gate.is_closed() {
                return None; // a fork that waits must not wait for memory
            }
            if attempt + 1 < tries {
                worker::pause(attempt.min(100) * 1000 + 50);
            }
        }
        None
    }

    /// Counts a frame against the unified pool's bound before it is taken, evicting other pooled chunks if need be.
    fn join_pool(&'static self, region: &Region, size: usize, scratch: &mut Scratch) -> bool {
        if !region.pooled.load(Relaxed) {
            return true;
        }
        loop {
            let bound = match POOL_LIMIT.load(Relaxed) {
                0 => usize::MAX,
                limit => limit,
            };
            if self.pooled.fetch_update(Relaxed, Relaxed, |now| now.checked_add(size).filter(|sum| *sum <= bound)).is_ok() {
                return true;
            }
            if self.evict_some(size, true, scratch) == 0 {
                return false;
            }
        }
    }

    /// A pooled region's frame was given back.
    pub fn leave_pool(&self, pooled: bool, size: usize) {
        if pooled {
            self.pooled.fetch_sub(size, Relaxed);
        }
    }

    /// Why a chunk has no frame.
    #[cold]
    pub fn no_frame(&self) -> Error {
        fail!(
            OutOfMemory,
            "no memory for a paged chunk: {} of the budget's {} bytes are resident, {} bytes pinned, swap has {} bytes free; an access waits: unpin or free buffers, enable swapping, or raise max_memory",
            crate::monitor::account::resident(),
            crate::monitor::account::budget(),
            self.counters.pinned.load(Relaxed),
            self.swap_for_eviction().map_or(0, |s| s.free())
        )
    }

    /// A chunk that no frame was to be had for. Its data is where it was; only an access that waits is given up in the end.
    #[cold]
    fn no_frame_for(
        &'static self,
        id: ChunkId,
        chunk: &Chunk,
        region: &Region,
        was: State,
        fault: Option<u32>,
        scratch: &mut Scratch,
    ) {
        let Some(thread) = fault.filter(|_| !self.gate.is_closed()) else { return self.unfill(id, chunk, region, was) };
        if self.in_trouble(id, Class::Allocation, &self.no_frame(), thread) {
            return;
        }
        if let Some(frame) = self.frame_for(region, LAST_TRIES, scratch) {
            return self.fill_frame(id, chunk, region, was, fault, frame, scratch);
        }
        if self.gate.is_closed() {
            return self.unfill(id, chunk, region, was);
        }
        self.troubles.tell(Class::Allocation, &self.no_frame());
        self.give_up(id, chunk, region, Class::Allocation);
    }

    /// The chunk is again what it was. Whoever waits faults again, and is waited for then.
    fn unfill(&self, id: ChunkId, chunk: &Chunk, region: &Region, was: State) {
        let (address, size) = (region.address(id), region.chunk_bytes());
        Word::step(&chunk.word, |w| Some(w.unfilled(was)));
        self.backend.wake(address, size);
    }

    /// Why a chunk's data is not to be had now.
    #[cold]
    pub fn unreadable(&self, id: ChunkId, region: &Region, why: &str) -> Error {
        fail!(
            Corrupt,
            "chunk {} of the paged buffer at {:#x} ({} bytes from {:#x}) cannot be read back: {why}",
            id - region.first.load(Relaxed),
            region.start.load(Relaxed),
            region.chunk_bytes(),
            region.address(id)
        )
    }

    /// A chunk that the caller owns is given up: its address stays ours until the end of this.
    #[cold]
    pub fn give_up(&self, id: ChunkId, chunk: &Chunk, region: &Region, class: Class) {
        events::note(Event::ChunkLost, region.address(id) as u64, region.chunk_bytes() as u64);
        let what = if class == Class::Corruption { "is lost" } else { "is given up for want of memory" };
        output::line(format_args!(
            "qmem: chunk {} of the paged buffer at {:#x} {what}; accesses to it raise SIGBUS, the rest of the buffer is intact",
            id - region.first.load(Relaxed),
            region.start.load(Relaxed)
        ));
        self.backend.poison(region.address(id), region.chunk_bytes());
        Word::step(&chunk.word, |w| (w.state() == State::Filling).then(|| w.poisoned()));
    }

    #[cold]
    fn poison(&self, id: ChunkId, chunk: &Chunk, region: &Region, thread: u32, why: &str) {
        let error = self.unreadable(id, region, why);
        if !self.in_trouble(id, Class::Corruption, &error, thread) {
            self.troubles.tell(Class::Corruption, &error);
            self.give_up(id, chunk, region, Class::Corruption);
        }
    }

    /// Follows the fault's stream and queues what comes next.
    fn look_ahead(&self, thread: u32, index: u32, region: &Region, id: ChunkId) {
        let depth = self.depth(region);
        if depth == 0 || self.workers.quiet() {
            return;
        }
        let state = |c: ChunkId| self.regions.chunk(c).map_or(State::Gone, |c| Word::load(&c.word).state());
        let passed = |c: ChunkId| !matches!(state(c), State::Zero | State::Stored);
        let (found, trusted) = {
            let mut streams = self.streams.lock();
            (streams.fault(thread, index, id, passed), streams.trusted())
        };
        let Some(ahead) = found else { return };
        // Where the guess was often wrong, one chunk at a time shows when it is right again.
        let depth = if trusted { depth.min(ahead.hits as usize * 2) } else { 1 };
        let chunks = region.chunks();
        // A stream that has proved itself gets the next chunks mapped at once; the one behind them stays unmapped and tells
        // when the sweep gets there.
        let (mut at, mut there, mut queued) = (id as i64, 0, 0);
        let mut mapped = if ahead.hits >= SURE { 0 } else { depth / 2 };
        for _ in 0..LOOK_AHEAD {
            at += ahead.stride;
            if there >= depth || at < chunks.start as i64 || at >= chunks.end as i64 {
                break;
            }
            match state(at as ChunkId) {
                State::Staged if there == 0 && mapped < depth / 2 && self.map_ahead(at as ChunkId, region) => mapped += 1,
                State::Zero | State::Stored => {
                    self.workers.read_ahead(at as ChunkId);
                    there += 1;
                    queued += 1;
                }
                State::Staged | State::Filling => there += 1,
                _ => {}
            }
        }
        self.workers.wake_fillers(queued);
    }

    /// Maps a chunk that was read ahead, before it is asked for. False if it is no longer there.
    fn map_ahead(&self, id: ChunkId, region: &Region) -> bool {
        let Some(chunk) = self.regions.chunk(id) else { return false };
        let staged = Word::step(&chunk.word, |w| (w.state() == State::Staged).then(|| w.fault()));
        let Some((_, Act::Map(bay))) = staged else { return false };
        self.map(id, chunk, region, bay);
        if level::basic() {
            counters::PAGER.ahead_mapped.add(1);
        }
        true
    }

    /// Chunks to keep ready ahead of a stream.
    fn depth(&self, region: &Region) -> usize {
        let set = config::PREFETCH_DEPTH.get();
        let chosen = match (set, self.strategy()) {
            (0, Strategy::Latency) => 2,
            (0, Strategy::Throughput) => 8,
            (0, _) => 4,
            (set, _) => set,
        };
        chosen.max(region.group.load(Relaxed) as usize)
    }
}

/// A blob's chunk, if the blob is undamaged.
fn unpack(slot: &Slot, blob: &[u8], data: &mut [u8], work: &mut [u8]) -> bool {
    hash::sum64(blob) == slot.sum
        && match slot.codec {
            Codec::Lz4 => lz4::decompress(blob, data),
            Codec::Dictionary => dictionary::decode(blob, data, work),
            Codec::Amplitude => amplitude::decode(blob, data, work),
        }
}
