//! Pinning: chunks that must be resident and stay so. Called by the face, on the program's threads.

use super::pager::Pager;
use super::region::{Chunk, ChunkId, Region};
use super::state::{State, Word};
use crate::error::Error;
use crate::fail;
use crate::monitor::account;
use crate::os::worker;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

/// Bytes of the budget that pins must leave for everything else: frames in flight and the pool.
const LEAVE: usize = 16 << 20;

/// Pins every chunk of the range once more, then waits until all are resident.
pub fn pin(pager: &'static Pager, region: &Region, chunks: Range<ChunkId>) -> Result<(), Error> {
    let size = region.chunk_bytes();
    for id in chunks.clone() {
        let Some(chunk) = pager.regions.chunk(id) else { continue };
        let pinned = pin_one(pager, id, chunk, size);
        if !pinned {
            unpin(pager, region, chunks.start..id)?;
            let (asked, held) = ((chunks.end - chunks.start) as usize * size, pager.counters.pinned.load(Relaxed));
            let heap = account::beside_frames();
            return Err(fail!(
                Limit,
                "{asked} bytes cannot be pinned: {held} bytes are pinned already, {heap} are the heap's and {} hold compressed chunks, and the budget of {} must keep {LEAVE} for the rest; unpin first or raise max_memory",
                pager.pool.bytes(),
                account::budget()
            ));
        }
    }
    for id in chunks.clone() {
        let Some(chunk) = pager.regions.chunk(id) else { continue };
        if !bring(chunk, region.address(id)) {
            unpin(pager, region, chunks)?;
            return Err(fail!(
                Corrupt,
                "chunk {} of the buffer is poisoned and cannot be pinned",
                id - region.first.load(Relaxed)
            ));
        }
    }
    Ok(())
}

/// Waits until a pinned chunk is there and settled: one whose eviction began before the pin can still be read for a moment and
/// then be gone for another. False if it is poisoned.
fn bring(chunk: &Chunk, address: usize) -> bool {
    loop {
        match Word::load(&chunk.word).state() {
            State::Resident => return true,
            State::Poisoned => return false,
            // SAFETY: an address of a live region; the read faults the chunk in like any other access.
            _ => unsafe { core::ptr::read_volatile(address as *const u8) },
        };
        if Word::load(&chunk.word).state() != State::Resident {
            worker::pause(20);
        }
    }
}

/// Pins a chunk once more, if that leaves room for everything else. Its bytes are counted first, so that several threads cannot
/// take the last room together.
fn pin_one(pager: &Pager, id: ChunkId, chunk: &Chunk, size: usize) -> bool {
    let step = |counted: bool| Word::step(&chunk.word, |w| w.pin().filter(|_| counted || w.pins() > 0).map(|n| (n, ())));
    if step(false).is_some() {
        return true;
    }
    let bound = bound(pager);
    if pager.counters.pinned.fetch_update(Relaxed, Relaxed, |now| Some(now + size).filter(|sum| *sum <= bound)).is_err() {
        return false;
    }
    match step(true) {
        Some((before, ())) if before.pins() == 0 => {
            pager.policy.remove(&pager.regions, id);
            true
        }
        other => {
            pager.counters.pinned.fetch_sub(size, Relaxed); // another thread's pin was first, or there is no place for one more
            other.is_some()
        }
    }
}

/// The most bytes that may be pinned now. What is compressed in RAM stays there, so half of what is left must do beside it.
fn bound(pager: &Pager) -> usize {
    let budget = account::budget().saturating_sub(account::beside_frames());
    budget.saturating_sub(LEAVE.max(LEAVE / 2 + pager.pool.bytes()))
}

/// Takes one pin from every chunk of the range; all or nothing.
pub fn unpin(pager: &Pager, region: &Region, chunks: Range<ChunkId>) -> Result<(), Error> {
    let size = region.chunk_bytes();
    let bare = chunks.clone().find(|id| pager.regions.chunk(*id).is_none_or(|c| Word::load(&c.word).pins() == 0));
    if let Some(id) = bare {
        return Err(fail!(
            InvalidArgument,
            "chunk {} ({size} bytes from {:#x}) is not pinned",
            id - region.first.load(Relaxed),
            region.address(id)
        ));
    }
    for id in chunks {
        let Some(chunk) = pager.regions.chunk(id) else { continue };
        if let Some((before, ())) = Word::step(&chunk.word, |w| w.unpin().map(|n| (n, ())))
            && before.pins() == 1
        {
            pager.counters.pinned.fetch_sub(size, Relaxed);
            if matches!(before.state(), State::Resident | State::Staged | State::Filling | State::Evicting) {
                pager.enqueue(id, chunk);
            }
        }
    }
    Ok(())
}
