//! Blocks that are not qmem's own but known to it: tracked ones, which the program got elsewhere, and custom ones, which a
//! registered interface made. Called by the registry's face. With none registered a look-up costs one atomic load.

use super::{Info, Kind, TAG_MALLOC, extras, own};
use crate::config;
use crate::ds::page_map::{self, Tag, UNIT};
use crate::ds::{Interval, IntervalMap};
use crate::error::Error;
use crate::fail;
use crate::monitor::account::{self, Holder};
use crate::sync::Mutex;
use core::sync::atomic::{AtomicUsize, Ordering};

const CUSTOM: u8 = 0;
const TRACKED: u8 = 1;

static BLOCKS: Mutex<IntervalMap> = Mutex::new(IntervalMap::new(config::REGISTRY_BLOCKS));
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn info(interval: Interval) -> Info {
    Info {
        kind: if interval.kind == CUSTOM { Kind::Custom } else { Kind::Tracked },
        start: interval.start as *mut u8,
        size: interval.size,
        usable: interval.size,
        tag: interval.tag,
    }
}

/// Nothing is registered.
#[inline]
pub fn is_empty() -> bool {
    COUNT.load(Ordering::Acquire) == 0
}

/// The registered block around any address.
#[inline]
pub fn find(ptr: *const u8) -> Option<Info> {
    if is_empty() {
        return None;
    }
    BLOCKS.lock().find(ptr as usize).map(info)
}

/// Calls `f` for every registered block with this tag, without the lock.
pub fn for_each(tag: u8, f: &mut dyn FnMut(Info)) {
    let mut at = 0;
    loop {
        let next = BLOCKS.lock().next(at);
        let Some(interval) = next else { return };
        if interval.tag == tag {
            f(info(interval));
        }
        at = interval.start.saturating_add(1);
    }
}

/// A foreign block enters statistics and leak report. It must not overlap anything that qmem knows.
pub fn track(ptr: *const u8, size: usize) -> Result<(), Error> {
    track_as(ptr, size, 0)
}

/// [`track`] with a tag that comes back from look-ups.
pub fn track_as(ptr: *const u8, size: usize, tag: u8) -> Result<(), Error> {
    check_range(ptr, size)?;
    if let Some(block) = overlapping(ptr as usize, size).filter(|_| !in_malloc(ptr, size)) {
        return Err(fail!(
            InvalidArgument,
            "{size} bytes at {ptr:?} overlap qmem's own memory at {block:#x}; only foreign blocks can be tracked"
        ));
    }
    register(Interval { start: ptr as usize, size, kind: TRACKED, tag })
}

/// Ends what [`track`] began; `ptr` is the block's start.
pub fn untrack(ptr: *const u8) -> Result<(), Error> {
    unregister(ptr, TRACKED)
}

/// A block that a registered interface made: outside qmem's own blocks, or wholly inside one.
pub fn add_custom(ptr: *const u8, size: usize, tag: u8) -> Result<(), Error> {
    check_range(ptr, size)?;
    if let Some(block) = overlapping(ptr as usize, size) {
        let last = (ptr as usize + (size - 1)) as *const u8; // no overflow: the range was checked
        let (first, last) = (own(ptr), own(last));
        if first.is_none() || first.map(|b| b.start) != last.map(|b| b.start) {
            return Err(fail!(
                InvalidArgument,
                "{size} bytes at {ptr:?} overlap qmem's own memory at {block:#x} without lying inside one live block"
            ));
        }
    }
    register(Interval { start: ptr as usize, size, kind: CUSTOM, tag })
}

/// Ends what [`add_custom`] began; references and layout are forgotten.
pub fn remove_custom(ptr: *const u8) -> Result<(), Error> {
    unregister(ptr, CUSTOM)
}

fn check_range(ptr: *const u8, size: usize) -> Result<(), Error> {
    if ptr.is_null() || size == 0 {
        return Err(fail!(InvalidArgument, "{size} bytes at {ptr:?} are no block"));
    }
    if (ptr as usize).checked_add(size).is_none_or(|end| end > isize::MAX as usize) {
        return Err(fail!(InvalidArgument, "{size} bytes at {ptr:?} reach past the end of the address space"));
    }
    Ok(())
}

/// Is the whole range in one block of a preloaded program's malloc?
fn in_malloc(ptr: *const u8, size: usize) -> bool {
    own(ptr).is_some_and(|block| {
        let offset = (ptr as usize).wrapping_sub(block.start as usize);
        block.tag == TAG_MALLOC && size <= block.usable.saturating_sub(offset)
    })
}

/// Some address of qmem's own memory in `[start, start + size)`, which does not wrap. Segments and regions fill their units; a
/// large block may end inside its last one.
fn overlapping(start: usize, size: usize) -> Option<usize> {
    let end = start.saturating_add(size);
    let mut unit = start & !(UNIT - 1);
    while unit < end {
        match page_map::get(unit).map(|entry| entry.tag) {
            Some(Tag::Large) => {
                if let Some(block) = own(unit as *const u8)
                    && (block.start as usize).saturating_add(block.usable) > start
                {
                    return Some(block.start as usize);
                }
            }
            Some(_) => return Some(unit.max(start)),
            None => {}
        }
        unit += UNIT;
    }
    None
}

fn register(interval: Interval) -> Result<(), Error> {
    loop {
        let mut blocks = BLOCKS.lock();
        if let Some(other) = blocks.overlap(interval.start, interval.size) {
            return Err(fail!(
                InvalidArgument,
                "{} bytes at {:#x} overlap the registered block of {} bytes at {:#x}",
                interval.size,
                interval.start,
                other.size,
                other.start
            ));
        }
        let growth = blocks.growth();
        if account::try_charge(Holder::Tables, growth) {
            let charged = blocks.bytes() + growth;
            let done = blocks.insert(interval);
            settle(&blocks, charged);
            return done;
        }
        drop(blocks);
        account::charge(Holder::Tables, growth)?; // makes room, without the lock
        account::uncharge(Holder::Tables, growth);
    }
}

fn settle(blocks: &IntervalMap, charged: usize) {
    account::uncharge(Holder::Tables, charged.saturating_sub(blocks.bytes()));
    COUNT.store(blocks.len(), Ordering::Release);
}

fn unregister(ptr: *const u8, kind: u8) -> Result<(), Error> {
    let mut blocks = BLOCKS.lock();
    let word = if kind == CUSTOM { "custom" } else { "tracked" };
    match blocks.find(ptr as usize) {
        Some(block) if block.start == ptr as usize && block.kind == kind => {}
        Some(block) if block.kind == kind => {
            return Err(fail!(
                InvalidArgument,
                "{ptr:?} is inside the {word} block that starts at {:#x}; pass the start",
                block.start
            ));
        }
        _ => return Err(fail!(NotFound, "no {word} block is at {ptr:?}")),
    }
    let charged = blocks.bytes();
    blocks.remove(ptr as usize);
    settle(&blocks, charged);
    drop(blocks); // the extras' lock comes first, and the caller gives the memory up only after this call
    extras::forget(ptr);
    Ok(())
}

/// See the face.
pub fn before_fork() {
    BLOCKS.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork() {
    // SAFETY: the caller's promise.
    unsafe { BLOCKS.unlock_after_fork() };
}
