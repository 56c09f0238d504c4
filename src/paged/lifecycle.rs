//! Regions begin, end, grow and move. Called by the face, on the program's threads.

use super::arena::{HUGE_CLASS, MIN_SHIFT};
use super::backend::Moved;
use super::gate::Pass;
use super::lossy;
use super::pager::Pager;
use super::region::{Chunk, ChunkId, Region};
use super::slot::SlotId;
use super::state::{Act, State, Word};
use super::{Request, pager};
use crate::config;
use crate::ds::page_map::{self, Entry, Tag};
use crate::error::Error;
use crate::fail;
use crate::monitor::account::{self, Holder};
use crate::monitor::events::{self, Kind};
use crate::os::{vm, worker};
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

/// How a buffer is cut.
struct Cut {
    /// The chunk size that was asked for, or chosen.
    unit: usize,
    /// Bytes of a chunk: a power of two.
    chunk: usize,
}

impl Cut {
    /// Bytes of frames that hold `size` bytes; more than can be granted if they cannot be counted.
    fn bytes(&self, size: usize) -> usize {
        size.checked_next_multiple_of(self.chunk).unwrap_or(usize::MAX)
    }
}

/// The chunk size of a buffer that names none: the setting's, or less where one chunk of that holds all of it.
fn fitting(size: usize) -> usize {
    size.checked_next_power_of_two().unwrap_or(usize::MAX).max(config::CHUNK_BOUNDS.0).min(config::PAGED_CHUNK.get())
}

fn cut(pager: &Pager, request: &Request) -> Result<Cut, Error> {
    let unit = if request.chunk_size == 0 { fitting(request.size) } else { request.chunk_size };
    if !unit.is_power_of_two() || !(config::CHUNK_BOUNDS.0..=config::CHUNK_BOUNDS.1).contains(&unit) {
        return Err(fail!(
            InvalidArgument,
            "a chunk size of {unit} bytes is not a power of two from {} to {}",
            config::CHUNK_BOUNDS.0,
            config::CHUNK_BOUNDS.1
        ));
    }
    Ok(Cut { unit, chunk: unit.clamp(pager.backend.least_chunk(account::budget()), vm::HUGE) })
}

/// What a buffer is granted: bytes of frames that hold all of it.
pub fn grant(pager: &Pager, request: &Request) -> Result<usize, Error> {
    cut(pager, request).map(|cut| cut.bytes(request.size))
}

/// What [`resize`] to so many bytes makes of a buffer's grant, and how much must be granted until then: where chunks of another size
/// take the place of the old ones, for a while there are both.
pub fn grant_resized(pager: &Pager, region: &Region, size: usize) -> Result<(usize, usize), Error> {
    let old = region.granted();
    if size.div_ceil(region.chunk_bytes()) == region.chunks().len() {
        return Ok((old, 0));
    }
    let request = resized(region, size);
    let cut = cut(pager, &request)?;
    let new = cut.bytes(size);
    Ok((new, if cut.chunk == region.chunk_bytes() { new.saturating_sub(old) } else { new }))
}

/// The request for what replaces a buffer of another size.
fn resized(region: &Region, size: usize) -> Request {
    let fitted = if region.fitted.load(Relaxed) { fitting(size) } else { 0 };
    Request {
        size,
        align: vm::HUGE,
        chunk_size: region.unit().max(fitted),
        swappable: region.swappable.load(Relaxed),
        element: region.element(),
        tolerance: f64::from_bits(region.tolerance.load(Relaxed)),
        pooled: region.pooled.load(Relaxed),
        tag: region.tag.load(Relaxed) as u8,
    }
}

/// Makes a region. The caller has committed what it is granted.
pub fn create(pager: &'static Pager, request: &Request) -> Result<NonNull<u8>, Error> {
    let Cut { unit, chunk } = cut(pager, request)?;
    if request.size == 0 || request.size > isize::MAX as usize - 2 * vm::HUGE {
        return Err(fail!(InvalidArgument, "a paged buffer of {} bytes cannot be", request.size));
    }
    let shift = chunk.trailing_zeros();
    let _life = pager.life.lock();
    pager.workers.start(&pager.troubles)?; // before the gate: a new thread's stack may come from the heap, and the heap ask us for room
    let pass = pager.gate.enter();
    pager.arena.prepare(shift as usize - MIN_SHIFT, &pager.backend)?;
    pager.arena.prepare(HUGE_CLASS, &pager.backend)?; // the compressed pool's frames
    account::set_reclaim(Some(reclaim));
    let span = vm::round_up(request.size, vm::HUGE);
    let start = vm::reserve(span, request.align.max(vm::HUGE))?;
    let made = enter(pager, request, start.as_ptr() as usize, span, shift, unit, &pass);
    if made.is_err() {
        // SAFETY: reserved above and used by nobody.
        unsafe { vm::release(start, span) };
    }
    made.map(|()| {
        events::note(Kind::BufferBegin, start.as_ptr() as u64, request.size as u64);
        start
    })
}

fn enter(
    pager: &Pager,
    request: &Request,
    start: usize,
    span: usize,
    shift: u32,
    unit: usize,
    pass: &Pass<'_>,
) -> Result<(), Error> {
    let count = request.size.div_ceil(1 << shift);
    let mapped = count << shift;
    // SAFETY: our own fresh range. A child of fork would read zeros here and must not have it at all.
    unsafe {
        let _ = vm::advise(start as *mut u8, span, libc::MADV_DONTFORK);
        // Larger than memory, and not all there: a core dump leaves it out.
        let _ = vm::advise(start as *mut u8, span, libc::MADV_DONTDUMP);
        if 1 << shift == vm::HUGE {
            // Or the kernel makes a page table before it tells us of a fault, and the huge page that comes must be split.
            let _ = vm::advise(start as *mut u8, span, libc::MADV_HUGEPAGE);
        }
        if mapped < span {
            vm::forbid(start + mapped, span - mapped);
        }
    }
    pager.backend.add_region(start, mapped)?;
    let index = pager.regions.insert(start, count, |region| {
        region.size.store(request.size, Relaxed);
        region.span.store(span, Relaxed);
        region.shift.store(shift, Relaxed);
        region.group.store((unit / vm::HUGE).min(64) as u32, Relaxed);
        region.fitted.store(request.chunk_size == 0, Relaxed);
        region.swappable.store(request.swappable, Relaxed);
        region.pooled.store(request.pooled, Relaxed);
        region.tag.store(u32::from(request.tag), Relaxed);
        region.tolerance.store(request.tolerance.to_bits(), Relaxed);
        region.element.store(lossy::number_of(request.element), Relaxed);
    })?;
    let entered = page_map::set_range(start, span, Entry { tag: Tag::Region, payload: u64::from(index) });
    if entered.is_err()
        && let Some(region) = pager.regions.region(index)
    {
        let (mapped, pooled) = (empty(pager, region, pass), region.pooled.load(Relaxed));
        // SAFETY: nobody knows the region yet.
        let _ = unsafe { vm::advise(start as *mut u8, region.granted(), libc::MADV_DONTNEED) };
        pager.regions.remove(index);
        unmapped(pager, mapped, pooled);
    }
    entered
}

/// Frames that were mapped in a region are gone with it.
fn unmapped(pager: &Pager, bytes: usize, pooled: bool) {
    pager.counters.resident.fetch_sub(bytes, Relaxed);
    pager.leave_pool(pooled, bytes);
    account::uncharge(Holder::Frames, bytes);
}

/// Takes a region's chunks away from whoever holds one and gives back what they have, but for the frames that are mapped: their
/// bytes.
fn empty(pager: &Pager, region: &Region, pass: &Pass<'_>) -> usize {
    let (size, pooled) = (region.chunk_bytes(), region.pooled.load(Relaxed));
    let mut mapped = 0;
    pager.workers.forget(&region.chunks());
    pager.abandon_all(region.chunks());
    for id in region.chunks() {
        let Some(chunk) = pager.regions.chunk(id) else { continue };
        let (before, act) = take(chunk, pass);
        pager.policy.remove(&pager.regions, id);
        if let Act::Drop(bay) = act {
            pager.arena.give(region.class(), bay);
            pager.leave_pool(pooled, size);
        }
        if before.state() == State::Resident {
            mapped += size;
        }
        if before.pins() > 0 {
            pager.counters.pinned.fetch_sub(size, Relaxed);
        }
        pager.drop_entry(id);
        let slot = SlotId(chunk.slot.swap(0, Relaxed));
        if slot.0 != 0 {
            pager.discard_slot(slot);
        }
    }
    mapped
}

/// Ends a region: waits for workers that own a chunk of it, gives everything back.
///
/// # Safety
/// Nothing accesses the region any more.
pub unsafe fn end(pager: &Pager, index: u32, region: &Region) {
    let pass = pager.gate.enter();
    // Asked before the entry is given up: from then on it may be another region's.
    let (start, span, pooled) = (region.start.load(Relaxed), region.span.load(Relaxed), region.pooled.load(Relaxed));
    let mapped = empty(pager, region, &pass);
    pager.backend.remove(start, region.granted());
    page_map::clear_range(start, span);
    pager.regions.remove(index);
    if let Some(start) = NonNull::new(start as *mut u8) {
        // SAFETY: the region's own mapping; by the caller's promise nobody uses it.
        unsafe { vm::release(start, span) };
    }
    unmapped(pager, mapped, pooled);
    // What was freed goes back to the machine, but for a few frames that the next buffer will want.
    pager.pool.trim(&pager.arena);
    pager.arena.trim(pager.watermarks().1);
}

/// Owns a chunk for good, waiting for whoever owns it now.
fn take(chunk: &Chunk, pass: &Pass<'_>) -> (Word, Act) {
    loop {
        if let Some(taken) = Word::step(&chunk.word, Word::free) {
            return taken;
        }
        pass.give_way();
        worker::pause(50);
    }
}

/// Changes a region's size; moves frames and slots to a new range where the old one is too short.
///
/// # Safety
/// As [`super::resize`].
pub unsafe fn resize(pager: &'static Pager, index: u32, region: &Region, size: usize) -> Result<NonNull<u8>, Error> {
    let start = region.start.load(Relaxed) as *mut u8;
    let Some(same) = NonNull::new(start) else { return Err(fail!(Internal, "region at address 0")) };
    let old = region.size.load(Relaxed);
    let count = region.chunks().len();
    let wanted = size.div_ceil(region.chunk_bytes());
    if size == 0 {
        return Err(fail!(InvalidArgument, "a paged buffer cannot be resized to 0 bytes: free it"));
    }
    if wanted == count {
        if size > old {
            // SAFETY: both ends lie in the last chunk, which is the region's.
            unsafe { core::ptr::write_bytes(start.add(old), 0, size - old) };
        }
        region.size.store(size, Relaxed);
        return Ok(same);
    }
    if region.chunks().any(|id| pager.regions.chunk(id).is_some_and(|c| Word::load(&c.word).pins() > 0)) {
        return Err(fail!(Busy, "the buffer at {start:p} has pinned chunks and cannot be resized: unpin it first"));
    }
    if pager.troubles.here() && region.chunks().any(|id| pager.troubles.has(id)) {
        return Err(fail!(
            Busy,
            "the buffer at {start:p} has a chunk whose failure is being handled and cannot be resized until then"
        ));
    }
    if pager.workers.quiet() {
        return Err(fail!(NotInitialized, "memory allocation is stopped: the buffer at {start:p} keeps its {old} bytes"));
    }
    let request = resized(region, size);
    let recut = cut(pager, &request)?.chunk != region.chunk_bytes();
    if recut && region.chunks().any(|id| pager.regions.chunk(id).is_some_and(|c| Word::load(&c.word).state() == State::Poisoned))
    {
        return Err(fail!(Corrupt, "the buffer at {start:p} lost its contents and cannot be resized: restore or free it"));
    }
    let moved = create(pager, &request)?;
    let target = super::region_index(moved.as_ptr() as usize).and_then(|i| Some((i, pager.regions.region(i)?)));
    let Some((new_index, target)) = target else {
        return Err(fail!(Internal, "a new region is not in the page map"));
    };
    target.fitted.store(region.fitted.load(Relaxed), Relaxed);
    pager.rename_region((index, region), (new_index, target));
    let pass = pager.gate.enter();
    lossy::inherit(target, lossy::seal(region)); // nothing is spent on both
    drop(pass);
    if recut {
        // Chunks of another size: a small buffer's, which has few bytes.
        // SAFETY: two live buffers, of which nobody else uses the one or knows the other, and both have so many bytes.
        unsafe { core::ptr::copy_nonoverlapping(start, moved.as_ptr(), old.min(size)) };
        // SAFETY: the caller's promise.
        unsafe { end(pager, index, region) };
        return Ok(moved);
    }
    for (from, to) in region.chunks().zip(target.chunks()) {
        if transfer(pager, (from, region), (to, target)) {
            copy(pager, (from, region), (to, target));
        }
    }
    if size > old && !old.is_multiple_of(region.chunk_bytes()) {
        let tail = vm::round_up(old, region.chunk_bytes()).min(size);
        // SAFETY: the rest of the chunk that was the last one, in the new region.
        unsafe { core::ptr::write_bytes(moved.as_ptr().add(old), 0, tail - old) };
    }
    // SAFETY: the caller's promise; what is left in the old region is beyond the new size.
    unsafe { end(pager, index, region) };
    Ok(moved)
}

/// Gives a chunk's frame or slot to a chunk of a new region that the program does not know yet. True: the old one is still
/// mapped and is to be copied.
fn transfer(pager: &Pager, (from, source): (ChunkId, &Region), (to, target): (ChunkId, &Region)) -> bool {
    let (Some(chunk), Some(heir)) = (pager.regions.chunk(from), pager.regions.chunk(to)) else { return false };
    let pass = &pager.gate.enter();
    let (class, size) = (source.class(), source.chunk_bytes());
    let (before, act) = take(chunk, pass);
    pager.policy.remove(&pager.regions, from);
    claim(pager, heir, to, target, pass);
    let slot = SlotId(chunk.slot.swap(0, Relaxed));
    heir.slot.store(slot.0, Relaxed);
    pager.shares_entry(from, to, target);
    let mut becomes = if slot.0 == 0 { State::Zero } else { State::Stored };
    match (before.state(), act) {
        (State::Resident, _) => {
            let bay = pager.arena.take_empty(class);
            // SAFETY: the old chunk is ours and mapped; the bay is ours and empty.
            let out =
                bay.map(|bay| unsafe { pager.backend.map_out(pager.arena.address(class, bay), source.address(from), size) });
            if let (Some(bay), Some(Moved::Whole | Moved::InPieces)) = (bay, out) {
                pager.left(source, size);
                pager.map(to, heir, target, bay);
                return false;
            }
            // The kernel holds a page of it (I/O in flight).
            if let Some(bay) = bay {
                pager.arena.give_empty(class, bay);
            }
            heir.slot.store(0, Relaxed);
            if slot.0 != 0 {
                pager.release_slot(slot);
            }
            becomes = State::Zero;
        }
        (State::Staged, Act::Drop(bay)) => {
            pager.arena.give(class, bay); // still in its slot
            pager.leave_pool(source.pooled.load(Relaxed), size);
        }
        (State::Poisoned, _) => {
            pager.backend.poison(target.address(to), size);
            Word::step(&heir.word, |w| Some(w.poisoned()));
            return false;
        }
        (State::Stored, _) => pager.rename(slot, to),
        _ => {}
    }
    Word::step(&heir.word, |w| Some(w.unfilled(becomes)));
    pager.backend.wake(target.address(to), size);
    before.state() == State::Resident
}

/// Copies a chunk that could not be moved, through the new region like any program would, and gives its frame up.
fn copy(pager: &Pager, (from, source): (ChunkId, &Region), (to, target): (ChunkId, &Region)) {
    let size = source.chunk_bytes();
    // SAFETY: the old chunk is still mapped, the new one faults in; both `size` bytes long.
    unsafe { core::ptr::copy_nonoverlapping(source.address(from) as *const u8, target.address(to) as *mut u8, size) };
    account::uncharge(Holder::Frames, size);
    pager.leave_pool(source.pooled.load(Relaxed), size);
    pager.left(source, size);
}

/// Owns a chunk of a new region and leaves it without a frame. A number left in a queue, or a fault out of date, may have given
/// it one, or be about to: numbers and addresses are used again.
pub fn claim(pager: &Pager, heir: &Chunk, to: ChunkId, target: &Region, pass: &Pass<'_>) {
    let (class, size) = (target.class(), target.chunk_bytes());
    let (_, act) = loop {
        if let Some(claimed) = Word::step(&heir.word, Word::claim) {
            break claimed;
        }
        pass.give_way();
        worker::pause(50);
    };
    pager.policy.remove(&pager.regions, to);
    match act {
        Act::Drop(bay) => pager.arena.give(class, bay),
        Act::MoveOut => {
            // SAFETY: the chunk is ours, and nobody has written to it: its zeros are not missed.
            unsafe { pager.backend.unmap(target.address(to), size) };
            account::uncharge(Holder::Frames, size);
            pager.left(target, size);
        }
        _ => return,
    }
    pager.leave_pool(target.pooled.load(Relaxed), size);
}

/// The budget's way to make room for the heap: frames go back to the kernel, evicting chunks if need be.
fn reclaim(bytes: usize) -> usize {
    let Some(pager) = pager::get() else { return 0 };
    let mut scratch = pager.scratch.lock();
    let _pass = pager.gate.enter();
    let held = account::held(Holder::Frames);
    pager.arena.trim(pager.arena.free_bytes().saturating_sub(bytes));
    if account::held(Holder::Frames) == held {
        if pager.evict_some(bytes.min(8 * vm::HUGE), false, &mut scratch) == 0 {
            pager.spill(&mut scratch);
        }
        pager.arena.trim(0);
    }
    held.saturating_sub(account::held(Holder::Frames))
}
