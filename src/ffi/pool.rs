//! Chapter "pools" of <qmem.h>: pools of blocks and of objects. Called by C only.

use super::guard::{answer, flag, memory_or, reference, status, value, zero};
use super::types::*;
use crate::error::{Class, Error, Status};
use crate::fail;
use crate::monitor::account;
use crate::pool::{self, objects};
use crate::system::pools;
use core::ffi::c_void;
use core::mem::MaybeUninit;

/// A pool of blocks: a handle that can be compared, but not looked into. qmem knows when one is out of date.
pub enum qmem_pool {}
/// As above.
pub type qmem_pool_t = qmem_pool;

/// How a pool is to be. Zero is the default of each field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qmem_pool_config_t {
    /// Bytes of the blocks, 1 to 2^40 each, in any order, none twice; copied.
    pub block_sizes: *const usize,
    /// How many sizes, at most 1024; 0 = 64, 128, 256 … 8192, and `block_sizes` is not looked at.
    pub num_block_sizes: usize,
    /// Blocks of each size that there are from the start, charged to the budget, and that contraction leaves; 0 = 1024, or as many as take
    /// an eighth of what the budget (or the machine) has left, all sizes together.
    pub initial_capacity: usize,
    /// Blocks of each size at most, up to 2^32 - 1; 0 = 65536.
    pub max_capacity: usize,
    /// Each thread keeps up to 64 blocks (16 KiB, 2 at least) of a size at hand, so that its calls take no lock. Blocks beyond 64 KiB are not
    /// kept. Where a size is exhausted, blocks that others keep are used.
    pub thread_cache: MaybeUninit<bool>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// Only what the budget refuses is a failure that a handler can do something about; that a pool is exhausted is an answer.
fn class(status: Status) -> Option<Class> {
    Class::of(status).filter(|_| status != Status::Limit)
}

/// A pool of blocks of fixed sizes; NULL config: one of zeros. Its memory is the heap's, within the budget of
/// `initialize_memory_allocation`: a size that runs out gets more of it, 64 KiB to 1 MiB at a time (one block, if larger), and gives it
/// back when blocks are released. Statistics and limits of the process count that memory, not the blocks. NULL on failure. A pool
/// lives until `qmem_pool_destroy`, whatever is stopped or cleaned up.
///
/// # Safety
/// `config` is NULL or points to a config whose `block_sizes` has as many numbers as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_pool_create(config: *const qmem_pool_config_t) -> *mut qmem_pool_t {
    let made = memory_or("qmem_pool_create", class, || {
        let mut asked = pool::Config { sizes: &[], initial: 0, max: 0, thread_cache: false };
        if !config.is_null() {
            // SAFETY: the caller's promise.
            let config = unsafe { reference(config, "config")? };
            zero(&config.reserved, "reserved")?;
            let thread_cache = flag(config.thread_cache, "thread_cache")?;
            // SAFETY: the caller's promise.
            let sizes = unsafe { sizes(config.block_sizes, config.num_block_sizes)? };
            asked = pool::Config { sizes, initial: config.initial_capacity, max: config.max_capacity, thread_cache };
        }
        pools::create(&asked).map(|handle| handle as *mut u8)
    });
    made.cast()
}

/// # Safety
/// `sizes` is NULL or holds `count` numbers.
unsafe fn sizes<'a>(sizes: *const usize, count: usize) -> Result<&'a [usize], Error> {
    if count == 0 {
        return Ok(&[]);
    }
    if count > crate::config::POOL_SIZES {
        return Err(fail!(InvalidArgument, "num_block_sizes = {count} is more than {}", crate::config::POOL_SIZES));
    }
    // SAFETY: the caller's promise.
    let first = unsafe { reference(sizes, "block_sizes")? };
    // SAFETY: not NULL, aligned, and the caller has so many.
    Ok(unsafe { core::slice::from_raw_parts(first, count) })
}

/// The smallest block that holds `size` bytes (0 counts as 1), uninitialised, at a multiple of the largest power of two in its own
/// size, from 16 to 64 KiB. NULL where all blocks of that size are in use, max_capacity of them (MEMORY_STATUS_LIMIT in the last
/// error; nothing is dispatched), where the budget has no room for more (dispatched as MEMORY_ERROR_ALLOCATION), where no block of the
/// pool is as large, and while memory allocation is stopped or cleaned up. Constant time.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_pool_allocate(pool: *mut qmem_pool_t, size: usize) -> *mut c_void {
    // What lies ready needs no guard: that path makes no errors and does not panic.
    match pools::at_hand(pool as usize, size) {
        Some(block) => block.cast(),
        None => memory_or("qmem_pool_allocate", class, || pools::allocate(pool as usize, size)),
    }
}

/// Bytes of the block that `qmem_pool_allocate` would give for `size`, which may all be used; 0 if no block of the pool is as large.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_pool_block_size(pool: *const qmem_pool_t, size: usize) -> usize {
    value(0, || pool::block_size(pool as usize, size))
}

/// Takes a block back, from any thread; `qmem_free` does the same. NULL is fine. A pointer that is no live block's start, or of
/// another pool, or was released already, is reported in one line on stderr, then the process aborts. Constant time.
///
/// # Safety
/// Nobody uses the block any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_pool_release(pool: *mut qmem_pool_t, block: *mut c_void) {
    // SAFETY: the caller's promise.
    if !block.is_null() && unsafe { !pools::take_back(pool as usize, block.cast()) } {
        // SAFETY: as above; this says what is wrong with it.
        value((), || unsafe { pools::release(pool as usize, block.cast()) });
    }
}

/// Sees to it that `blocks` blocks of the size that holds `size` are not in use and have their pages, so that taking them waits for
/// nothing. MEMORY_STATUS_LIMIT where max_capacity and what is in use leave fewer: what can be made ready is.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_pool_warm(pool: *mut qmem_pool_t, size: usize, blocks: usize) -> memory_status_t {
    status(|| pool::warm(pool as usize, size, blocks))
}

/// Gives back all memory of the pool that has no block in use, what threads keep at hand and initial_capacity included.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_pool_trim(pool: *mut qmem_pool_t) -> memory_status_t {
    status(|| pool::trim(pool as usize))
}

/// A pool's numbers: blocks given (num_allocations) and taken back (num_frees), and in bytes, counted in whole blocks,
/// total_allocated, current_allocated, peak_allocated (with several threads' caches too high or low by what those hold, at most),
/// largest_allocation; resident_bytes and peak_resident_bytes are charged to the budget for it, fragmentation is what of that is not in
/// use. cache_hits and cache_misses: blocks that a thread had at hand, and others. budget_bytes is the process's. The rest is 0.
///
/// # Safety
/// `stats` is NULL or points to room for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_pool_get_stats(pool: *const qmem_pool_t, stats: *mut memory_stats_t) -> memory_status_t {
    status(|| {
        let now = pool::stats(pool as usize)?;
        let budget = account::budget();
        let numbers = memory_stats_t {
            total_allocated: now.total,
            peak_allocated: now.peak,
            num_allocations: now.given as usize,
            num_frees: now.taken as usize,
            largest_allocation: now.largest,
            fragmentation: if now.held == 0 { 0.0 } else { (1.0 - now.live as f64 / now.held as f64).clamp(0.0, 1.0) },
            cache_hits: now.hits as usize,
            cache_misses: now.given.saturating_sub(now.hits) as usize,
            current_allocated: now.live,
            resident_bytes: now.held,
            peak_resident_bytes: now.held_peak,
            budget_bytes: if budget == usize::MAX { 0 } else { budget },
            ..memory_stats_t::default()
        };
        // SAFETY: the caller's promise.
        unsafe { answer(stats, "stats", numbers) }
    })
}

/// Ends a pool and gives back all its memory. Blocks that were not released are each reported as a leak, on stderr and together as
/// MEMORY_ERROR_LEAK, and end with it. MEMORY_STATUS_NOT_FOUND for a handle that is out of date.
///
/// # Safety
/// Nobody uses the pool or its blocks any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_pool_destroy(pool: *mut qmem_pool_t) -> memory_status_t {
    // SAFETY: the caller's promise.
    status(|| unsafe { pools::destroy(pool as usize) })
}

/// A pool of objects: a handle that can be compared, but not looked into. qmem knows when one is out of date.
pub enum qmem_object_pool {}
/// As above.
pub type qmem_object_pool_t = qmem_object_pool;

/// How an object pool is to be. Its functions are called by the thread that acquires, releases or destroys, with no lock of qmem
/// held; they must return (no longjmp, no C++ exception).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qmem_object_pool_config_t {
    /// Makes an object, each another one; NULL: it cannot be had. Must be given.
    pub create: Option<unsafe extern "C" fn(user: *mut c_void) -> *mut c_void>,
    /// Called with each object that is released, before anyone gets it again; NULL: nothing is done.
    pub reset: Option<unsafe extern "C" fn(object: *mut c_void, user: *mut c_void)>,
    /// Called with each object in the pool when that is destroyed; NULL: nothing is done.
    pub destroy: Option<unsafe extern "C" fn(object: *mut c_void, user: *mut c_void)>,
    /// Passed to each.
    pub user: *mut c_void,
    /// Objects made at once, at most max_size.
    pub initial_size: usize,
    /// Objects at most, up to 2^30; 0 = 65536.
    pub max_size: usize,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// A pool of objects that the program's functions make. NULL on failure: also where `create` gave no object for initial_size.
///
/// # Safety
/// `config` is NULL or points to a config whose functions do what they say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_object_pool_create(config: *const qmem_object_pool_config_t) -> *mut qmem_object_pool_t {
    let handle = value(0, || {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        zero(&config.reserved, "reserved")?;
        let create = config.create.ok_or_else(|| fail!(InvalidArgument, "config.create is NULL"))?;
        pools::create_objects(&objects::Config {
            create,
            reset: config.reset,
            destroy: config.destroy,
            user: config.user,
            initial: config.initial_size,
            max: config.max_size,
        })
    });
    handle as *mut qmem_object_pool_t
}

/// An object that nobody else has until it is released: one that lies ready, or a new one while there are fewer than max_size. Else waits
/// up to `timeout_ms` (0: not at all, UINT32_MAX: without limit) for one to come back; who waits longest gets it. NULL, with
/// MEMORY_STATUS_TIMEOUT in the last error, if none did, and where `create` gave none.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_object_pool_acquire(pool: *mut qmem_object_pool_t, timeout_ms: u32) -> *mut c_void {
    value(0, || objects::acquire(pool as usize, timeout_ms)) as *mut c_void
}

/// Takes an object back, from any thread, once `reset` has seen it. NULL is fine. What is no object of the pool, or was released already,
/// is reported in one line on stderr, then the process aborts.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_object_pool_release(pool: *mut qmem_object_pool_t, object: *mut c_void) {
    if !object.is_null() {
        value((), || pools::release_object(pool as usize, object as usize));
    }
}

/// Ends an object pool: `destroy` gets each object in it. Objects that were not released are each reported as a leak, on stderr and
/// together as MEMORY_ERROR_LEAK, and stay with those who have them. NULL is fine. Nothing is done while threads wait for an object
/// (MEMORY_STATUS_BUSY in the last error).
///
/// # Safety
/// Nobody calls anything for this pool any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_object_pool_destroy(pool: *mut qmem_object_pool_t) {
    if !pool.is_null() {
        // SAFETY: the caller's promise.
        value((), || unsafe { pools::destroy_objects(pool as usize) });
    }
}
