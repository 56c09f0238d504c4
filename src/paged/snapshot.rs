//! Snapshots: a second region with the contents of the first, sharing every stored chunk until one of the two changes it. What is
//! resident is stored first, so that there is something to share; what cannot be (pinned, or nothing takes it) is copied. Called
//! by the face, on the program's threads.

use super::lifecycle;
use super::lossy;
use super::pager::Pager;
use super::region::{Chunk, ChunkId, Region};
use super::slot::SlotId;
use super::state::{State, Word};
use super::{Request, region_index};
use crate::error::Error;
use crate::fail;
use crate::os::worker;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

/// Times that a chunk which is in use is evicted before it is copied instead.
const TRIES: u32 = 3;

/// What became of one chunk.
enum Taken {
    Done,
    /// To be copied by reading the one and writing the other.
    Copy,
    /// Somebody owns it for a moment.
    Again,
}

/// Makes the second region. The caller has committed what it is granted.
pub fn make(pager: &'static Pager, source: &Region, tag: u8, pooled: bool) -> Result<NonNull<u8>, Error> {
    let request = Request {
        size: source.size.load(Relaxed),
        align: crate::os::vm::HUGE,
        chunk_size: source.unit(),
        swappable: source.swappable.load(Relaxed),
        element: source.element(),
        tolerance: f64::from_bits(source.tolerance.load(Relaxed)),
        pooled,
        tag,
    };
    let start = lifecycle::create(pager, &request)?;
    let target = region_index(start.as_ptr() as usize).and_then(|i| Some((i, pager.regions.region(i)?)));
    let Some((index, target)) = target else { return Err(fail!(Internal, "a new region is not in the page map")) };
    target.fitted.store(source.fitted.load(Relaxed), Relaxed);
    let pass = pager.gate.enter();
    lossy::seal(target); // until it is known what its contents have lost
    drop(pass);
    for (from, to) in source.chunks().zip(target.chunks()) {
        if let Err(error) = take(pager, (from, source), (to, target)) {
            // SAFETY: nobody else knows the region.
            unsafe { lifecycle::end(pager, index, target) };
            return Err(error);
        }
    }
    let _pass = pager.gate.enter();
    lossy::inherit(target, lossy::carried(source));
    Ok(start)
}

fn take(pager: &'static Pager, (from, source): (ChunkId, &Region), (to, target): (ChunkId, &Region)) -> Result<(), Error> {
    let (Some(chunk), Some(heir)) = (pager.regions.chunk(from), pager.regions.chunk(to)) else { return Ok(()) };
    let mut tries = 0;
    loop {
        let taken = match Word::load(&chunk.word).state() {
            State::Zero => Taken::Done,
            State::Stored => share(pager, (from, chunk, source), (to, heir, target)),
            State::Resident | State::Staged if tries < TRIES && Word::load(&chunk.word).pins() == 0 => {
                tries += 1;
                let mut scratch = pager.scratch.lock();
                let _pass = pager.gate.enter();
                pager.evict_chunk(from, &mut scratch);
                pager.workers.read_ahead(from); // it was in use
                Taken::Again
            }
            State::Resident | State::Staged => Taken::Copy,
            State::Filling | State::Evicting => {
                worker::pause(20);
                Taken::Again
            }
            State::Poisoned | State::Gone => {
                let at = from - source.first.load(Relaxed);
                return Err(fail!(
                    Corrupt,
                    "chunk {at} of the buffer is lost, so no snapshot of it can be made: restore it first"
                ));
            }
        };
        match taken {
            Taken::Done => return Ok(()),
            Taken::Again => {}
            Taken::Copy => {
                let size = source.chunk_bytes();
                // SAFETY: chunks of two live regions, which fault in like for any access of the program.
                unsafe { core::ptr::copy_nonoverlapping(source.address(from) as *const u8, target.address(to) as *mut u8, size) };
                return Ok(());
            }
        }
    }
}

/// Both chunks have the one's slot from now on.
fn share(
    pager: &Pager,
    (from, chunk, source): (ChunkId, &Chunk, &Region),
    (to, heir, target): (ChunkId, &Chunk, &Region),
) -> Taken {
    let pass = pager.gate.enter();
    // The new one first: its owner may let a fork go before, and the old one must be whole then.
    lifecycle::claim(pager, heir, to, target, &pass);
    if Word::step(&chunk.word, Word::hold_stored).is_none() {
        Word::step(&heir.word, |w| Some(w.unfilled(State::Zero)));
        pager.backend.wake(target.address(to), target.chunk_bytes());
        return Taken::Again;
    }
    let slot = SlotId(chunk.slot.load(Relaxed));
    let shared = pager.take_share(slot);
    if shared {
        heir.slot.store(slot.0, Relaxed);
        pager.shares_entry(from, to, target);
    }
    for (chunk, region, id, state) in
        [(heir, target, to, if shared { State::Stored } else { State::Zero }), (chunk, source, from, State::Stored)]
    {
        Word::step(&chunk.word, |w| Some(w.unfilled(state)));
        pager.backend.wake(region.address(id), region.chunk_bytes());
    }
    if shared { Taken::Done } else { Taken::Copy }
}
