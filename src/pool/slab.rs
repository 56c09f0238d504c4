//! Slabs: blocks of one size side by side in one block of the heap, which leads from any address to the slab's record. Beside the
//! blocks stands, out of a program's reach as far as can be, which of them are live (a byte each, changed by whoever gives or takes the
//! block) and which can be given (a bit each, under the lock of the block size). Called by the rest of the pools.
//!
//! Records are never unmapped, and slabs of several blocks lie in the heap's windows, which are not either: any pointer can be
//! looked up at any time without a lock, and one that is out of date is found to be so.

use super::sizes::{INLINE, MOST_BLOCKS, Shape, index_of};
use crate::config;
use crate::ds::{Table, Zeroed};
use crate::error::Error;
use crate::monitor::account::{self, Holder};
use crate::os::vm;
use crate::sync::Mutex;
use crate::{fail, heap};
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// State of a block that was given and came back; 0: that was never given.
const FREED: u8 = 1;
/// State of a block that the program has.
const LIVE: u8 = 0xB7;

/// In which list of its block size a slab is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stand {
    /// None of its blocks can be given.
    Full = 0,
    /// Some can.
    Partial = 1,
    /// All can.
    Empty = 2,
}

/// A slab's record. All zero: there is none.
pub struct Slab {
    /// Its first byte; 0: there is no slab.
    start: AtomicUsize,
    /// The pool's handle.
    pool: AtomicUsize,
    /// Which block size of the pool.
    class: AtomicU32,
    /// Its blocks.
    blocks: AtomicU32,
    size: AtomicUsize,
    stride: AtomicUsize,
    magic: AtomicU64,
    /// Address of the state bytes.
    states: AtomicUsize,
    /// Address of the words of bits.
    bits: Cell<usize>,
    /// Which words of bits are not zero.
    summary: Cell<u64>,
    /// Bits that are set.
    pub free: Cell<u32>,
    /// Which list it is in.
    pub stand: Cell<Stand>,
    /// Its pages have been made resident.
    warm: Cell<bool>,
    /// Neighbours in its list, as numbers; 0 = none.
    pub next: Cell<u32>,
    /// See `next`.
    pub prev: Cell<u32>,
    /// States and bits of few blocks.
    side: UnsafeCell<[u64; INLINE / 8 + 1]>,
}

// SAFETY: cells are touched under the lock of the block size (or of the records, while there is no slab); the rest is atomic.
unsafe impl Sync for Slab {}
// SAFETY: zero is a valid value of every field.
unsafe impl Zeroed for Slab {}

static RECORDS: Table<Slab> = Table::new(config::POOL_SLABS);
/// Number of the first free record.
static FREE: Mutex<u32> = Mutex::new(0);

/// A block: its slab's number and its place there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(u64);

impl Entry {
    fn new(number: u32, index: usize) -> Self {
        Self(u64::from(number) << 32 | index as u64)
    }

    /// Its slab's number.
    #[inline]
    pub fn number(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Its place in the slab.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

/// What an address in a slab is.
#[derive(Clone, Copy)]
pub struct Found {
    /// The slab.
    pub slab: &'static Slab,
    /// The block around the address.
    pub entry: Entry,
    /// Its first byte.
    pub start: usize,
    /// The address is its first byte.
    pub exact: bool,
}

/// The record of a number, from 1.
#[inline]
pub fn record(number: u32) -> Option<&'static Slab> {
    RECORDS.get((number as usize).checked_sub(1)?)
}

/// The block of a pool around any address, live or not.
#[inline]
pub fn at(address: usize) -> Option<Found> {
    let (start, word) = heap::owned(address)?;
    let slab = record(u32::try_from(word).ok()?)?;
    if slab.start.load(Ordering::Acquire) != start {
        return None;
    }
    let stride = slab.stride.load(Ordering::Relaxed);
    let (index, exact) = index_of(address - start, stride, slab.magic.load(Ordering::Relaxed));
    if index >= slab.blocks.load(Ordering::Relaxed) as usize {
        return None;
    }
    Some(Found { slab, entry: Entry::new(word as u32, index), start: start + index * stride, exact })
}

/// A new slab with `blocks` of the shape's blocks, all of which can be given; its number. Takes its memory from the heap, which may
/// wait for the pager: the caller holds no lock.
pub fn make(pool: usize, class: usize, size: usize, shape: &Shape, blocks: usize) -> Result<u32, Error> {
    let (number, slab) = new_record()?;
    let start = match heap::allocate_owned(shape.bytes, 16, u64::from(number)) {
        Ok(start) => start.as_ptr() as usize,
        Err(error) => {
            free_record(number, slab);
            return Err(error);
        }
    };
    let beside = slab.side.get() as usize;
    let (states, bits) = if shape.states == 0 { (beside, beside + INLINE) } else { (start + shape.states, start + shape.bits) };
    slab.pool.store(pool, Ordering::Relaxed);
    slab.class.store(class as u32, Ordering::Relaxed);
    slab.blocks.store(blocks as u32, Ordering::Relaxed);
    slab.size.store(size, Ordering::Relaxed);
    slab.stride.store(shape.stride, Ordering::Relaxed);
    slab.magic.store(shape.magic, Ordering::Relaxed);
    slab.states.store(states, Ordering::Relaxed);
    slab.bits.set(bits);
    // SAFETY: both arrays are inside the record or the new block, and known to nobody else.
    unsafe { (states as *mut u8).write_bytes(0, blocks) };
    for word in 0..blocks.div_ceil(64) {
        let many = (blocks - word * 64).min(64);
        // SAFETY: as above.
        unsafe { (bits as *mut u64).add(word).write(u64::MAX >> (64 - many)) };
    }
    slab.summary.set(u64::MAX >> (64 - blocks.div_ceil(64)));
    slab.free.set(blocks as u32);
    slab.warm.set(false);
    slab.start.store(start, Ordering::Release);
    Ok(number)
}

fn new_record() -> Result<(u32, &'static Slab), Error> {
    loop {
        let mut free = FREE.lock();
        if let Some(slab) = record(*free) {
            let number = core::mem::replace(&mut *free, slab.next.get());
            return Ok((number, slab));
        }
        let bytes = RECORDS.growth();
        if account::try_charge(Holder::Tables, bytes) {
            let made = RECORDS.push().inspect_err(|_| account::uncharge(Holder::Tables, bytes))?;
            let number = made as u32 + 1;
            return match record(number) {
                Some(slab) => Ok((number, slab)),
                None => Err(fail!(Internal, "record {number} of the pools' slabs is missing")),
            };
        }
        drop(free);
        account::charge(Holder::Tables, bytes)?; // makes room, without the lock
        account::uncharge(Holder::Tables, bytes);
    }
}

fn free_record(number: u32, slab: &Slab) {
    let mut free = FREE.lock();
    slab.next.set(core::mem::replace(&mut *free, number));
}

/// Ends a slab and gives its memory back to the heap.
///
/// # Safety
/// Nobody has a block of it, no list has it, and no lock is held.
pub unsafe fn end(number: u32) {
    let Some(slab) = record(number) else { return };
    let start = slab.start.swap(0, Ordering::AcqRel);
    // SAFETY: the heap gave the block to `make`, and the caller's promise.
    unsafe { heap::free_owned(start as *mut u8) };
    free_record(number, slab);
}

/// Before fork(2): nobody makes or ends records until [`after_fork`].
pub fn before_fork() {
    FREE.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork() {
    // SAFETY: the caller's promise.
    unsafe { FREE.unlock_after_fork() };
}

impl Slab {
    /// The pool's handle.
    #[inline]
    pub fn pool(&self) -> usize {
        self.pool.load(Ordering::Relaxed)
    }

    /// Which block size of the pool.
    #[inline]
    pub fn class(&self) -> usize {
        self.class.load(Ordering::Relaxed) as usize
    }

    /// Bytes of a block, as the program gave them.
    pub fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// Its blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn state(&self, index: usize) -> &AtomicU8 {
        // SAFETY: entries are made with places below `blocks`, each of which has a byte there; the array is in the record, or in a
        // window of the heap, and stays mapped.
        unsafe { &*((self.states.load(Ordering::Relaxed) + index) as *const AtomicU8) }
    }

    /// Gives a block that the caller has taken to the program; its address.
    #[inline]
    pub fn give(&self, index: usize) -> usize {
        self.state(index).store(LIVE, Ordering::Release);
        self.address(index)
    }

    /// The first byte of a block.
    #[inline]
    pub fn address(&self, index: usize) -> usize {
        self.start.load(Ordering::Relaxed) + index * self.stride.load(Ordering::Relaxed)
    }

    /// Takes a block from the program: of several threads that release it exactly one gets true.
    #[inline]
    pub fn claim(&self, index: usize) -> bool {
        self.state(index).compare_exchange(LIVE, FREED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Does the program have the block?
    pub fn is_live(&self, index: usize) -> bool {
        self.state(index).load(Ordering::Acquire) == LIVE
    }

    /// Did the program have it once?
    pub fn was_given(&self, index: usize) -> bool {
        self.state(index).load(Ordering::Acquire) != 0
    }

    fn word(&self, word: usize) -> *mut u64 {
        debug_assert!(word < MOST_BLOCKS / 64);
        (self.bits.get() + word * 8) as *mut u64
    }

    /// Takes a block that can be given. Under the lock of the block size.
    pub fn take(&self, number: u32) -> Option<Entry> {
        let summary = self.summary.get();
        if summary == 0 {
            return None;
        }
        let at = summary.trailing_zeros() as usize;
        // SAFETY: the summary has bits for words of the array alone; the lock makes it ours.
        let word = unsafe { &mut *self.word(at) };
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        if *word == 0 {
            self.summary.set(summary & (summary - 1));
        }
        self.free.set(self.free.get() - 1);
        Some(Entry::new(number, at * 64 + bit))
    }

    /// The block can be given again. Under the lock of the block size.
    pub fn put(&self, entry: Entry) {
        let index = entry.index();
        // SAFETY: an entry's place is below `blocks`; the lock makes the word ours.
        let word = unsafe { &mut *self.word(index / 64) };
        debug_assert!(*word >> (index % 64) & 1 == 0);
        *word |= 1 << (index % 64);
        self.summary.set(self.summary.get() | 1 << (index / 64));
        self.free.set(self.free.get() + 1);
    }

    /// Makes its pages resident; false if memory is not to be had. Under the lock of the block size, or before it is in a list.
    pub fn warm_up(&self) -> bool {
        if !self.warm.get() {
            let start = self.start.load(Ordering::Relaxed);
            let bytes = self.blocks() * self.stride.load(Ordering::Relaxed);
            // SAFETY: the slab's own pages, which belong to its blocks; contents stay.
            let done = unsafe { vm::populate(start, vm::round_up(bytes, vm::PAGE)) };
            self.warm.set(done);
        }
        self.warm.get()
    }
}
