//! The swap files: one unnamed file that this process writes, by direct I/O, its space handed out in extents of 4 KiB units by
//! next fit, so that chunks evicted one after the other lie one after the other; and those that it has from its ancestors by
//! fork, which it only reads. What children of this process may still read is frozen: neither written again nor handed out
//! before the last of them has ended. Called by fill, evict and fork.

use crate::config;
use crate::ds::MappedArray;
use crate::error::Error;
use crate::fail;
use crate::os::file::{File, Piece};
use crate::os::watch::Watch;
use crate::sync::{Mutex, Once};
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Unit of swap space: what direct I/O aligns to.
pub const UNIT: usize = 4096;
/// The file never grows beyond this many units (16 TiB).
const MAX_UNITS: usize = 1 << 32;
/// Processes that fork in line and inherit each other's swap file; further children cannot have paged buffers.
pub const GENERATIONS: usize = 16;
/// Children alive at the same time that may read this process's swap file.
const CHILDREN: usize = 128;
/// Free bytes a directory must have to be worth swapping to.
const MIN_FREE: usize = 64 << 20;

/// A run of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Extent {
    /// First unit.
    pub first: u32,
    /// How many; 0 = none.
    pub units: u16,
    /// Which file.
    pub file: u16,
}

impl Extent {
    /// Bytes it holds.
    pub fn bytes(self) -> usize {
        self.units as usize * UNIT
    }

    fn offset(self) -> u64 {
        self.first as u64 * UNIT as u64
    }
}

/// The files of this process, by generation.
pub struct Swaps {
    files: [Once<Swap>; GENERATIONS],
    /// The generation of this process: the file that it writes, once it is there.
    own: AtomicUsize,
    opening: Mutex<()>,
    /// Opening the own file failed in this generation; it is not tried again at every eviction.
    failed: AtomicBool,
}

/// A file and the map of its free space.
pub struct Swap {
    file: File,
    generation: u16,
    /// Bytes that this file may reach: the disk's free space at the start, or QMEM_SWAP_MAX.
    pub capacity: usize,
    used: AtomicUsize,
    space: Mutex<Space>,
}

/// Bit set = unit in use.
struct Space {
    map: MappedArray<u64>,
    limit: usize,
    next: usize,
    high: usize,
    /// Units that children may read, and those of them that were given up since: free when the children are gone.
    frozen: MappedArray<u64>,
    doomed: MappedArray<u64>,
    children: [Option<Watch>; CHILDREN],
    /// A child was made and may be alive.
    watching: bool,
}

impl Swaps {
    /// No file yet.
    pub const fn new() -> Self {
        Self {
            files: [const { Once::new() }; GENERATIONS],
            own: AtomicUsize::new(0),
            opening: Mutex::new(()),
            failed: AtomicBool::new(false),
        }
    }

    /// The file that this process writes, if it is open.
    pub fn own(&self) -> Option<&Swap> {
        self.files.get(self.own.load(Relaxed))?.get()
    }

    /// Opens the file that this process writes.
    pub fn open(&self) -> Result<(), Error> {
        let _opening = self.opening.lock();
        let own = self.own.load(Relaxed);
        let Some(place) = self.files.get(own).filter(|f| f.get().is_none()) else { return Ok(()) };
        place.set(Swap::open(own as u16).inspect_err(|_| self.failed.store(true, Relaxed))?);
        self.failed.store(false, Relaxed);
        Ok(())
    }

    /// Could the own file be opened, and has not been? So it is in a child of fork.
    pub fn may_open(&self) -> bool {
        self.own.load(Relaxed) > 0 && self.own().is_none() && !self.failed.load(Relaxed)
    }

    /// The file that an extent is in.
    pub fn holder(&self, extent: Extent) -> Option<&Swap> {
        self.files.get(extent.file as usize)?.get()
    }

    /// May the extent be written again: is it in this process's own file, and does no child read it?
    pub fn is_ours(&self, extent: Extent) -> bool {
        extent.file as usize == self.own.load(Relaxed) && self.own().is_some_and(|s| !s.is_frozen(extent))
    }

    /// Takes an extent back; one in an ancestor's file is the ancestor's.
    pub fn release(&self, extent: Extent) {
        if extent.file as usize == self.own.load(Relaxed)
            && let Some(own) = self.own()
        {
            own.release(extent);
        }
    }

    /// Gives the disk blocks of a range back to the file system. The caller still holds the extent.
    pub fn discard(&self, extent: Extent) {
        if self.is_ours(extent)
            && let Some(own) = self.own()
        {
            own.file.punch(extent.offset(), extent.bytes() as u64);
        }
    }

    /// Before fork: can a child read what is stored? Freezes it if so. False: too many generations, or children.
    pub fn before_fork(&self) -> bool {
        self.opening.lock_for_fork();
        let fits = self.own.load(Relaxed) + 1 < GENERATIONS && self.own().is_none_or(Swap::freeze);
        if let Some(own) = self.own() {
            own.space.lock_for_fork();
        }
        fits
    }

    /// After fork, in the parent: from now on only the child holds the other end of its watch.
    ///
    /// # Safety
    /// This thread called [`Self::before_fork`].
    pub unsafe fn after_fork_in_parent(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(own) = self.own() {
                own.space.unlock_after_fork();
                own.space.lock().children.iter_mut().flatten().for_each(Watch::keep_reading_end);
            }
            self.opening.unlock_after_fork();
        }
    }

    /// After fork, in the child: the parent's file is an ancestor's now; the own one is opened when it is first needed.
    ///
    /// # Safety
    /// As [`Self::after_fork_in_parent`].
    pub unsafe fn after_fork_in_child(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(own) = self.own() {
                own.space.unlock_after_fork();
                own.space.lock().children.iter_mut().filter_map(Option::take).for_each(Watch::leave_to_child);
            }
            self.own.fetch_add(1, Relaxed);
            self.failed.store(false, Relaxed);
            self.opening.unlock_after_fork();
        }
    }

    /// Closes every file.
    ///
    /// # Safety
    /// Nobody uses one any more.
    pub unsafe fn close(&self) {
        let _opening = self.opening.lock();
        for file in &self.files {
            // SAFETY: the caller's promise; the setters' lock is held.
            drop(unsafe { file.take() });
        }
        self.failed.store(false, Relaxed);
    }
}

impl Swap {
    /// Opens the swap file in QMEM_SWAP_DIR, or in the first usable default directory.
    fn open(generation: u16) -> Result<Self, Error> {
        if let Some(dir) = config::environment(config::SWAP_DIR_ENV) {
            return Self::open_in(dir, generation);
        }
        let mut first = None;
        let temporary = config::environment(c"TMPDIR");
        for dir in temporary.iter().copied().chain([c"/var/tmp", c"/tmp", c"."]) {
            match Self::open_in(dir, generation) {
                Ok(swap) => return Ok(swap),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| fail!(Io, "no swap directory")))
    }

    fn open_in(dir: &CStr, generation: u16) -> Result<Self, Error> {
        let file = File::unnamed(dir)?;
        let free = file.free_bytes();
        if free < MIN_FREE {
            return Err(fail!(
                Io,
                "swap directory {} has {free} bytes free, at least {MIN_FREE} are needed: give QMEM_SWAP_DIR a larger disk",
                dir.to_str().unwrap_or("(not UTF-8)")
            ));
        }
        let bound = config::SWAP_MAX.get();
        // A sixteenth stays free for everyone else on that disk.
        let capacity = if bound > 0 { bound.min(free) } else { free - free / 16 } / UNIT * UNIT;
        let limit = (capacity / UNIT).min(MAX_UNITS);
        Ok(Self { file, generation, capacity, used: AtomicUsize::new(0), space: Mutex::new(Space::new(limit)?) })
    }

    /// Bytes handed out.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes that may still be handed out, as far as is known without asking the disk.
    pub fn free(&self) -> usize {
        self.capacity.saturating_sub(self.used())
    }

    /// Hands out `bytes`, rounded up to units, in one run. None if no run is long enough.
    pub fn allocate(&self, bytes: usize) -> Option<Extent> {
        let units = bytes.div_ceil(UNIT);
        let mut space = self.space.lock();
        self.used.fetch_sub(space.thaw() * UNIT, Relaxed);
        let first = space.find(units)?;
        space.map.set_run(first, units, true);
        space.next = first + units;
        space.high = space.high.max(space.next);
        drop(space);
        self.used.fetch_add(units * UNIT, Relaxed);
        Some(Extent { first: first as u32, units: units as u16, file: self.generation })
    }

    fn is_frozen(&self, extent: Extent) -> bool {
        self.space.lock().is_frozen(extent.first as usize)
    }

    /// A child is about to be made that may read everything that is stored now. False if it cannot be watched.
    fn freeze(&self) -> bool {
        let mut space = self.space.lock();
        self.used.fetch_sub(space.thaw() * UNIT, Relaxed);
        space.freeze()
    }

    /// Takes an extent of this file back.
    fn release(&self, extent: Extent) {
        let (first, units) = (extent.first as usize, extent.units as usize);
        if units == 0 {
            return;
        }
        let mut space = self.space.lock();
        if space.is_frozen(first) {
            return space.doomed.set_run(first, units, true); // `thaw` gives it back
        }
        space.map.set_run(first, units, false);
        drop(space);
        self.used.fetch_sub(extent.bytes(), Relaxed);
    }

    /// Writes the pieces, page-aligned and whole pages each, one after the other from the extent's start.
    ///
    /// # Safety
    /// Each piece is readable.
    pub unsafe fn write(&self, first: Extent, pieces: &[Piece]) -> Result<(), i32> {
        // SAFETY: the caller's promise.
        unsafe { self.file.write(pieces, first.offset()) }
    }

    /// Reads an extent's first `bytes` (rounded up to units) to `to`.
    ///
    /// # Safety
    /// `to` is page-aligned and writable for that many.
    pub unsafe fn read(&self, extent: Extent, to: usize, bytes: usize) -> Result<(), i32> {
        // SAFETY: the caller's promise.
        unsafe { self.file.read(to, bytes.div_ceil(UNIT) * UNIT, extent.offset()) }
    }
}

impl Space {
    /// Next fit, then first fit from the start.
    fn find(&self, units: usize) -> Option<usize> {
        if units == 0 || units > self.limit {
            return None;
        }
        self.scan(self.next, self.limit, units).or_else(|| self.scan(0, self.next.saturating_add(units).min(self.limit), units))
    }

    /// The first run of `units` free units in `[from, to)`.
    fn scan(&self, from: usize, to: usize, units: usize) -> Option<usize> {
        let mut start = from;
        let mut at = from;
        while at < to {
            if start >= self.high {
                return (start + units <= to).then_some(start); // nothing beyond `high` was ever handed out
            }
            let word = *self.map.get(at / 64)?;
            if at.is_multiple_of(64) && word == u64::MAX {
                at += 64;
                start = at;
            } else if at.is_multiple_of(64) && word == 0 {
                at += 64;
            } else {
                let taken = word >> (at % 64) & 1 == 1;
                at += 1;
                if taken {
                    start = at;
                }
            }
            if at - start >= units {
                return (start + units <= to).then_some(start);
            }
        }
        None
    }

    fn new(limit: usize) -> Result<Self, Error> {
        let words = limit.div_ceil(64);
        Ok(Self {
            map: MappedArray::new(words)?,
            limit,
            next: 0,
            high: 0,
            frozen: MappedArray::new(words)?,
            doomed: MappedArray::new(words)?,
            children: [const { None }; CHILDREN],
            watching: false,
        })
    }

    fn is_frozen(&self, unit: usize) -> bool {
        self.watching && self.frozen.get(unit / 64).is_some_and(|word| word >> (unit % 64) & 1 == 1)
    }

    /// Everything in use stays as it is until a child that is made now has ended.
    fn freeze(&mut self) -> bool {
        let Some(place) = self.children.iter_mut().find(|place| place.is_none()) else { return false };
        let Some(watch) = Watch::new() else { return false };
        *place = Some(watch);
        self.watching = true;
        let words = self.high.div_ceil(64);
        if let (Some(frozen), Some(used)) = (self.frozen.get_mut(..words), self.map.get(..words)) {
            frozen.iter_mut().zip(used).for_each(|(frozen, used)| *frozen |= used);
        }
        true
    }

    /// If the last child has ended, what was given up meanwhile is free: the number of units.
    fn thaw(&mut self) -> usize {
        if !self.watching {
            return 0;
        }
        let mut alive = false;
        for place in &mut self.children {
            if place.as_ref().is_some_and(Watch::has_ended) {
                *place = None;
            }
            alive |= place.is_some();
        }
        if alive {
            return 0;
        }
        self.watching = false;
        let words = self.high.div_ceil(64);
        let mut freed = 0;
        let (Some(map), Some(frozen), Some(doomed)) =
            (self.map.get_mut(..words), self.frozen.get_mut(..words), self.doomed.get_mut(..words))
        else {
            return 0;
        };
        for ((used, frozen), doomed) in map.iter_mut().zip(frozen).zip(doomed) {
            freed += doomed.count_ones() as usize;
            *used &= !core::mem::take(doomed);
            *frozen = 0;
        }
        freed
    }
}

trait Bits {
    fn set_run(&mut self, first: usize, count: usize, to: bool);
}

impl Bits for MappedArray<u64> {
    fn set_run(&mut self, first: usize, count: usize, to: bool) {
        let mut at = first;
        let end = first + count;
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            if let Some(word) = self.get_mut(at / 64) {
                *word = if to { *word | mask } else { *word & !mask };
            }
            at += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_handed_out_once() {
        let limit = 1000;
        let mut space = Space::new(limit).unwrap();
        let mut model = vec![false; limit];
        let mut held: Vec<(usize, usize)> = Vec::new();
        let mut seed = 9u64;
        for round in 0..20_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let r = (seed >> 33) as usize;
            if r.is_multiple_of(2) || held.is_empty() {
                let units = 1 + r % 70;
                if let Some(first) = space.find(units) {
                    assert!(first + units <= limit && model[first..first + units].iter().all(|u| !u), "round {round}");
                    model[first..first + units].fill(true);
                    space.map.set_run(first, units, true);
                    space.next = first + units;
                    space.high = space.high.max(space.next);
                    held.push((first, units));
                } else {
                    let mut run = 0;
                    assert!(
                        !model.iter().any(|u| {
                            run = if *u { 0 } else { run + 1 };
                            run >= units
                        }),
                        "round {round}: a run was there"
                    );
                }
            } else {
                let (first, units) = held.swap_remove(r % held.len());
                model[first..first + units].fill(false);
                space.map.set_run(first, units, false);
            }
        }
    }
}
