//! Giving up what a range holds: it reads as zeros from now on, wherever its bytes were. What madvise(MADV_DONTNEED) is for memory
//! of the kernel's; the kernel itself knows only the chunks that are resident. Called by the face, on the program's threads.

use super::pager::Pager;
use super::region::{Chunk, ChunkId, Region};
use super::slot::SlotId;
use super::state::{Act, State, Word};
use crate::monitor::account::{self, Holder};
use crate::os::worker;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

/// Discards `bytes` bytes from `from`, which lie in the region; `chunks` are those they touch.
///
/// # Safety
/// Nobody misses the contents; whoever writes there meanwhile may find zeros after it.
pub unsafe fn discard(pager: &Pager, region: &Region, from: usize, bytes: usize, chunks: Range<ChunkId>) {
    let size = region.chunk_bytes();
    let logical = region.start.load(Relaxed) + region.size.load(Relaxed);
    for id in chunks {
        let address = region.address(id);
        let (first, last) = (address.max(from), (address + size).min(from + bytes));
        let whole = first == address && (last == address + size || last == logical);
        if !whole || !pager.regions.chunk(id).is_some_and(|chunk| drop_chunk(pager, id, chunk, region)) {
            // SAFETY: inside the region, on the program's own thread; the caller's promise.
            unsafe { core::ptr::write_bytes(first as *mut u8, 0, last - first) };
        }
    }
}

/// Has the chunk be Zero. False if it is pinned, and so must stay.
fn drop_chunk(pager: &Pager, id: ChunkId, chunk: &Chunk, region: &Region) -> bool {
    let (class, size, address) = (region.class(), region.chunk_bytes(), region.address(id));
    let pass = pager.gate.enter();
    loop {
        if Word::step(&chunk.word, Word::hold_stored).is_some() {
            release(pager, id, chunk, region);
            Word::step(&chunk.word, |w| Some(w.unfilled(State::Zero)));
            break;
        }
        if let Some((_, act)) = Word::step(&chunk.word, Word::evict) {
            pager.policy.remove(&pager.regions, id);
            if let Act::Drop(bay) = act {
                pager.arena.give(class, bay);
            } else {
                // SAFETY: the chunk is ours and mapped, and its contents are not missed.
                unsafe { pager.backend.unmap(address, size) };
                account::uncharge(Holder::Frames, size);
                pager.left(region, size);
            }
            pager.leave_pool(region.pooled.load(Relaxed), size);
            release(pager, id, chunk, region);
            Word::step(&chunk.word, |w| Some(w.evicted(State::Zero, None)));
            break;
        }
        match Word::load(&chunk.word).state() {
            State::Filling | State::Evicting => {
                pass.give_way();
                worker::pause(20);
            }
            State::Resident | State::Staged => return false,
            State::Stored => {}
            State::Zero | State::Gone | State::Poisoned => return true,
        }
    }
    pager.backend.wake(address, size);
    true
}

fn release(pager: &Pager, id: ChunkId, chunk: &Chunk, region: &Region) {
    pager.comes_back(id, region);
    let slot = SlotId(chunk.slot.swap(0, Relaxed));
    if slot.0 != 0 {
        pager.release_slot(slot);
    }
}
