//! Regions and their chunks: address ranges under the pager, and the one table of chunk words that they take runs of. A chunk
//! has a number for life (`ChunkId`), so queues and lists hold numbers, never pointers. Called by every file of the pager.

use super::state::{State, Word};
use crate::ds::{MappedArray, Zeroed};
use crate::error::Error;
use crate::fail;
use crate::monitor::fidelity::Ledger;
use crate::sync::Mutex;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The most regions at once.
pub const MAX_REGIONS: usize = 1 << 16;
/// The most chunks at once: 64 TiB of 2 MiB chunks, 2 TiB of 64 KiB ones.
pub const MAX_CHUNKS: usize = 1 << 25;

/// A chunk's number; 0 is none.
pub type ChunkId = u32;

/// One chunk. All-zero bytes are a chunk that belongs to no region.
#[repr(C)]
pub struct Chunk {
    /// Its state: see `state.rs`.
    pub word: AtomicU64,
    /// Its slot, 0 = none. Changed only by the chunk's owner (Filling, Evicting) or when the region ends.
    pub slot: AtomicU32,
    /// The policy's note of its last eviction, 0 = none.
    pub stamp: AtomicU32,
    /// Neighbours in the policy's queue, under the policy's lock.
    pub newer: AtomicU32,
    /// As above.
    pub older: AtomicU32,
    /// Which queue, 0 = none; as above.
    pub queue: AtomicU32,
    /// Its region's number.
    pub region: AtomicU32,
}
// SAFETY: zero words are Gone, no slot, no queue.
unsafe impl Zeroed for Chunk {}

/// One region. All-zero bytes are a free entry.
pub struct Region {
    /// First address; 0 = free entry.
    pub start: AtomicUsize,
    /// Logical bytes.
    pub size: AtomicUsize,
    /// Address space taken: whole chunks, a multiple of 2 MiB.
    pub span: AtomicUsize,
    /// log2 of the chunk's bytes.
    pub shift: AtomicU32,
    /// Its first chunk's number; the others follow.
    pub first: AtomicU32,
    /// How many chunks hold its logical bytes.
    pub count: AtomicU32,
    /// Chunks read ahead at once because the program asked for a larger unit of I/O; 0 = the pager's choice.
    pub group: AtomicU32,
    /// Its chunk size was the pager's choice, and is another one where the buffer grows.
    pub fitted: AtomicBool,
    /// May use the swap file.
    pub swappable: AtomicBool,
    /// Counted against the unified pool's bound.
    pub pooled: AtomicBool,
    /// Whoever allocated it.
    pub tag: AtomicU32,
    /// f64 bits of the tolerance it was allocated with; 0.0 = none of its own.
    pub tolerance: AtomicU64,
    /// What it is an array of: `qmem_element_t`. Anything but bytes permits compression with loss, within the tolerance and the budget.
    pub element: AtomicU32,
    /// What that has cost; see `lossy.rs`.
    pub ledger: Mutex<Ledger>,
    /// Counts regions: no other one of this process ever has this number.
    pub serial: AtomicU64,
    /// Faults served.
    pub faults: AtomicUsize,
    /// Evictions.
    pub evictions: AtomicUsize,
}
// SAFETY: zero numbers and `false`, and a free lock around the same.
unsafe impl Zeroed for Region {}

impl Region {
    /// Bytes of one of its chunks.
    pub fn chunk_bytes(&self) -> usize {
        1 << self.shift.load(Ordering::Relaxed)
    }

    /// Where a chunk of it is mapped.
    pub fn address(&self, chunk: ChunkId) -> usize {
        let index = chunk.wrapping_sub(self.first.load(Ordering::Relaxed)) as usize;
        self.start.load(Ordering::Relaxed) + (index << self.shift.load(Ordering::Relaxed))
    }

    /// Bytes of frames that hold all of it: what it is granted by the commit rule.
    pub fn granted(&self) -> usize {
        (self.count.load(Ordering::Relaxed) as usize) << self.shift.load(Ordering::Relaxed)
    }

    /// The chunk size that was asked for, or chosen; more than a chunk where it is a unit of read-ahead.
    pub fn unit(&self) -> usize {
        match self.group.load(Ordering::Relaxed) as usize {
            0 | 1 => self.chunk_bytes(),
            group => group * crate::os::vm::HUGE,
        }
    }

    /// Which class of bays its frames come from.
    pub fn class(&self) -> usize {
        (self.shift.load(Ordering::Relaxed) as usize).saturating_sub(super::arena::MIN_SHIFT)
    }

    /// Its chunk at an address inside it.
    pub fn chunk_at(&self, address: usize) -> Option<ChunkId> {
        let offset = address.checked_sub(self.start.load(Ordering::Relaxed))?;
        let index = (offset >> self.shift.load(Ordering::Relaxed)) as u32;
        (index < self.count.load(Ordering::Relaxed)).then(|| self.first.load(Ordering::Relaxed) + index)
    }

    /// Its chunks.
    pub fn chunks(&self) -> core::ops::Range<ChunkId> {
        let first = self.first.load(Ordering::Relaxed);
        first..first + self.count.load(Ordering::Relaxed)
    }
}

/// A run of free chunk numbers.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Run {
    first: u32,
    count: u32,
}
// SAFETY: two zero numbers.
unsafe impl Zeroed for Run {}

/// All regions and chunks of the process.
pub struct Regions {
    regions: MappedArray<Region>,
    chunks: MappedArray<Chunk>,
    free: Mutex<FreeRuns>,
    high: AtomicUsize,
    serial: AtomicU64,
}

/// Free runs in order of their numbers, neighbours merged; what lies beyond the last one was never used.
struct FreeRuns {
    runs: MappedArray<Run>,
    len: usize,
    fresh: u32,
}

impl Regions {
    /// Empty tables; costs address space only.
    pub fn new() -> Result<Self, Error> {
        let free = FreeRuns { runs: MappedArray::new(MAX_REGIONS + 1)?, len: 0, fresh: 1 };
        Ok(Self {
            regions: MappedArray::new(MAX_REGIONS)?,
            chunks: MappedArray::new(MAX_CHUNKS)?,
            free: Mutex::new(free),
            high: AtomicUsize::new(0),
            serial: AtomicU64::new(0),
        })
    }

    /// The region with this number.
    pub fn region(&self, index: u32) -> Option<&Region> {
        self.regions.get(index as usize).filter(|r| r.start.load(Ordering::Acquire) != 0)
    }

    /// The chunk with this number.
    pub fn chunk(&self, id: ChunkId) -> Option<&Chunk> {
        self.chunks.get(id as usize).filter(|_| id != 0)
    }

    /// The chunk and its region, unless the region has ended. Only while the caller owns the chunk are the two sure to belong
    /// together after this: numbers are used again. Own first, then ask.
    pub fn both(&self, id: ChunkId) -> Option<(&Chunk, &Region)> {
        let chunk = self.chunk(id)?;
        let region = self.region(chunk.region.load(Ordering::Relaxed))?;
        Some((chunk, region)).filter(|_| region.chunks().contains(&id))
    }

    /// Enters a region of `count` chunks, all Zero. `fill` sets everything but `first`, `count` and `start`.
    pub fn insert(&self, start: usize, count: usize, fill: impl FnOnce(&Region)) -> Result<u32, Error> {
        let mut free = self.free.lock();
        let vacant = (0..=self.high.load(Ordering::Relaxed))
            .find(|i| self.regions.get(*i).is_some_and(|r| r.start.load(Ordering::Relaxed) == 0));
        let Some((index, region)) = vacant.and_then(|i| Some((i, self.regions.get(i)?))) else {
            return Err(fail!(Limit, "{MAX_REGIONS} paged buffers are live already, which is the bound"));
        };
        let Some(first) = free.take(count) else {
            return Err(fail!(Limit, "no {count} chunks left: paged buffers hold all {MAX_CHUNKS} there can be"));
        };
        fill(region);
        *region.ledger.lock() = Ledger::new();
        region.serial.store(self.serial.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        region.first.store(first, Ordering::Relaxed);
        region.count.store(count as u32, Ordering::Relaxed);
        region.faults.store(0, Ordering::Relaxed);
        region.evictions.store(0, Ordering::Relaxed);
        region.start.store(start, Ordering::Release);
        // Last, since from here on whoever still has a number from before may own the chunk: its region must be there.
        for id in first..first + count as u32 {
            let Some(chunk) = self.chunks.get(id as usize) else { continue };
            chunk.slot.store(0, Ordering::Relaxed);
            chunk.stamp.store(0, Ordering::Relaxed);
            chunk.region.store(index as u32, Ordering::Relaxed);
            Word::new(State::Zero).store(&chunk.word);
        }
        self.high.fetch_max(index + 1, Ordering::Relaxed);
        Ok(index as u32)
    }

    /// Forgets a region whose chunks are all Gone.
    pub fn remove(&self, index: u32) {
        let Some(region) = self.regions.get(index as usize) else { return };
        let mut free = self.free.lock();
        free.give(region.first.load(Ordering::Relaxed), region.count.load(Ordering::Relaxed));
        region.start.store(0, Ordering::Release);
    }

    /// Numbers of the live regions; some may end while this goes on.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Region)> {
        let high = self.high.load(Ordering::Relaxed).min(MAX_REGIONS);
        (0..high as u32).filter_map(|i| self.region(i).map(|r| (i, r)))
    }
}

impl FreeRuns {
    /// First fit among the free runs, else fresh numbers.
    fn take(&mut self, count: usize) -> Option<u32> {
        let runs = self.runs.get_mut(..self.len)?;
        if let Some((at, run)) = runs.iter_mut().enumerate().find(|(_, run)| run.count as usize >= count) {
            let first = run.first;
            run.first += count as u32;
            run.count -= count as u32;
            if run.count == 0 {
                runs.copy_within(at + 1.., at);
                self.len -= 1;
            }
            return Some(first);
        }
        let first = self.fresh;
        if first as usize + count > MAX_CHUNKS {
            return None;
        }
        self.fresh += count as u32;
        Some(first)
    }

    fn give(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        let at = self.runs.get(..self.len).map_or(0, |runs| runs.partition_point(|run| run.first < first));
        let joins_left = at > 0 && self.runs.get(at - 1).is_some_and(|run| run.first + run.count == first);
        let joins_right = at < self.len && self.runs.get(at).is_some_and(|run| first + count == run.first);
        let right = if joins_right { self.runs.get(at).map_or(0, |run| run.count) } else { 0 };
        if joins_left {
            if let Some(run) = self.runs.get_mut(at - 1) {
                run.count += count + right;
            }
            if joins_right {
                self.runs.copy_within(at + 1..self.len, at);
                self.len -= 1;
            }
        } else if joins_right {
            if let Some(run) = self.runs.get_mut(at) {
                *run = Run { first, count: count + right };
            }
        } else if self.len < MAX_REGIONS {
            self.runs.copy_within(at..self.len, at + 1);
            if let Some(run) = self.runs.get_mut(at) {
                *run = Run { first, count };
            }
            self.len += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_numbers_are_taken_once_and_merge_again() {
        let mut free = FreeRuns { runs: MappedArray::new(MAX_REGIONS + 1).unwrap(), len: 0, fresh: 1 };
        let mut held: Vec<(u32, u32)> = Vec::new();
        let mut seed = 3u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let r = (seed >> 33) as usize;
            if r.is_multiple_of(2) || held.is_empty() {
                let count = 1 + r % 50;
                let first = free.take(count).unwrap();
                let range = first..first + count as u32;
                assert!(first > 0 && !held.iter().any(|(f, c)| range.start < f + c && *f < range.end));
                held.push((first, count as u32));
            } else {
                let (first, count) = held.swap_remove(r % held.len());
                free.give(first, count);
            }
        }
        for (first, count) in held {
            free.give(first, count);
        }
        assert_eq!((free.len, free.runs[0].first, free.runs[0].count + 1), (1, 1, free.fresh));
    }
}
