//! Compression with loss: which chunks it may have, how much of the error budget a chunk may take, and what becomes of the account
//! when chunks leave and come back. The account itself is `monitor::fidelity`'s. Called by evict, fill, and wherever a chunk's slot is
//! given up; the ledger's lock is held for arithmetic only, by whoever is inside the gate.
//!
//! A chunk of a region with an element type gets an entry in its region's ledger when its frame has left the region, and gives it back
//! before the program can write to it again. In between nobody changes its bytes: that is what the account relies on.

use super::pager::Pager;
use super::region::{ChunkId, MAX_CHUNKS, Region};
use super::{Element, Strategy};
use crate::codec::amplitude::{self, Encoded, Mode, Request};
use crate::codec::lz4;
use crate::ds::MappedArray;
use crate::error::Error;
use crate::monitor::fidelity::{self, Entry, PROCESS, Report};
use crate::os::vm::{HUGE, PAGE, round_up};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Room that the codec wants for the largest chunk: first the blob, then what it works in, then what comes back.
pub const ROOM: usize = {
    let (single, double) = (room(Element::C64), room(Element::C128));
    if single > double { single } else { double }
};

const fn room(element: Element) -> usize {
    blob_room(element) + work_room(element) + HUGE
}

const fn work_room(element: Element) -> usize {
    round_up(amplitude::work_bytes(HUGE, element), PAGE)
}

const fn blob_room(element: Element) -> usize {
    round_up(amplitude::bound(HUGE, element), PAGE)
}

/// What the ledgers have of each chunk that is out of memory: written by the chunk's owner, three words each.
pub struct Entries {
    words: MappedArray<AtomicU64>,
}

impl Entries {
    /// None; costs address space only.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { words: MappedArray::new(3 * MAX_CHUNKS)? })
    }

    fn of(&self, id: ChunkId) -> Option<&[AtomicU64; 3]> {
        self.words.get(3 * id as usize..)?.first_chunk()
    }

    fn get(&self, id: ChunkId) -> Entry {
        self.of(id).map_or(Entry::default(), |words| {
            Entry::of_words([0, 1, 2].map(|i: usize| words.get(i).map_or(0, |w| w.load(Relaxed))))
        })
    }

    fn set(&self, id: ChunkId, entry: Entry) {
        let Some(words) = self.of(id) else { return };
        words.iter().zip(entry.words()).for_each(|(place, word)| place.store(word, Relaxed));
    }

    /// Takes the entry out.
    fn take(&self, id: ChunkId) -> Option<Entry> {
        let entry = self.get(id);
        (entry != Entry::default()).then(|| {
            self.set(id, Entry::default());
            entry
        })
    }
}

/// What may be done to a chunk that is being evicted.
#[derive(Clone, Copy)]
pub struct Permit {
    element: Element,
    /// L2, absolute; 0: only what loses nothing.
    max_error: f64,
}

impl Region {
    /// What it is an array of; None: bytes, which are never compressed with loss.
    pub fn element(&self) -> Option<Element> {
        Element::of(u8::try_from(self.element.load(Relaxed)).ok()?.checked_sub(1)?)
    }

    /// The bound on its total error; infinite where the process's budget alone bounds it.
    fn tolerance(&self) -> f64 {
        match f64::from_bits(self.tolerance.load(Relaxed)) {
            0.0 => f64::INFINITY,
            set => set,
        }
    }

    /// Its account. Inside the gate.
    pub fn account(&self) -> Report {
        self.ledger.lock().report()
    }
}

impl Pager {
    /// A chunk's frame, which the caller owns, has left its region: enters it in the ledger. What may be done to it; None if it is to be
    /// compressed without loss.
    pub fn leaves(&self, id: ChunkId, region: &Region, data: &[u8]) -> Option<Permit> {
        let element = region.element()?;
        let survey = amplitude::survey(element, data);
        if !(survey.norm_squared > 0.0 && survey.norm_squared.is_finite()) {
            return None;
        }
        let mut ledger = region.ledger.lock();
        self.entries.set(id, ledger.leave(survey.norm_squared));
        let max_error = ledger.allowance(region.tolerance(), &PROCESS) * survey.norm_squared.sqrt();
        // Once nothing may be lost any more, what was rounded before still keeps its short form.
        let worthwhile = max_error > 0.0 || ledger.total() > 0.0;
        (survey.ordinary && worthwhile).then_some(Permit { element, max_error })
    }

    /// Compresses a chunk within a permit, and accounts for it: the length of the blob at the start of `room`. None: it must go without loss.
    pub fn encode(
        &self,
        permit: Permit,
        id: ChunkId,
        region: &Region,
        data: &[u8],
        room: &mut [u8],
        context: &mut lz4::Context,
    ) -> Option<usize> {
        let request = Request { element: permit.element, max_error: permit.max_error, mode: self.mode() };
        if permit.max_error == 0.0 {
            return exactly(request, data, room, context);
        }
        let (blob, work) = room.split_at_mut_checked(blob_room(permit.element))?;
        let Encoded { len, error } = amplitude::encode(request, context, data, work, blob).ok()?;
        let mut entry = self.entries.get(id);
        let spent = region.ledger.lock().spend(&mut entry, error, region.tolerance(), &PROCESS);
        self.entries.set(id, entry);
        spent.then_some(len)
    }

    /// Size before speed where memory is what counts, or gets short: the entropy coder takes as long as all else together, for a
    /// chunk that is shorter by an eighth.
    fn mode(&self) -> Mode {
        match self.strategy() {
            Strategy::Latency | Strategy::Throughput => Mode::Fast,
            Strategy::Compact => Mode::Dense,
            Strategy::Adaptive if self.pool_is_crowded() => Mode::Dense,
            Strategy::Adaptive => Mode::Fast,
        }
    }

    /// Loss makes chunks of every kind short, so the pool would grow to its bound whatever the program does, and what it works on now
    /// would not fit into the frames that are left: from here on short chunks go to the disk, to which they are quickly written.
    pub fn pool_is_crowded(&self) -> bool {
        self.pool.bytes() > self.pool_bound() / 3 * 2
    }

    /// What was accounted for a chunk is not used: the caller, who owns it, still has its own bytes.
    pub fn keeps_its_bytes(&self, id: ChunkId, region: &Region) {
        let mut entry = self.entries.get(id);
        if entry.lossy() {
            region.ledger.lock().unspend(&mut entry, &PROCESS);
            self.entries.set(id, entry);
        }
    }

    /// The program can write to a chunk again, or what was stored of it is given up. The caller owns it.
    pub fn comes_back(&self, id: ChunkId, region: &Region) {
        if let Some(entry) = self.entries.take(id) {
            region.ledger.lock().come_back(entry);
        }
    }

    /// The chunk's region ends.
    pub fn drop_entry(&self, id: ChunkId) {
        self.entries.take(id);
    }

    /// What was stored of a chunk is another one's too from now on, whose region is sealed: it has the norm, and what it lost is in what
    /// its region inherits. The caller owns both.
    pub fn shares_entry(&self, from: ChunkId, to: ChunkId, target: &Region) {
        let entry = self.entries.get(from);
        if entry != Entry::default() {
            self.entries.set(to, target.ledger.lock().leave(entry.norm_squared()));
        }
    }
}

/// Encodes a chunk so that its very bytes come back: its length at the start of `room`. None unless it was rounded before.
pub fn encode_exactly(element: Element, data: &[u8], room: &mut [u8], context: &mut lz4::Context) -> Option<usize> {
    exactly(Request { element, max_error: 0.0, mode: Mode::Dense }, data, room, context)
}

/// An error of 0 is one of numbers; that the bits are the same too (a minus zero has other ones), only looking tells.
fn exactly(request: Request, data: &[u8], room: &mut [u8], context: &mut lz4::Context) -> Option<usize> {
    let (blob, rest) = room.split_at_mut_checked(blob_room(request.element))?;
    let (work, back) = rest.split_at_mut_checked(work_room(request.element))?;
    let encoded = amplitude::encode(request, context, data, work, blob).ok()?;
    let (blob, back) = (blob.get(..encoded.len)?, back.get_mut(..data.len())?);
    (amplitude::decode(blob, back, work) && back == data).then_some(encoded.len)
}

/// What a region is an array of, from now on. What has been lost is lost, and stays in its account.
pub fn set_element(pager: &Pager, region: &Region, element: Option<Element>) {
    let _pass = pager.gate.enter();
    region.element.store(number_of(element), Relaxed);
}

/// As `qmem_element_t` and checkpoints have it.
pub fn number_of(element: Option<Element>) -> u32 {
    element.map_or(0, |element| u32::from(element.tag()) + 1)
}

/// Nothing may be spent on a region until it inherits. Inside the gate.
pub fn seal(region: &Region) -> (f64, u32) {
    region.ledger.lock().seal()
}

/// A region's contents have come with the error that another account tells. Inside the gate.
pub fn inherit(region: &Region, (total, passes): (f64, u32)) {
    region.ledger.lock().inherit(total, passes);
}

/// The account of a region whose contents go to another place, where [`inherit`] enters it.
pub fn carried(region: &Region) -> (f64, u32) {
    let fidelity::Report { total, passes, .. } = region.account();
    (total, passes)
}
