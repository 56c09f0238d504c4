//! The heap: operations read from bytes against a model that knows every live block and its contents, under budgets that are
//! sometimes too small, with threads that come, free and go.
#![no_main]
#![allow(clippy::undocumented_unsafe_blocks)] // every pointer used is live by the model, or the call under test must refuse it

use libfuzzer_sys::fuzz_target;
use qmem::error::Status;
use qmem::heap::{self, Block, Lookup};
use qmem::monitor::account::{self, Holder};
use qmem_fuzz::{Input, mix};
use std::collections::BTreeMap;

const OPERATIONS: usize = 400;
/// Tags that blocks get: [`heap::OWNED_TAG`] is not among them, whose blocks `free` leaves alone.
const TAGS: [u8; 4] = [0, 1, 2, heap::MAX_TAG];
const MOST_BYTES: usize = 96 << 20;

#[derive(Clone, Copy)]
struct Entry {
    size: usize,
    tag: u8,
    seed: u64,
}

struct Model<'a> {
    input: Input<'a>,
    live: BTreeMap<usize, Entry>,
    bytes: usize,
    count: u64,
}

fuzz_target!(|bytes: &[u8]| {
    let mut model = Model { input: Input::new(bytes), live: BTreeMap::new(), bytes: 0, count: 0 };
    let budget = match model.input.byte() & 3 {
        0 => 3 << 20,
        1 => 8 << 20,
        2 => 40 << 20,
        _ => usize::MAX,
    };
    account::set_budget(budget);
    for _ in 0..OPERATIONS {
        if model.input.is_over() {
            break;
        }
        model.step();
        assert!(account::resident() <= budget, "{} bytes are charged", account::resident());
    }
    while !model.live.is_empty() {
        model.free(0);
    }
    heap::trim();
    let held = account::held(Holder::Heap);
    assert!(held <= 2 << 20, "{held} bytes stay charged after everything was freed");
});

impl Model<'_> {
    fn step(&mut self) {
        let operation = self.input.byte();
        match operation & 15 {
            0..=4 => self.allocate(),
            5..=7 => self.resize(),
            8 | 9 => {
                let nth = self.input.word();
                self.free(nth);
            }
            10 => self.look(),
            11 => self.enumerate(),
            12 => heap::trim(),
            13 => self.free_elsewhere(usize::from(operation >> 4) + 1),
            14 => self.allocate_elsewhere(),
            _ => {
                for _ in 0..self.input.byte() & 63 {
                    self.one(16 * (1 + usize::from(operation >> 4)), 16, false, TAGS[3]);
                }
            }
        }
    }

    /// Sizes of every magnitude, borders of powers of two included.
    fn size(&mut self) -> usize {
        let kind = self.input.byte();
        let top = 1usize << (kind & 31).min(24);
        match kind >> 5 {
            0 | 1 => self.input.below(8192),
            2 => top,
            3 => top + 1,
            4 => top - 1,
            5 => top + usize::from(self.input.byte()),
            _ => self.input.below(top) + 1,
        }
    }

    fn align(&mut self) -> usize {
        match self.input.byte() {
            kind @ 0..=63 => 1 << (kind % 24),
            64..=67 => 48,
            _ => 16,
        }
    }

    fn allocate(&mut self) {
        let (size, align) = (self.size(), self.align());
        let kind = self.input.byte();
        self.one(size, align, kind & 1 == 1, TAGS[usize::from(kind >> 1 & 3)]);
    }

    fn one(&mut self, size: usize, align: usize, zeroed: bool, tag: u8) {
        if self.bytes + size + align > MOST_BYTES {
            return;
        }
        match heap::allocate(size, align, zeroed, tag) {
            Ok(block) => {
                assert!(align.is_power_of_two());
                assert_eq!(block.as_ptr() as usize % align.max(16), 0);
                self.enter(block.as_ptr(), size.max(1), zeroed, tag);
            }
            Err(error) => self.refused(&error, size, align),
        }
    }

    fn refused(&self, error: &qmem::error::Error, size: usize, align: usize) {
        if !align.is_power_of_two() {
            assert_eq!(error.status, Status::InvalidArgument);
            return;
        }
        assert_eq!(error.status, Status::OutOfMemory, "{error}");
        let (resident, budget) = (account::resident(), account::budget());
        assert!(resident + 2 * size + 2 * align + (2 << 20) > budget, "{size} bytes refused at {resident} of {budget}: {error}");
    }

    fn enter(&mut self, start: *mut u8, size: usize, zeroed: bool, tag: u8) {
        let (own, usable) = (start as usize, heap::usable(start));
        assert!(usable >= size);
        if zeroed {
            assert!(marks(size).all(|at| unsafe { start.add(at).read() } == 0), "{size} bytes at {start:?} are not zero");
        }
        assert_eq!(heap::find(start), Lookup::Live(Block { start, size, usable, tag }));
        assert!(self.live.range(..own).next_back().is_none_or(|(at, below)| at + below.size <= own));
        assert!(self.live.range(own..).next().is_none_or(|(at, _)| own + usable <= *at));
        self.count += 1;
        let entry = Entry { size, tag, seed: self.count };
        unsafe { fill(start, &entry) };
        self.live.insert(own, entry);
        self.bytes += size;
    }

    fn pick(&mut self, nth: usize) -> Option<(*mut u8, Entry)> {
        let from = nth % self.live.len().max(1);
        self.live.iter().nth(from).map(|(at, entry)| (*at as *mut u8, *entry))
    }

    fn forget(&mut self, start: *mut u8) {
        if let Some(entry) = self.live.remove(&(start as usize)) {
            self.bytes -= entry.size;
        }
    }

    fn free(&mut self, nth: usize) {
        let Some((start, entry)) = self.pick(nth) else { return };
        unsafe { check(start, &entry, usize::MAX) };
        assert!(unsafe { heap::free(start) });
        self.forget(start);
        assert_eq!(heap::find(start), Lookup::Freed { start });
        assert!(!unsafe { heap::free(start) }, "a second free was taken");
        assert!(unsafe { heap::resize(start, 10) }.is_err(), "a freed block was resized");
    }

    fn resize(&mut self) {
        let nth = self.input.word();
        let Some((start, entry)) = self.pick(nth) else { return };
        let (size, align) = (self.size().max(1), self.align());
        if self.bytes - entry.size + size + align > MOST_BYTES {
            return;
        }
        match unsafe { heap::resize_aligned(start, size, align) } {
            Ok(new) => {
                let new = new.as_ptr();
                assert_eq!(new as usize % align, 0);
                unsafe { check(new, &entry, size) };
                self.forget(start);
                assert!(new == start || heap::find(start) == Lookup::Freed { start } || self.bytes > 0);
                self.enter(new, size, false, entry.tag);
            }
            Err(error) => {
                self.refused(&error, size, align);
                unsafe { check(start, &entry, usize::MAX) };
                assert!(matches!(heap::find(start), Lookup::Live(block) if block.size == entry.size));
            }
        }
    }

    fn look(&mut self) {
        let nth = self.input.word();
        let Some((start, entry)) = self.pick(nth) else { return };
        unsafe { check(start, &entry, usize::MAX) };
        let inside = start.wrapping_add(1 + self.input.below(entry.size));
        if (inside as usize) < start as usize + entry.size {
            assert!(matches!(heap::find(inside), Lookup::Interior(block) if block.start == start && block.size == entry.size));
            assert!(!unsafe { heap::free(inside) } && unsafe { heap::resize(inside, 1) }.is_err());
        }
        let anywhere = (self.input.word() << 20 | self.input.word() << 4) as *mut u8;
        assert!(!unsafe { heap::free(anywhere) });
    }

    fn enumerate(&mut self) {
        for tag in TAGS {
            let mut seen = BTreeMap::new();
            heap::for_each_live(tag, &mut |block| assert!(seen.insert(block.start as usize, block.size).is_none()));
            let want = self.live.iter().filter(|(_, entry)| entry.tag == tag);
            assert!(seen.iter().map(|(at, size)| (*at, *size)).eq(want.map(|(at, entry)| (*at, entry.size))));
        }
    }

    /// Several blocks are freed by a thread that never had any.
    fn free_elsewhere(&mut self, most: usize) {
        let mut gone = Vec::new();
        for _ in 0..most.min(self.live.len()) {
            let nth = self.input.word();
            if let Some((start, entry)) = self.pick(nth) {
                self.forget(start);
                gone.push((start as usize, entry));
            }
        }
        let work = move || {
            for (start, entry) in gone {
                unsafe { check(start as *mut u8, &entry, usize::MAX) };
                assert!(unsafe { heap::free(start as *mut u8) });
            }
        };
        std::thread::spawn(work).join().unwrap();
    }

    /// A thread allocates, frees some and ends; the rest outlives it.
    fn allocate_elsewhere(&mut self) {
        let sizes: Vec<usize> = (0..self.input.byte() & 7).map(|_| self.size().min(1 << 20)).collect();
        if self.bytes + sizes.iter().sum::<usize>() > MOST_BYTES {
            return;
        }
        let work = move || {
            let made = sizes.iter().filter_map(|size| Some((heap::allocate(*size, 16, true, 1).ok()?.as_ptr() as usize, *size)));
            let (kept, dropped): (Vec<_>, Vec<_>) = made.partition(|(start, _)| start >> 4 & 1 == 0);
            assert!(dropped.iter().all(|(start, _)| unsafe { heap::free(*start as *mut u8) }));
            kept
        };
        for (start, size) in std::thread::spawn(work).join().unwrap() {
            self.enter(start as *mut u8, size.max(1), true, 1);
        }
    }
}

/// First, last and some bytes in between.
fn marks(size: usize) -> impl Iterator<Item = usize> {
    (0..size.min(64)).chain((0..size).step_by(509)).chain(size.saturating_sub(40)..size)
}

unsafe fn fill(start: *mut u8, entry: &Entry) {
    for at in marks(entry.size) {
        unsafe { start.add(at).write(mix(at as u64, entry.seed) as u8) };
    }
}

unsafe fn check(start: *const u8, entry: &Entry, upto: usize) {
    for at in marks(entry.size).filter(|at| *at < upto) {
        let (got, want) = (unsafe { start.add(at).read() }, mix(at as u64, entry.seed) as u8);
        assert_eq!(got, want, "byte {at} of {} at {start:?}", entry.size);
    }
}
