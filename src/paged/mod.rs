//! Paged regions: ordinary pointers to more bytes than are resident. Floor 4.
//! `state.rs` is the chunk's state machine: read it first. This file is the face: what the floors above may call.

mod arena;
mod backend;
mod checkpoint;
mod compact;
mod dedup;
mod discard;
mod evict;
mod fill;
mod fork;
mod gate;
mod image;
mod lifecycle;
mod lossy;
mod names;
mod numbers;
mod pager;
mod pins;
mod policy;
mod pool;
mod region;
mod slot;
mod snapshot;
mod state;
mod stream;
mod swap;
mod trouble;
mod worker;

pub use crate::codec::amplitude::Element;
pub use crate::monitor::fidelity::Report as Loss;
pub use backend::{Info, Kind};

use crate::config;
use crate::ds::page_map::{self, Tag};
use crate::error::Error;
use crate::fail;
use crate::monitor::account;
use core::ffi::CStr;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use image::{Buffer, Image};
use pager::Pager;
use region::{ChunkId, Region};
use state::{State, Word};

/// How chunks are placed; `memory_strategy_t` for the pager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Per chunk, from what is measured.
    Adaptive,
    /// Short faults: more free frames, only what compresses well is compressed.
    Latency,
    /// Deep read-ahead, large batches.
    Throughput,
    /// Least memory: compress whatever shrinks, bet on compression at commit.
    Compact,
}

/// What the pager may do, process-wide.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Placement.
    pub strategy: Strategy,
    /// Chunks may be compressed in RAM.
    pub compression: bool,
    /// Equal chunks may share one stored copy.
    pub deduplication: bool,
    /// Chunks may go to the swap file.
    pub swapping: bool,
}

/// What a new region is for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Logical bytes, > 0.
    pub size: usize,
    /// A power of two up to 2 MiB is honoured for free; beyond, the region starts at such a multiple.
    pub align: usize,
    /// Unit of residency and I/O: a power of two from 64 KiB; 0 = 2 MiB, or less for a smaller buffer, of which one holds all. Above 2 MiB
    /// it is the unit of read-ahead.
    pub chunk_size: usize,
    /// This region's chunks may go to the swap file (if the process may swap).
    pub swappable: bool,
    /// What it is an array of; None: bytes, which are never compressed with loss.
    pub element: Option<Element>,
    /// Bound on the relative L2 error that compression may make over the region's life; 0 = the process's error budget alone.
    pub tolerance: f64,
    /// Belongs to the unified pool, whose residency is bounded by [`set_pool_limit`].
    pub pooled: bool,
    /// Given since initialisation: cleaned up with it.
    pub tag: u8,
}

/// Numbers of one region or of all.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // as in memory_stats_t
pub struct PagedStats {
    pub logical_bytes: usize,
    pub resident_bytes: usize,
    pub compressed_bytes: usize,
    pub deduplicated_bytes: usize,
    pub swapped_bytes: usize,
    pub page_faults: usize,
    pub evictions: usize,
    pub pinned_bytes: usize,
    /// Logical bytes of chunks that the lossy codec holds now.
    pub lossy_bytes: usize,
    /// Resident bytes of pooled regions (of all: as counted against the pool's bound).
    pub pooled_bytes: usize,
}

/// Where a pointer lies.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The region's first byte: what [`allocate`] returned.
    pub start: *mut u8,
    /// Its logical size.
    pub size: usize,
    /// As requested.
    pub tag: u8,
}

/// Starts the pager, or changes what a running one may do. The budget is `monitor::account`'s.
pub fn configure(options: &Options) -> Result<(), Error> {
    pager::make()?.configure(options)
}

/// The mechanism that the pager uses or would use, and why nothing better. Starts the pager.
pub fn backend_info() -> Result<&'static Info, Error> {
    Ok(&pager::make()?.backend.info)
}

/// Lets chunks go to the swap file from now on, whatever [`configure`] said. Io if there is no place for one.
pub fn enable_swapping() -> Result<(), Error> {
    pager::make()?.enable_swapping()
}

/// Gives free frames and the pool's free blocks back to the kernel.
pub fn trim() {
    if let Some(pager) = pager::get() {
        pager.pool.trim(&pager.arena);
        pager.arena.trim(0);
    }
}

/// Is the calling thread the one that runs error handlers for the pager's threads?
pub fn on_error_thread() -> bool {
    pager::get().is_some_and(|pager| pager.troubles.here())
}

/// No new regions, no read-ahead, no background eviction; faults are still served.
pub fn quiesce() {
    if let Some(pager) = pager::get() {
        pager.workers.quiesce();
    }
}

/// Is this a child of fork of a process with paged memory, which has none of its own?
pub fn forked() -> bool {
    pager::forked()
}

/// In a child of fork, beside what the pager does itself if there is one: nobody is making one.
///
/// # Safety
/// The calling thread is the only one of its process and was outside of the pager.
pub unsafe fn after_fork_in_child() {
    // SAFETY: the caller's promise.
    unsafe { pager::nobody_makes() };
}

/// Ends workers and the swap file. Every region must have been freed. Waits for an error handler that runs for one of the workers,
/// so the caller holds nothing that a handler may want, and is no handler.
pub fn shutdown() {
    while try_shutdown().is_err() {
        crate::os::worker::pause(1000);
    }
}

/// [`shutdown`] that does not wait: Busy while an error handler runs.
pub fn try_shutdown() -> Result<(), Error> {
    pager::get().map_or(Ok(()), Pager::shut_down)
}

/// Bound on resident bytes of regions with `pooled`; 0 = none.
pub fn set_pool_limit(bytes: usize) {
    pager::POOL_LIMIT.store(bytes, Relaxed);
}

/// A new zero-filled region, granted by the commit rule.
pub fn allocate(request: &Request) -> Result<NonNull<u8>, Error> {
    let pager = pager::make()?;
    if pager.workers.quiet() {
        return Err(fail!(NotInitialized, "memory allocation is stopped: no new paged buffers until it is initialised again"));
    }
    if account::budget() < config::MIN_PAGED_BUDGET {
        return Err(fail!(
            Limit,
            "paged buffers need a budget of at least {} bytes for frames in flight, it is {}: raise max_memory",
            config::MIN_PAGED_BUDGET,
            account::budget()
        ));
    }
    let grant = lifecycle::grant(pager, request)?;
    let most = pager.backend.most_bytes();
    if account::committed().saturating_add(grant) > most.saturating_add(account::swap()) {
        return Err(fail!(
            Limit,
            "{} bytes refused: without UFFDIO_MOVE vm.max_map_count allows {most} bytes of frames, and there are {} of swap space; raise vm.max_map_count or enable swapping",
            request.size,
            account::swap()
        ));
    }
    account::commit_for(request.size, grant)?;
    lifecycle::create(pager, request).inspect_err(|_| account::uncommit(grant))
}

/// The region around any address.
pub fn find(ptr: *const u8) -> Option<Found> {
    let region = pager::even_forked()?.regions.region(region_index(ptr as usize)?)?;
    let (start, size) = (region.start.load(Relaxed), region.size.load(Relaxed));
    (ptr as usize - start < size).then(|| Found { start: start as *mut u8, size, tag: region.tag.load(Relaxed) as u8 })
}

/// Ends the region that starts at `start`.
///
/// # Safety
/// Nothing accesses the region any more.
pub unsafe fn free(start: *mut u8) -> Result<(), Error> {
    if pager::forked() {
        return Ok(()); // the parent's region was never mapped here
    }
    let (pager, index, region) = at_start(start)?;
    let grant = region.granted();
    // SAFETY: the caller's promise.
    unsafe { lifecycle::end(pager, index, region) };
    account::uncommit(grant);
    Ok(())
}

/// Grows or shrinks the region, moving it if need be; contents are kept, growth is zero.
///
/// # Safety
/// Nothing accesses the region during the call, nor the old address after it if it moved.
pub unsafe fn resize(start: *mut u8, size: usize) -> Result<NonNull<u8>, Error> {
    let (pager, index, region) = at_start(start)?;
    let old = region.granted();
    let (new, more) = lifecycle::grant_resized(pager, region, size)?;
    if more > 0 {
        account::commit_for(size, more)?;
    }
    // SAFETY: the caller's promise.
    let moved = unsafe { lifecycle::resize(pager, index, region, size) };
    account::uncommit(if moved.is_ok() { old + more - new } else { more });
    moved
}

/// Starts filling the chunks of a range; returns at once. What the queue cannot hold is left to the faults.
pub fn prefetch(ptr: *const u8, bytes: usize) -> Result<(), Error> {
    let (pager, _, chunks) = range(ptr, bytes, "prefetched")?;
    if pager.workers.quiet() {
        return Err(fail!(NotInitialized, "memory allocation is stopped: nothing is prefetched"));
    }
    let queued = chunks.take_while(|id| pager.workers.read_ahead(*id)).count();
    pager.workers.wake_fillers(queued);
    Ok(())
}

/// Is the chunk around `ptr` in memory, mapped or read ahead? It may leave at once.
pub fn is_resident(ptr: *const u8) -> bool {
    let word = pager::get().and_then(|pager| {
        let region = pager.regions.region(region_index(ptr as usize)?)?;
        Some(Word::load(&pager.regions.chunk(region.chunk_at(ptr as usize)?)?.word))
    });
    word.is_some_and(|word| matches!(word.state(), State::Resident | State::Staged))
}

/// Makes a range resident until unpinned. Limit if the budget cannot hold it.
pub fn pin(ptr: *const u8, bytes: usize) -> Result<(), Error> {
    let (pager, region, chunks) = range(ptr, bytes, "pinned")?;
    pins::pin(pager, region, chunks)
}

/// Undoes one [`pin`].
pub fn unpin(ptr: *const u8, bytes: usize) -> Result<(), Error> {
    // Pins are of chunks: a buffer that shrank within its last chunk since is unpinned as it was pinned.
    let (pager, region, chunks) = whole_range(ptr, bytes, "unpinned")?;
    pins::unpin(pager, region, chunks)
}

/// The beginning of a range, resident until this is dropped: what a system call may be given whatever the mechanism. Where the
/// kernel looks after that itself (MOVE that serves system calls too) or the range is not paged, nothing is held.
pub struct Hold {
    ptr: *const u8,
    /// Bytes from the range's first one on, at least 1.
    pub bytes: usize,
    held: bool,
}

/// Most bytes of one [`Hold`]: whoever transfers more does it in parts. (Direct I/O of more than the budget would hold all of it.)
const HOLD_BYTES: usize = 8 << 20;

/// Must a buffer that starts here be held for system calls: is it paged, and does the kernel not wait for its missing pages?
pub fn needs_hold(ptr: *const u8) -> bool {
    region_index(ptr as usize).is_some() && pager::get().is_some_and(|pager| pager.backend.info.needs_hold())
}

/// Holds the beginning of `bytes` (> 0) bytes from `ptr`. Limit if not even one chunk can be pinned, Corrupt if it is lost. The
/// caller wraps read(2) and the like: a shorter transfer is right for all of them.
pub fn hold(ptr: *const u8, bytes: usize) -> Result<Hold, Error> {
    let free = |bytes| Hold { ptr, bytes, held: false };
    let Some((pager, region)) = pager::get().and_then(|pager| Some((pager, pager.regions.region(region_index(ptr as usize)?)?)))
    else {
        return Ok(free(bytes));
    };
    if !pager.backend.info.needs_hold() {
        return Ok(free(bytes.min(HOLD_BYTES)));
    }
    let (start, chunk) = (region.start.load(Relaxed), region.chunk_bytes());
    let left = (start + region.size.load(Relaxed)).saturating_sub(ptr as usize);
    let first = chunk - (ptr as usize - start) % chunk;
    let most = bytes.min(left).min(HOLD_BYTES);
    // One chunk, if the budget has no room for more.
    let part = pin(ptr, most).map(|()| most).or_else(|_| pin(ptr, most.min(first)).map(|()| most.min(first)))?;
    Ok(Hold { ptr, bytes: part, held: true })
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.held {
            let _ = unpin(self.ptr, self.bytes); // pinned by `hold`, so it succeeds unless the region is gone
        }
    }
}

/// Evicts the chunks that lie wholly inside a range, where they can be. Busy if one was pinned or found no place.
pub fn evict(ptr: *const u8, bytes: usize) -> Result<(), Error> {
    let (pager, region, chunks) = range(ptr, bytes, "evicted")?;
    let size = region.chunk_bytes();
    let logical = region.start.load(Relaxed) + region.size.load(Relaxed);
    let (from, to) = (ptr as usize, ptr as usize + bytes);
    let mut stayed = 0usize;
    for id in chunks {
        let first = region.address(id);
        let last = (first + size).min(logical);
        if first < from || last > to {
            continue;
        }
        if matches!(in_rest(pager, id), Some(State::Resident | State::Staged)) {
            let mut scratch = pager.scratch.lock();
            let _pass = pager.gate.enter();
            stayed += usize::from(!pager.evict_chunk(id, &mut scratch));
        }
    }
    if stayed == 0 {
        return Ok(());
    }
    Err(fail!(
        Busy,
        "{stayed} chunks of {size} bytes stay in memory: they are pinned, in use, or neither compression nor swapping may take them"
    ))
}

/// What a chunk is once no worker is reading it in or storing it, which may take a second where the disk is slow.
fn in_rest(pager: &Pager, id: ChunkId) -> Option<State> {
    let mut state = pager.regions.chunk(id).map(|c| Word::load(&c.word).state());
    for _ in 0..10_000 {
        if !matches!(state, Some(State::Filling | State::Evicting)) {
            break;
        }
        crate::os::worker::pause(100);
        state = pager.regions.chunk(id).map(|c| Word::load(&c.word).state());
    }
    state
}

/// A second region with the contents of the one that starts at `start`; see `snapshot.rs`.
pub fn snapshot(start: *mut u8, tag: u8, pooled: bool) -> Result<NonNull<u8>, Error> {
    let (pager, _, region) = at_start(start)?;
    if pager.workers.quiet() {
        return Err(fail!(NotInitialized, "memory allocation is stopped: no new paged buffers until it is initialised again"));
    }
    let grant = region.granted();
    account::commit(grant)?;
    snapshot::make(pager, region, tag, pooled).inspect_err(|_| account::uncommit(grant))
}

/// Names the buffer that starts at `start`, for checkpoints.
pub fn set_name(start: *mut u8, name: &str) -> Result<(), Error> {
    let (pager, index, region) = at_start(start)?;
    pager.set_name(index, region, name)
}

/// Writes a checkpoint of one buffer, or of all, to `path`; see `checkpoint.rs`.
pub fn write_checkpoint(start: Option<*mut u8>, path: &CStr) -> Result<(), Error> {
    let Some(start) = start else {
        let none = || fail!(NotFound, "there is no paged buffer to write a checkpoint of");
        return checkpoint::write(pager::get().ok_or_else(none)?, None, path);
    };
    let (pager, _, region) = at_start(start)?;
    checkpoint::write(pager, Some(region), path)
}

/// A buffer in a checkpoint file.
pub struct Saved {
    image: Image,
    buffer: Buffer,
}

impl Saved {
    /// The buffer of this name in the checkpoint at `path`; without a name the only one.
    pub fn open(path: &CStr, name: Option<&str>) -> Result<Self, Error> {
        let shown = path.to_str().unwrap_or("(not UTF-8)");
        let image = Image::open(path, false)?.ok_or_else(|| fail!(NotFound, "there is no checkpoint {shown}"))?;
        let buffer = image.find(name)?;
        Ok(Self { image, buffer })
    }

    /// What a region for it must be like.
    pub fn size(&self) -> usize {
        self.buffer.size as usize
    }

    /// Its unit of residency.
    pub fn chunk_size(&self) -> usize {
        self.buffer.chunk_bytes()
    }

    /// Its tolerance.
    pub fn tolerance(&self) -> f64 {
        self.buffer.tolerance
    }

    /// Fills a fresh region of this size, and gives it the buffer's name where no other one has it.
    ///
    /// # Safety
    /// Nobody else uses the region that starts at `start` yet.
    pub unsafe fn load(&self, start: *mut u8) -> Result<(), Error> {
        let (pager, index, region) = at_start(start)?;
        // SAFETY: the caller's promise; the region has the buffer's size.
        unsafe { checkpoint::read(&self.image, &self.buffer, start)? };
        let pass = pager.gate.enter();
        lossy::inherit(region, self.buffer.lost);
        drop(pass);
        region.element.store(self.buffer.element, Relaxed); // what was written so far has lost nothing
        let name = self.buffer.name;
        if !name.as_str().starts_with('#') {
            let _ = pager.set_name(index, region, name.as_str()); // the one that has it keeps it
        }
        Ok(())
    }
}

/// Says what the buffer that starts at `start` is an array of, which permits compression with loss within its tolerance and the
/// process's error budget; None: bytes, without loss from now on.
pub fn set_element(start: *mut u8, element: Option<Element>) -> Result<(), Error> {
    let (pager, _, region) = at_start(start)?;
    lossy::set_element(pager, region, element);
    Ok(())
}

/// What compression has cost the region around `ptr`.
pub fn loss(ptr: *const u8) -> Option<Loss> {
    let pager = pager::get()?;
    let region = pager.regions.region(region_index(ptr as usize)?)?;
    let _pass = pager.gate.enter();
    Some(region.account())
}

/// A range reads as zeros from now on and costs nothing where whole chunks lie in it: madvise(MADV_DONTNEED) for paged memory,
/// where the kernel's own reaches resident chunks only.
///
/// # Safety
/// Nobody misses the contents or writes to the range meanwhile.
pub unsafe fn discard(ptr: *mut u8, bytes: usize) -> Result<(), Error> {
    let (pager, region, chunks) = range(ptr, bytes, "discarded")?;
    // SAFETY: the caller's promise.
    unsafe { discard::discard(pager, region, ptr as usize, bytes, chunks) };
    Ok(())
}

/// Numbers of the region around `ptr`.
pub fn region_stats(ptr: *const u8) -> Option<PagedStats> {
    let pager = pager::get()?;
    Some(numbers::of_region(pager, pager.regions.region(region_index(ptr as usize)?)?))
}

/// Numbers of all regions.
pub fn stats() -> PagedStats {
    pager::get().map_or_else(PagedStats::default, numbers::of_all)
}

/// Faults and evictions so far; unlike [`stats`] without a look at every chunk.
pub fn events() -> (usize, usize) {
    pager::get().map_or((0, 0), |pager| (pager.counters.faults.load(Relaxed), pager.counters.evictions.load(Relaxed)))
}

/// Calls `f` for every region (a copy of the list; `f` may free it).
pub fn for_each_region(f: &mut dyn FnMut(Found)) {
    let Some(pager) = pager::get() else { return };
    for (_, region) in pager.regions.live() {
        let start = region.start.load(Relaxed) as *mut u8;
        f(Found { start, size: region.size.load(Relaxed), tag: region.tag.load(Relaxed) as u8 });
    }
}

/// The number of the region that owns an address's unit.
fn region_index(address: usize) -> Option<u32> {
    page_map::get(address).filter(|e| e.tag == Tag::Region).map(|e| e.payload as u32)
}

fn at_start(start: *mut u8) -> Result<(&'static Pager, u32, &'static Region), Error> {
    let found = pager::get().and_then(|pager| {
        let index = region_index(start as usize)?;
        Some((pager, index, pager.regions.region(index)?))
    });
    found
        .filter(|(_, _, region)| region.start.load(Relaxed) == start as usize)
        .ok_or_else(|| fail!(NotFound, "{start:p} is not the start of a paged buffer"))
}

/// A region of the pager and a run of its chunks.
type Place = (&'static Pager, &'static Region, core::ops::Range<ChunkId>);

/// The chunks that a range touches, after checking that it lies inside one region.
fn range(ptr: *const u8, bytes: usize, what: &str) -> Result<Place, Error> {
    place(ptr, bytes, what, |region| region.size.load(Relaxed))
}

/// As [`range`], with the rest of the last chunk.
fn whole_range(ptr: *const u8, bytes: usize, what: &str) -> Result<Place, Error> {
    place(ptr, bytes, what, |region| region.chunks().len() * region.chunk_bytes())
}

fn place(ptr: *const u8, bytes: usize, what: &str, size: impl FnOnce(&Region) -> usize) -> Result<Place, Error> {
    let unknown = || fail!(NotFound, "{ptr:p} cannot be {what}: it is not in a paged buffer");
    let pager = pager::get().ok_or_else(unknown)?;
    let region = region_index(ptr as usize).and_then(|i| pager.regions.region(i)).ok_or_else(unknown)?;
    let offset = ptr as usize - region.start.load(Relaxed);
    let size = size(region);
    if offset >= size {
        return Err(unknown());
    }
    if bytes == 0 || bytes > size - offset {
        return Err(fail!(
            InvalidArgument,
            "{bytes} bytes from {ptr:p} cannot be {what}: {} bytes of its buffer are left there",
            size - offset
        ));
    }
    let shift = region.shift.load(Relaxed);
    let first = region.first.load(Relaxed);
    Ok((pager, region, first + (offset >> shift) as u32..first + ((offset + bytes - 1) >> shift) as u32 + 1))
}
