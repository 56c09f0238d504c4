//! Pools for programs: what is theirs beside the pools' own work: the phase that blocks may be given in, pointers that are none, and
//! what was not released at the end. Called by `ffi::pool`. Pools are nobody's clean-up's: each ends when it is destroyed.

use super::memory::{self, LeakReport, bad_pointer};
use super::phase::Phase;
use super::{allocation, recovery};
use crate::error::{Error, Status};
use crate::fail;
use crate::pool::objects;
use crate::pool::{self, Config};

const NAME: &str = "memory allocation";

/// A new pool.
pub fn create(config: &Config<'_>) -> Result<usize, Error> {
    allocation::mode().0.may_give(NAME)?;
    memory::prepare();
    memory::note_use(); // a preloaded malloc asks the registry from now on
    pool::create(config)
}

/// A block that the pool has ready. None: [`allocate`] may still give one, or says why not.
#[inline]
pub fn at_hand(handle: usize, size: usize) -> Option<*mut u8> {
    if recovery::counts() || !matches!(allocation::mode().0, Phase::Uninitialised | Phase::Running) {
        return None;
    }
    pool::at_hand(handle, size).map(|block| block.as_ptr())
}

/// A live block of the pool goes back. False: it is none, and nothing was done.
///
/// # Safety
/// As for [`release`].
#[inline]
pub unsafe fn take_back(handle: usize, block: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    !recovery::counts() && unsafe { pool::take_back(handle, block) }
}

/// A block of the pool.
pub fn allocate(handle: usize, size: usize) -> Result<*mut u8, Error> {
    allocation::mode().0.may_give(NAME)?;
    recovery::called();
    pool::allocate(handle, size).map(|block| block.as_ptr())
}

/// A block goes back. A pointer that is no live block of the pool is reported and the process aborted; that there is no pool is an
/// error, unless there was one.
///
/// # Safety
/// Nobody uses the block any more.
pub unsafe fn release(handle: usize, block: *mut u8) -> Result<(), Error> {
    if handle == 0 {
        return Err(fail!(InvalidArgument, "the pool is NULL; the block at {block:p} was not released"));
    }
    recovery::called();
    // SAFETY: the caller's promise.
    unsafe { pool::release(handle, block) }.map_err(|error| bad_pointer("qmem_pool_release", &error))
}

/// Ends a pool; each block that was not released is reported as a leak.
///
/// # Safety
/// Nobody uses the pool or its blocks any more.
pub unsafe fn destroy(handle: usize) -> Result<(), Error> {
    let mut report = LeakReport::default();
    // SAFETY: the caller's promise.
    unsafe {
        pool::destroy(handle, &mut |start, size| report.see(format_args!("pool block of {size} bytes at {start:#x}"), size))?
    };
    report.end();
    Ok(())
}

/// A new object pool.
pub fn create_objects(config: &objects::Config) -> Result<usize, Error> {
    memory::prepare();
    objects::create(config)
}

/// An object goes back. What is no lent object of the pool is reported and the process aborted.
pub fn release_object(handle: usize, object: usize) -> Result<(), Error> {
    match objects::release(handle, object) {
        Err(error) if handle == 0 => Err(error),
        Err(error) if matches!(error.status, Status::InvalidArgument | Status::NotFound) => {
            bad_pointer("qmem_object_pool_release", &error)
        }
        done => done,
    }
}

/// Ends an object pool; objects that were not released are reported as leaks.
///
/// # Safety
/// Nobody uses the object pool any more.
pub unsafe fn destroy_objects(handle: usize) -> Result<(), Error> {
    let mut report = LeakReport::default();
    // SAFETY: the caller's promise.
    unsafe { objects::destroy(handle, &mut |object| report.see(format_args!("object at {object:#x} of an object pool"), 0))? };
    report.end();
    Ok(())
}
