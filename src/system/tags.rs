//! Limits: bytes and blocks that a tag, or the whole process, may hold. Each block carries the number of the tag that its thread
//! had, in the upper bits of its own; lower bits say whose clean-up frees it. Called by `memory` around every block it gives, changes
//! or takes; with no tag and no limit ever set that costs one atomic load.

use crate::error::Error;
use crate::fail;
use crate::monitor::counters::{BLOCKS, Blocks};
use crate::sync::{Mutex, Once};
use core::cell::Cell;
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, Ordering::Relaxed};

/// Bits of a block's tag that say whose clean-up frees it.
const LIFE_BITS: u32 = 2;
/// Tags at most; what a block can carry.
const MOST: usize = (crate::heap::MAX_TAG >> LIFE_BITS) as usize;
/// Longest name with its NUL.
const NAME: usize = 64;

/// One tag: its name for good, what it holds and what it may hold (0 = no limit).
struct Tag {
    name: Once<[u8; NAME]>,
    bytes: AtomicUsize,
    blocks: AtomicUsize,
    max_bytes: AtomicUsize,
    max_blocks: AtomicUsize,
    /// For statistics.
    counted: Blocks,
}

impl Tag {
    const fn new() -> Self {
        Self {
            name: Once::new(),
            bytes: AtomicUsize::new(0),
            blocks: AtomicUsize::new(0),
            max_bytes: AtomicUsize::new(0),
            max_blocks: AtomicUsize::new(0),
            counted: Blocks::new(),
        }
    }
}

/// Number 0 is the process: its `bytes` and `blocks` are only what is about to be given, beside what `BLOCKS` counts.
static TAGS: [Tag; MOST + 1] = [const { Tag::new() }; MOST + 1];
/// Tags that have a name.
static NAMED: Mutex<usize> = Mutex::new(0);
/// A tag or a limit was set at some time.
static ACTIVE: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread's tag.
    static CURRENT: Cell<u8> = const { Cell::new(0) };
}

fn tag(number: usize) -> &'static Tag {
    TAGS.get(number).unwrap_or(&TAGS[0])
}

/// The part of a block's tag that says whose clean-up frees it.
pub const fn life(tag: u8) -> u8 {
    tag & ((1 << LIFE_BITS) - 1)
}

fn number(tag: u8) -> usize {
    usize::from(tag >> LIFE_BITS)
}

/// A block's tag: whose clean-up, and what the thread's tag is now.
#[inline]
pub fn of_thread(life: u8) -> u8 {
    if ACTIVE.load(Relaxed) { life | CURRENT.get() << LIFE_BITS } else { life }
}

/// Every tag that blocks with this life may carry.
pub fn all(life: u8) -> impl Iterator<Item = u8> {
    let named = *NAMED.lock();
    (0..=named as u8).map(move |number| life | number << LIFE_BITS)
}

fn name(number: usize) -> Option<&'static CStr> {
    let bytes = tag(number).name.get().filter(|_| number > 0)?;
    CStr::from_bytes_until_nul(bytes).ok()
}

fn shown(number: usize) -> &'static str {
    name(number).and_then(|name| name.to_str().ok()).unwrap_or("process")
}

/// The number of a name, which is new if need be.
fn find(wanted: &CStr, make: bool) -> Result<usize, Error> {
    let mut named = NAMED.lock();
    if let Some(number) = (1..=*named).find(|number| name(*number) == Some(wanted)) {
        return Ok(number);
    }
    let bytes = wanted.to_bytes_with_nul();
    let shown = wanted.to_str().map_err(|_| fail!(InvalidArgument, "a tag's name is UTF-8"))?;
    if !make {
        return Err(fail!(NotFound, "no tag is called {shown:?}"));
    }
    if bytes.len() < 2 || bytes.len() > NAME {
        return Err(fail!(InvalidArgument, "a tag's name has 1 to {} bytes, {shown:?} has {}", NAME - 1, bytes.len() - 1));
    }
    if *named == MOST {
        return Err(fail!(Limit, "{MOST} tags have names already, which is the bound; {shown:?} would be one more"));
    }
    let mut text = [0u8; NAME];
    text[..bytes.len()].copy_from_slice(bytes);
    tag(*named + 1).name.set(text); // under the lock, as `Once` asks
    *named += 1;
    Ok(*named)
}

/// `qmem_set_tag`: the former tag's name.
pub fn set_current(wanted: Option<&CStr>) -> Result<Option<&'static CStr>, Error> {
    let number = wanted.map_or(Ok(0), |wanted| find(wanted, true))?;
    ACTIVE.store(true, Relaxed);
    Ok(name(usize::from(CURRENT.replace(number as u8))))
}

/// `qmem_set_limit`: for blocks given from now on; what is there stays.
pub fn set_limit(wanted: Option<&CStr>, max_bytes: usize, max_blocks: usize) -> Result<(), Error> {
    let number = wanted.map_or(Ok(0), |wanted| find(wanted, true))?;
    tag(number).max_bytes.store(max_bytes, Relaxed);
    tag(number).max_blocks.store(max_blocks, Relaxed);
    ACTIVE.store(true, Relaxed);
    Ok(())
}

/// What a tag holds and held.
pub fn counted(wanted: &CStr) -> Result<&'static Blocks, Error> {
    find(wanted, false).map(|number| &tag(number).counted)
}

/// Calls `f` with the name and numbers of every tag.
pub fn for_each(f: &mut dyn FnMut(&str, &Blocks)) {
    let named = *NAMED.lock();
    for number in 1..=named {
        f(shown(number), &tag(number).counted);
    }
}

fn within(sum: usize, most: usize) -> bool {
    most == 0 || sum <= most
}

/// What [`admit`] allowed, and [`given`] or [`refused`] must end.
#[derive(Clone, Copy)]
#[must_use]
pub struct Admitted {
    tag: u8,
    bytes: usize,
    blocks: usize,
    /// Limits were in force, so that it was announced.
    announced: bool,
}

/// May the tag's blocks, and the process's, grow by this much? If so they have.
#[inline]
pub fn admit(tag: u8, bytes: usize, blocks: usize) -> Result<Admitted, Error> {
    let announced = ACTIVE.load(Relaxed);
    if announced {
        admit_slowly(number(tag), bytes, blocks)?;
    }
    Ok(Admitted { tag, bytes, blocks, announced })
}

#[cold]
fn admit_slowly(number: usize, bytes: usize, blocks: usize) -> Result<(), Error> {
    let process = tag(0);
    // Announced first, then looked at: of two that together pass the limit at least one sees the other.
    let soon_bytes = process.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
    let soon_blocks = process.blocks.fetch_add(blocks, Ordering::SeqCst) + blocks;
    let (held, live) = (BLOCKS.current.load(Ordering::SeqCst), live(&BLOCKS));
    let (max_bytes, max_blocks) = (process.max_bytes.load(Relaxed), process.max_blocks.load(Relaxed));
    let fits = (bytes == 0 || within(held.saturating_add(soon_bytes), max_bytes))
        && (blocks == 0 || within(live + soon_blocks, max_blocks));
    let refusal =
        if fits { grow(number, bytes, blocks).err() } else { Some(passes(0, held, live, bytes, max_bytes, max_blocks)) };
    refusal.map_or(Ok(()), |error| {
        settle(bytes, blocks);
        Err(error)
    })
}

/// Exactly bounded, whatever other threads do.
fn grow(number: usize, bytes: usize, blocks: usize) -> Result<(), Error> {
    if number == 0 {
        return Ok(());
    }
    let tag = tag(number);
    let (max_bytes, max_blocks) = (tag.max_bytes.load(Relaxed), tag.max_blocks.load(Relaxed));
    let add = |cell: &AtomicUsize, more: usize, most: usize| {
        let sum = |now: usize| now.checked_add(more).filter(|sum| more == 0 || within(*sum, most));
        cell.fetch_update(Ordering::Acquire, Relaxed, sum)
    };
    let refused = |tag: &Tag| {
        let (held, live) = (tag.bytes.load(Relaxed), tag.blocks.load(Relaxed));
        passes(number, held, live, bytes, max_bytes, max_blocks)
    };
    add(&tag.bytes, bytes, max_bytes).map_err(|_| refused(tag))?;
    add(&tag.blocks, blocks, max_blocks).map(drop).map_err(|_| {
        tag.bytes.fetch_sub(bytes, Relaxed);
        refused(tag)
    })
}

fn live(blocks: &Blocks) -> usize {
    blocks.allocations.load(Relaxed).saturating_sub(blocks.frees.load(Relaxed))
}

#[cold]
fn passes(number: usize, held: usize, live: usize, bytes: usize, max_bytes: usize, max_blocks: usize) -> Error {
    fail!(
        Limit,
        "{bytes} bytes refused: {} {} holds {held} bytes in {live} blocks, and qmem_set_limit allows {max_bytes} bytes and {max_blocks} blocks (0: no limit)",
        if number == 0 { "the" } else { "the tag" },
        shown(number)
    )
}

fn settle(bytes: usize, blocks: usize) {
    tag(0).bytes.fetch_sub(bytes, Ordering::SeqCst);
    tag(0).blocks.fetch_sub(blocks, Ordering::SeqCst);
}

/// It has been given, and `BLOCKS` has counted it: a new block.
#[inline]
pub fn given(admitted: Admitted) {
    if admitted.announced {
        settle(admitted.bytes, admitted.blocks);
        if number(admitted.tag) > 0 {
            tag(number(admitted.tag)).counted.gave(admitted.bytes);
        }
    }
}

/// It has been given: a block's change from `old` to `new` bytes.
#[inline]
pub fn resized(admitted: Admitted, old: usize, new: usize) {
    if admitted.announced {
        settle(admitted.bytes, admitted.blocks);
    }
    if number(admitted.tag) > 0 {
        let tag = tag(number(admitted.tag));
        tag.counted.resized(old, new);
        tag.bytes.fetch_sub(old.saturating_sub(new), Ordering::Release);
    }
}

/// It has not been given.
#[inline]
pub fn refused(admitted: Admitted) {
    if admitted.announced {
        settle(admitted.bytes, admitted.blocks);
        if number(admitted.tag) > 0 {
            tag(number(admitted.tag)).bytes.fetch_sub(admitted.bytes, Relaxed);
            tag(number(admitted.tag)).blocks.fetch_sub(admitted.blocks, Relaxed);
        }
    }
}

/// A block of `bytes` has ended.
#[inline]
pub fn took(block_tag: u8, bytes: usize) {
    if number(block_tag) > 0 {
        // The statistics first: they never show more than the limit, since nobody is admitted before the second step.
        let tag = tag(number(block_tag));
        tag.counted.took(bytes);
        tag.bytes.fetch_sub(bytes, Ordering::Release);
        tag.blocks.fetch_sub(1, Ordering::Release);
    }
}

/// Would [`admit`] say yes to one block for this thread?
pub fn would_admit(bytes: usize) -> bool {
    if !ACTIVE.load(Relaxed) {
        return true;
    }
    let of_tag = tag(usize::from(CURRENT.get()));
    let process = tag(0);
    let fits = |held: usize, live: usize, limit: &Tag| {
        within(held.saturating_add(bytes), limit.max_bytes.load(Relaxed)) && within(live + 1, limit.max_blocks.load(Relaxed))
    };
    fits(BLOCKS.current.load(Relaxed), live(&BLOCKS), process)
        && (core::ptr::eq(of_tag, process) || fits(of_tag.bytes.load(Relaxed), of_tag.blocks.load(Relaxed), of_tag))
}

/// Before fork(2): nobody is inside until [`after_fork`].
pub fn before_fork() {
    NAMED.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(_in_child: bool) {
    // SAFETY: the caller's promise.
    unsafe { NAMED.unlock_after_fork() };
}
