//! Pools: blocks of a few sizes, each size with a bound on its number; and object pools (`objects.rs`). Floor 4. This file is the face:
//! what registry, system and ffi call.
//!
//! A pool's blocks lie in slabs (`slab.rs`), which are blocks of the heap and charged to the budget as such. Each size (`class.rs`)
//! makes slabs when its blocks run out and gives empty ones back; threads keep a few blocks of each size at hand (`cache.rs`,
//! `claim.rs`). A request finds its size through a table (`sizes.rs`), a pointer its block through the heap. Programs hold pools by
//! handles (`handles.rs`) that are known when they are out of date. Asks nobody else for memory, never panics.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod atomics {
    pub use core::sync::atomic::{AtomicU32, Ordering};
}
mod cache;
mod claim;
mod class;
mod handles;
pub mod objects;
mod sizes;
mod slab;

use crate::config;
use crate::ds::MappedArray;
use crate::error::Error;
use crate::monitor::account::{self, Holder};
use crate::os::vm;
use crate::{fail, heap};
use cache::Caches;
use class::{Class, Held};
use core::ptr::NonNull;
use handles::Handles;
use sizes::{Choice, Shape};
use slab::{Entry, Found};

pub use class::held;

/// Tag of what a pool keeps for its threads: no clean-up frees it.
const TAG: u8 = 7;

/// How a pool is to be.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// Bytes of its blocks, in any order; none: the default ones.
    pub sizes: &'a [usize],
    /// Blocks per size from the start; 0 = the default, less where memory is short.
    pub initial: usize,
    /// Blocks per size at most; 0 = the default.
    pub max: usize,
    /// Threads keep blocks at hand.
    pub thread_cache: bool,
}

/// A block of a pool, live or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its first byte.
    pub start: *mut u8,
    /// Bytes that may be used.
    pub size: usize,
    /// The program has it.
    pub live: bool,
    /// The program has or had it.
    pub given: bool,
}

/// Numbers of one pool. Bytes of blocks are counted by block size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Blocks ever given, and those that came back.
    pub given: u64,
    /// See `given`.
    pub taken: u64,
    /// Of those given, the ones that a thread had at hand.
    pub hits: u64,
    /// Bytes ever given.
    pub total: usize,
    /// Bytes live now, and the most there were.
    pub live: usize,
    /// See `live`; with several threads too high or low by what their caches hold at most.
    pub peak: usize,
    /// The largest block ever given.
    pub largest: usize,
    /// Bytes charged to the budget for its blocks now, and the most there were.
    pub held: usize,
    /// See `held`.
    pub held_peak: usize,
}

struct Pool {
    handle: usize,
    classes: MappedArray<Class>,
    choice: Choice,
    caches: Caches,
    held: Held,
}

// SAFETY: what its parts point to is shared by atomics and locks.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

static POOLS: Handles<Pool> = Handles::new("pool", config::POOLS);

/// Bytes of the array of block sizes, charged beside the slabs.
fn array_bytes(classes: usize) -> usize {
    vm::round_up(classes.saturating_mul(size_of::<Class>()), vm::PAGE)
}

/// A new pool; its handle. On failure there is none.
pub fn create(config: &Config<'_>) -> Result<usize, Error> {
    let (initial_default, max_default) = config::POOL_CAPACITY;
    let mut room = [0; config::POOL_SIZES];
    let sizes = sizes::sort(if config.sizes.is_empty() { &config::POOL_SIZES_DEFAULT } else { config.sizes }, &mut room)?;
    let max = if config.max == 0 { max_default } else { config.max };
    if max > u32::MAX as usize || config.initial > max {
        let (initial, most) = (config.initial, u32::MAX);
        return Err(fail!(
            InvalidArgument,
            "initial_capacity = {initial} and max_capacity = {max} (0 = {initial_default}, {max_default}): the first is at most the second, and that at most {most}"
        ));
    }
    let charged = array_bytes(sizes.len());
    account::charge(Holder::Tables, charged)?;
    let classes = MappedArray::new(sizes.len()).inspect_err(|_| account::uncharge(Holder::Tables, charged))?;
    let handle = POOLS
        .open(|handle| Pool::new(handle, config, max, sizes, classes))
        .inspect_err(|_| account::uncharge(Holder::Tables, charged))?;
    let pool = POOLS.get(handle)?;
    if let Err(error) = pool.begin(config.initial != 0) {
        // SAFETY: nobody else knows the handle yet.
        unsafe { destroy(handle, &mut |_, _| ())? };
        return Err(error);
    }
    Ok(handle)
}

impl Pool {
    fn new(handle: usize, config: &Config<'_>, max: usize, sizes: &[usize], mut classes: MappedArray<Class>) -> Self {
        let left = account::budget().saturating_sub(account::resident()).min(vm::machine_memory());
        let share = left / config::POOL_SHARE / sizes.len().max(1);
        let mut offset = cache::FIRST;
        for (index, (class, size)) in classes.iter_mut().zip(sizes).enumerate() {
            class.size = *size;
            class.index = index;
            class.shape = Shape::of(*size);
            class.max = max;
            class.initial = match config.initial {
                0 => config::POOL_CAPACITY.0.min(max).min(share / class.shape.stride),
                asked => asked,
            };
            if config.thread_cache {
                class.room = cache::room(class.shape.stride);
                class.magazine = offset;
                offset = cache::after(offset, class.room);
            }
        }
        let bytes = if config.thread_cache { offset } else { 0 };
        Self { handle, classes, choice: Choice::of(sizes), caches: Caches::new(bytes), held: Held::new() }
    }

    /// Makes what is there from the start. `asked`: all of it, or it is an error.
    fn begin(&self, asked: bool) -> Result<(), Error> {
        for class in self.classes.iter() {
            while class.lock().capacity < class.initial {
                match class.expand(self.handle, &self.held, false) {
                    Ok(_) => {}
                    Err(_) if !asked => break,
                    Err(error) => {
                        let (initial, size) = (class.initial, class.size);
                        let refused = fail!(OutOfMemory, "initial_capacity = {initial} blocks of {size} bytes: {error}");
                        return Err(Error { status: error.status, ..refused });
                    }
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn find_class(&self, size: usize) -> Option<&Class> {
        let at = |index: usize| self.classes.get(index).map_or(usize::MAX, |class| class.size);
        self.classes.get(self.choice.find(size, at)?)
    }

    /// The smallest size that holds `size` bytes.
    fn class_for(&self, size: usize) -> Result<&Class, Error> {
        self.find_class(size).ok_or_else(|| {
            let most = self.classes.last().map_or(0, |class| class.size);
            fail!(InvalidArgument, "{size} bytes are more than the pool's largest block, which has {most}")
        })
    }

    #[inline]
    fn allocate(&self, class: &Class) -> Result<NonNull<u8>, Error> {
        match self.caches.take(class).and_then(address) {
            Some(block) => Ok(block),
            None => self.allocate_slowly(class),
        }
    }

    #[cold]
    fn allocate_slowly(&self, class: &Class) -> Result<NonNull<u8>, Error> {
        loop {
            let expanded = class.expand(self.handle, &self.held, false);
            let taken = match expanded {
                Ok(true) => self.caches.take(class),
                // What others keep at hand is better than none, and so is what came back meanwhile.
                _ => self.caches.take_any(class, &self.held),
            };
            if let Some(block) = taken.and_then(address) {
                return Ok(block);
            }
            if !expanded? && !class.has_room() {
                return Err(fail!(
                    Limit,
                    "all {} blocks of {} bytes that max_capacity allows are in use; release some",
                    class.max,
                    class.size
                ));
            }
        }
    }

    fn class(&self, found: &Found) -> Option<&Class> {
        self.classes.get(found.slab.class())
    }

    /// Takes a block back; `found.exact`.
    fn put(&self, found: &Found) -> Result<(), Error> {
        if !found.slab.claim(found.entry.index()) {
            return Err(stranger(found.start));
        }
        match self.class(found) {
            Some(class) => self.caches.put(class, found.entry, &self.held),
            None => return Err(fail!(Internal, "a slab of the pool has block size number {}", found.slab.class())),
        }
        Ok(())
    }
}

#[inline]
fn address(entry: Entry) -> Option<NonNull<u8>> {
    NonNull::new(slab::record(entry.number())?.give(entry.index()) as *mut u8)
}

/// What [`allocate`] gives if the pool has such a block and need not make or collect one: the common path, which knows no errors.
#[inline]
pub fn at_hand(handle: usize, size: usize) -> Option<NonNull<u8>> {
    let pool = POOLS.find(handle)?;
    pool.caches.take(pool.find_class(size)?).and_then(address)
}

/// What [`release`] does with a live block of the pool: the common path. False: nothing was done.
///
/// # Safety
/// As for [`release`].
#[inline]
pub unsafe fn take_back(handle: usize, ptr: *mut u8) -> bool {
    let Some(pool) = POOLS.find(handle) else { return false };
    let Some(found) = slab::at(ptr as usize).filter(|found| found.exact && found.slab.pool() == handle) else { return false };
    match pool.class(&found) {
        Some(class) if found.slab.claim(found.entry.index()) => {
            pool.caches.put(class, found.entry, &pool.held);
            true
        }
        _ => false,
    }
}

/// The smallest block that holds `size` bytes (0 counts as 1).
pub fn allocate(handle: usize, size: usize) -> Result<NonNull<u8>, Error> {
    let pool = POOLS.get(handle)?;
    pool.allocate(pool.class_for(size)?)
}

/// Bytes of the block that [`allocate`] would give for `size`.
pub fn block_size(handle: usize, size: usize) -> Result<usize, Error> {
    Ok(POOLS.get(handle)?.class_for(size)?.size)
}

/// Takes back the live block of this pool that starts at `ptr`. The error says what `ptr` is instead; of several threads that release
/// one block exactly one succeeds.
///
/// # Safety
/// If it is such a block, nobody uses it any more.
pub unsafe fn release(handle: usize, ptr: *mut u8) -> Result<(), Error> {
    let pool = POOLS.get(handle)?;
    match slab::at(ptr as usize) {
        Some(found) if found.exact && found.slab.pool() == handle => pool.put(&found),
        _ => Err(not_of_this(ptr as usize)),
    }
}

/// [`release`] to whichever pool the block is of.
///
/// # Safety
/// As for [`release`].
pub unsafe fn free(ptr: *mut u8) -> Result<(), Error> {
    match slab::at(ptr as usize).filter(|found| found.exact) {
        Some(found) => POOLS.get(found.slab.pool())?.put(&found),
        None => Err(stranger(ptr as usize)),
    }
}

#[cold]
fn not_of_this(address: usize) -> Error {
    match slab::at(address) {
        Some(found) if found.exact && found.slab.is_live(found.entry.index()) => {
            fail!(InvalidArgument, "the block of {} bytes at {address:#x} is of another pool", found.slab.size())
        }
        _ => stranger(address),
    }
}

/// What an address is that is no live block's start.
#[cold]
fn stranger(address: usize) -> Error {
    match slab::at(address) {
        Some(found) if found.exact && found.slab.was_given(found.entry.index()) => {
            fail!(InvalidArgument, "the pool's block of {} bytes at {address:#x} was released already", found.slab.size())
        }
        Some(found) if found.slab.is_live(found.entry.index()) => fail!(
            InvalidArgument,
            "{address:#x} is inside the pool's block of {} bytes that starts at {:#x}, {} bytes after its start; pass the start",
            found.slab.size(),
            found.start,
            address - found.start
        ),
        _ => fail!(NotFound, "{address:#x} is no block of a pool, or of one that was given back to the heap after its release"),
    }
}

/// The block of a pool around any address, live or not. Takes no lock.
pub fn find(ptr: *const u8) -> Option<Block> {
    let Found { slab, entry, start, .. } = slab::at(ptr as usize)?;
    if ptr as usize - start >= slab.size() {
        return None; // what rounding adds is nobody's
    }
    let (live, given) = (slab.is_live(entry.index()), slab.was_given(entry.index()));
    Some(Block { start: start as *mut u8, size: slab.size(), live, given })
}

/// Gives the live block that starts at `ptr` another size; it may move to another block of its pool. On failure it is as it was.
///
/// # Safety
/// Nobody uses the block during the call, nor its old address afterwards if it moved.
pub unsafe fn resize(ptr: *mut u8, size: usize) -> Result<NonNull<u8>, Error> {
    let found = slab::at(ptr as usize).filter(|found| found.exact && found.slab.is_live(found.entry.index()));
    let Some((found, start)) = found.zip(NonNull::new(ptr)) else { return Err(stranger(ptr as usize)) };
    let pool = POOLS.get(found.slab.pool())?;
    let (old, class) = (found.slab.size(), pool.class_for(size)?);
    if class.size == old {
        return Ok(start);
    }
    let new = match pool.allocate(class) {
        Err(_) if size <= old => return Ok(start), // a smaller one would have been better, no more
        new => new?,
    };
    // SAFETY: both blocks are live, distinct and as long as this.
    unsafe { new.as_ptr().copy_from_nonoverlapping(ptr, old.min(class.size)) };
    if let Err(error) = pool.put(&found) {
        // SAFETY: given just now, and nobody has seen it.
        unsafe { free(new.as_ptr())? };
        return Err(error);
    }
    Ok(new)
}

/// Makes `blocks` blocks of the size that holds `size` ready and their pages resident.
pub fn warm(handle: usize, size: usize, blocks: usize) -> Result<(), Error> {
    let pool = POOLS.get(handle)?;
    let class = pool.class_for(size)?;
    if blocks > class.max {
        let (max, size) = (class.max, class.size);
        return Err(fail!(InvalidArgument, "{blocks} blocks of {size} bytes are more than max_capacity = {max} allows"));
    }
    while class.lock().free < blocks {
        if !class.expand(pool.handle, &pool.held, true)? {
            let free = pool.caches.collect(class, &pool.held, |shared| shared.free);
            let (max, size) = (class.max, class.size);
            if free >= blocks {
                break;
            }
            if class.has_room() {
                continue;
            }
            return Err(fail!(
                Limit,
                "{blocks} blocks of {size} bytes cannot be ready: of max_capacity = {max} only {free} are not in use"
            ));
        }
    }
    if !class.warm_up(blocks) {
        return Err(fail!(OutOfMemory, "the kernel has no memory for the pages of {blocks} blocks of {} bytes", class.size));
    }
    Ok(())
}

/// Gives back to the heap all memory without a live block, and has the heap give back what it keeps.
pub fn trim(handle: usize) -> Result<(), Error> {
    let pool = POOLS.get(handle)?;
    for class in pool.classes.iter() {
        pool.caches.collect(class, &pool.held, |_| ());
        class.trim(0, &pool.held);
    }
    heap::trim();
    Ok(())
}

/// The pool's numbers now.
pub fn stats(handle: usize) -> Result<Stats, Error> {
    let pool = POOLS.get(handle)?;
    let mut stats = Stats::default();
    for class in pool.classes.iter() {
        let (given, taken) = pool.caches.passed(class);
        let shared = class.lock();
        stats.hits += given.saturating_sub(shared.refills);
        let given = given + shared.given;
        stats.given += given;
        stats.taken += taken + shared.taken;
        stats.total = stats.total.saturating_add((given as usize).saturating_mul(class.size));
        if given > 0 {
            stats.largest = class.size; // they increase
        }
    }
    let sums = pool.caches.sums();
    (stats.live, stats.peak) = (sums.live, sums.peak);
    (stats.held, stats.held_peak) = pool.held.get();
    Ok(stats)
}

/// Ends a pool and gives all its memory back; `live` is called for each block that was not released, with its start and bytes.
///
/// # Safety
/// Nobody uses the pool or its blocks any more.
pub unsafe fn destroy(handle: usize, live: &mut dyn FnMut(usize, usize)) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    let pool = unsafe { POOLS.close(handle)? };
    for class in pool.classes.iter() {
        class.end(&pool.held, live);
    }
    // SAFETY: the caller's promise.
    unsafe { pool.caches.end() };
    account::uncharge(Holder::Tables, array_bytes(pool.classes.len()));
    Ok(())
}

/// Before fork(2): keeps other threads out of the pools until [`after_fork`]. The heap's own follows it.
pub fn before_fork() {
    POOLS.before_fork();
    for pool in POOLS.all() {
        pool.caches.before_fork(&pool.classes);
        pool.classes.iter().for_each(Class::before_fork);
    }
    slab::before_fork();
    objects::before_fork();
}

/// After fork(2), in the parent and in the child.
///
/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(in_child: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        objects::after_fork(in_child);
        slab::after_fork();
        for pool in POOLS.all() {
            pool.classes.iter().for_each(|class| class.after_fork(in_child));
            pool.caches.after_fork(&pool.classes);
        }
        POOLS.after_fork();
    }
}
