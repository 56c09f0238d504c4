//! One thread: every operation against the model, alignments, bad requests, large blocks.

use super::*;
use qmem::error::Status;
use qmem::heap::{Block, Lookup, MAX_TAG};
use qmem::monitor::account::{self, Holder};
use std::collections::BTreeMap;

#[derive(Clone, Copy)]
struct Entry {
    size: usize,
    tag: u8,
    seed: u64,
}

struct Model {
    live: BTreeMap<usize, Entry>,
    random: Random,
}

impl Model {
    fn allocate(&mut self, bits: usize) {
        let (size, tag, zeroed) = (self.random.size(bits), self.random.below(3) as u8, self.random.below(3) == 0);
        let shifts = if self.random.below(10) == 0 { 23 } else { 8 };
        let align = 1usize << self.random.below(shifts);
        let start = heap::allocate(size, align, zeroed, tag).unwrap().as_ptr();
        assert_eq!(start as usize % align.max(16), 0);
        if zeroed {
            assert!((0..size).all(|at| unsafe { start.add(at).read() } == 0), "{size} bytes at {start:?} are not zero");
        }
        let (found, usable) = (heap::find(start), heap::usable(start));
        assert_eq!(found, Lookup::Live(Block { start, size: size.max(1), usable, tag }));
        let size = size.max(1);
        assert!(usable >= size);
        let own = start as usize;
        if let Some((at, below)) = self.live.range(..own).next_back() {
            assert!(at + below.size <= own);
        }
        if let Some((at, _)) = self.live.range(own..).next() {
            assert!(own + usable <= *at);
        }
        let seed = self.random.next();
        unsafe { fill(start, size, seed) };
        self.live.insert(own, Entry { size, tag, seed });
    }

    fn pick(&mut self) -> Option<(usize, Entry)> {
        let n = self.random.below(self.live.len().max(1));
        self.live.iter().nth(n).map(|(at, entry)| (*at, *entry))
    }

    fn free(&mut self) {
        let Some((at, entry)) = self.pick() else { return };
        let start = at as *mut u8;
        unsafe { check(start, entry.size, entry.seed, usize::MAX) };
        assert!(unsafe { heap::free(start) });
        self.live.remove(&at);
        // Freed small blocks are known as such at once; a large one until its address is used again.
        assert_eq!(heap::find(start), Lookup::Freed { start });
        assert!(!unsafe { heap::free(start) }, "a second free of {start:?} was taken");
    }

    fn resize(&mut self, bits: usize) {
        let Some((at, entry)) = self.pick() else { return };
        let size = self.random.size(bits).max(1);
        let start = unsafe { heap::resize(at as *mut u8, size) }.unwrap().as_ptr();
        unsafe { check(start, entry.size, entry.seed, size) };
        let Lookup::Live(block) = heap::find(start) else { panic!("{start:?} is not live") };
        assert_eq!((block.size, block.tag), (size, entry.tag));
        self.live.remove(&at);
        unsafe { fill(start, size, entry.seed) };
        self.live.insert(start as usize, Entry { size, ..entry });
    }

    fn probe(&mut self) {
        let Some((at, entry)) = self.pick() else { return };
        if entry.size > 1 {
            let inside = (at + 1 + self.random.below(entry.size - 1)) as *mut u8;
            assert!(matches!(heap::find(inside), Lookup::Interior(block) if block.start as usize == at));
            assert!(!unsafe { heap::free(inside) });
        }
    }

    fn enumerate(&self) {
        for tag in 0..3 {
            let mut seen = BTreeMap::new();
            heap::for_each_live(tag, &mut |block| assert!(seen.insert(block.start as usize, block.size).is_none()));
            let want = self.live.iter().filter(|(_, e)| e.tag == tag);
            assert!(seen.iter().map(|(a, s)| (*a, *s)).eq(want.map(|(a, e)| (*a, e.size))));
        }
    }

    fn run(seed: u64, steps: usize, most: usize, bits: usize) {
        let mut model = Model { live: BTreeMap::new(), random: Random(seed) };
        for step in 0..steps {
            match model.random.below(if model.live.len() < most { 12 } else { 16 }) {
                0..=5 => model.allocate(bits),
                6..=7 => model.resize(bits),
                8 => model.probe(),
                _ => model.free(),
            }
            if step % 1000 == 0 {
                model.enumerate();
            }
            if step % 3001 == 0 {
                heap::trim();
            }
        }
        while !model.live.is_empty() {
            model.free();
        }
        model.enumerate();
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    let _guard = alone();
    for (seed, bits, most) in [(1, 8, 4000), (2, 12, 2000), (3, 16, 500), (4, 20, 60), (5, 24, 12), (6, 19, 100)] {
        Model::run(seed, if bits > 16 { 3000 } else { 12000 }, most, bits);
    }
}

#[test]
fn every_alignment_is_met() {
    let _guard = shared();
    for shift in 0..=30 {
        for size in [0, 1, 100, 5000, 300_000, 3 << 20] {
            let align = 1usize << shift;
            let start = heap::allocate(size, align, true, 0).unwrap().as_ptr();
            assert_eq!(start as usize % align, 0);
            let usable = heap::usable(start);
            assert!(usable >= size.max(1));
            for at in [0, usable / 2, usable - 1] {
                unsafe { start.add(at).write(0xff) };
            }
            assert!(unsafe { heap::free(start) });
        }
    }
}

/// Also where it could stay: a large block that grows moves, to a multiple of what is asked for now.
#[test]
fn resizing_meets_another_alignment() {
    let _guard = shared();
    let mut blocks = Vec::new();
    for shift in 4..=24 {
        let align = 1usize << shift;
        for (from, to) in
            [(100, 3000), (5000, 200), (300_000, 900_000), (3 << 20, 5 << 20), (8 << 20, 2 << 20), (2 << 20, 40 << 20)]
        {
            let start = heap::allocate(from, 16, false, 0).unwrap().as_ptr();
            unsafe { start.write(7) };
            let moved = unsafe { heap::resize_aligned(start, to, align) }.unwrap().as_ptr();
            assert_eq!(moved as usize % align, 0, "{from} to {to} bytes at {align}");
            assert_eq!(unsafe { moved.read() }, 7);
            let grown = unsafe { heap::resize_aligned(moved, to * 2, align) }.unwrap().as_ptr();
            assert_eq!(grown as usize % align, 0, "{to} to {} bytes at {align}", to * 2);
            blocks.push(grown);
            if blocks.len() > 6 {
                assert!(unsafe { heap::free(blocks.remove(0)) });
            }
        }
    }
    for align in [0, 3, 1 << 31] {
        let error = unsafe { heap::resize_aligned(blocks[0], 10, align) }.unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument, "{align}");
    }
    blocks.into_iter().for_each(|block| assert!(unsafe { heap::free(block) }));
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let _guard = shared();
    for (size, align, tag, status) in [
        (1, 0, 0, Status::InvalidArgument),
        (1, 3, 0, Status::InvalidArgument),
        (1, 1 << 31, 0, Status::InvalidArgument),
        (1, 16, MAX_TAG + 1, Status::InvalidArgument),
        (usize::MAX, 16, 0, Status::OutOfMemory),
        (isize::MAX as usize, 16, 0, Status::OutOfMemory),
        (1 << 50, 16, 0, Status::OutOfMemory),
    ] {
        assert_eq!(heap::allocate(size, align, false, tag).unwrap_err().status, status, "{size} {align} {tag}");
    }
    let on_stack = 1u64;
    let stack = (&raw const on_stack).cast::<u8>().cast_mut();
    for ptr in [stack, std::ptr::null_mut(), std::ptr::without_provenance_mut(usize::MAX), std::ptr::without_provenance_mut(4096)]
    {
        assert_eq!(heap::find(ptr), Lookup::Unknown);
        assert!(!unsafe { heap::free(ptr) });
        assert!(unsafe { heap::resize(ptr, 10) }.is_err());
    }
    let boxed = Box::new([1u8; 100]);
    assert_eq!(heap::find(boxed.as_ptr()), Lookup::Unknown);
}

#[test]
fn a_large_block_grows_without_copying_and_stays_aligned() {
    let _guard = alone();
    heap::trim();
    let held = account::held(Holder::Heap);
    let mut size = 2usize << 20;
    let mut start = heap::allocate(size, 16, false, 0).unwrap().as_ptr();
    unsafe { start.write_bytes(0xa5, size) };
    // In the way of growth in place.
    let others: Vec<_> = (0..4).map(|_| heap::allocate(3 << 20, 16, false, 0).unwrap()).collect();
    for step in 0..12 {
        let to = if step % 4 == 3 { size / 2 + 12345 } else { size * 3 / 2 + 4097 };
        start = unsafe { heap::resize(start, to) }.unwrap().as_ptr();
        assert_eq!(start as usize % (2 << 20), 0);
        let large = heap::usable(start) + others.iter().map(|o| heap::usable(o.as_ptr())).sum::<usize>();
        assert_eq!((heap::stats().large, account::held(Holder::Heap) - held), (large, large));
        let common = size.min(to);
        assert!((0..common.min(1 << 20)).step_by(1000).all(|at| unsafe { start.add(at).read() } == 0xa5));
        assert!((size..to).step_by(4096).all(|at| at < heap::usable(start)));
        unsafe { start.write_bytes(0xa5, to) };
        size = to;
    }
    assert!(unsafe { heap::free(start) });
    heap::trim(); // it may be kept for the next one
    let units = (start as usize..start as usize + size).step_by(2 << 20);
    assert!(units.into_iter().all(|unit| qmem::ds::page_map::get(unit).is_none()));
    assert!(others.into_iter().all(|o| unsafe { heap::free(o.as_ptr()) }));
}
