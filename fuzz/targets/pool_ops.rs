//! Pools under sequences of operations: sizes, bounds and caches as the fuzzer likes, one pool or two at a time, blocks that other
//! threads take and release, budgets that are too small. Held: the smallest size that fits, contents, bounds, look-ups, statistics,
//! what is refused, and at the end that nothing stays charged.
#![no_main]
#![allow(clippy::undocumented_unsafe_blocks)] // every pointer used is live by the model, or the call under test must refuse it

use libfuzzer_sys::fuzz_target;
use qmem::error::Status;
use qmem::monitor::account::{self, Holder};
use qmem::pool::{self, Config};
use qmem::{heap, registry};
use qmem_fuzz::{Input, mix};
use std::collections::BTreeMap;

/// Bytes of live blocks at most: a fuzzer's process is small.
const MOST_BYTES: usize = 32 << 20;

struct Pool {
    handle: usize,
    sizes: Vec<usize>,
    max: usize,
    live: BTreeMap<usize, usize>,
    given: u64,
    peak: usize,
    alone: bool,
}

impl Pool {
    fn new(input: &mut Input) -> Option<Self> {
        let count = input.byte() as usize % 9;
        let sizes: Vec<usize> = (0..count).map(|_| 1usize << (input.byte() % 22) | input.word()).map(|size| size & 0x1f_ffff).collect();
        let (initial, max, cache) = (input.byte() as usize % 40, input.word() % 500, input.byte() & 1 == 1);
        let made = pool::create(&Config { sizes: &sizes, initial, max, thread_cache: cache });
        let mut sorted = sizes.clone();
        sorted.sort_unstable();
        let twice = sorted.windows(2).any(|pair| pair[0] == pair[1]);
        match made {
            Ok(handle) => {
                assert!(!twice && !sizes.contains(&0) && (max == 0 || initial <= max));
                if sorted.is_empty() {
                    sorted = qmem::config::POOL_SIZES_DEFAULT.to_vec();
                }
                let max = if max == 0 { 65536 } else { max };
                Some(Self { handle, sizes: sorted, max, live: BTreeMap::new(), given: 0, peak: 0, alone: true })
            }
            Err(error) => {
                let bad = twice || sizes.contains(&0) || (max != 0 && initial > max);
                assert_eq!(error.status == Status::InvalidArgument, bad, "{error}");
                None
            }
        }
    }

    fn bytes(&self) -> usize {
        self.live.values().sum()
    }

    fn of_size(&self, size: usize) -> usize {
        self.live.values().filter(|s| **s == size).count()
    }

    fn allocate(&mut self, asked: usize) {
        if self.bytes() + asked > MOST_BYTES {
            return;
        }
        let want = self.sizes.iter().copied().find(|size| *size >= asked);
        match (pool::allocate(self.handle, asked), want) {
            (Ok(block), Some(size)) => {
                assert!(self.of_size(size) < self.max);
                self.enter(block.as_ptr() as usize, size);
            }
            (Err(error), Some(size)) if error.status == Status::Limit => assert_eq!(self.of_size(size), self.max, "{error}"),
            (Err(error), Some(_)) => assert_eq!(error.status, Status::OutOfMemory, "{error}"),
            (Err(error), None) => assert_eq!(error.status, Status::InvalidArgument),
            (Ok(_), None) => panic!("{asked} bytes from {:?}", self.sizes),
        }
    }

    fn enter(&mut self, start: usize, size: usize) {
        assert!(self.live.range(..start).next_back().is_none_or(|(at, size)| at + size <= start));
        assert!(self.live.range(start..).next().is_none_or(|(at, _)| start + size <= *at));
        assert!(start.is_multiple_of((1 << size.next_multiple_of(16).trailing_zeros()).min(65536)));
        unsafe { fill(start, size) };
        self.live.insert(start, size);
        self.given += 1;
        self.peak = self.peak.max(self.bytes());
    }

    fn pick(&self, nth: usize) -> Option<(usize, usize)> {
        let from = nth % self.live.len().max(1);
        self.live.iter().nth(from).map(|(start, size)| (*start, *size))
    }

    fn release(&mut self, nth: usize, through_registry: bool) {
        let Some((start, size)) = self.pick(nth) else { return };
        unsafe { check(start, size) };
        let ptr = start as *mut u8;
        let done = unsafe { if through_registry { registry::free(ptr) } else { pool::release(self.handle, ptr) } };
        done.unwrap();
        self.live.remove(&start);
        assert!(unsafe { pool::release(self.handle, ptr) }.is_err(), "a second release was taken");
        assert!(unsafe { registry::free(ptr) }.is_err() && registry::find(ptr).is_none());
    }

    fn resize(&mut self, nth: usize, to: usize) {
        let Some((start, size)) = self.pick(nth) else { return };
        let want = self.sizes.iter().copied().find(|size| *size >= to);
        let Ok(new) = (unsafe { registry::resize(start as *mut u8, to, 16) }) else {
            unsafe { check(start, size) };
            return;
        };
        let got = pool::find(new.as_ptr()).unwrap().size;
        assert!(got >= to && (Some(got) == want || got == size));
        if new.as_ptr() as usize != start {
            self.peak = self.peak.max(self.bytes() + got);
            self.live.remove(&start);
            self.enter(new.as_ptr() as usize, got);
        }
    }

    /// A thread that never used the pool takes some blocks, releases some of ours and ends.
    fn elsewhere(&mut self, input: &mut Input) {
        self.alone = false;
        let mut gone = Vec::new();
        for _ in 0..input.byte() & 15 {
            if let Some((start, size)) = self.pick(input.word()) {
                self.live.remove(&start);
                gone.push((start, size));
            }
        }
        let asked: Vec<usize> = (0..input.byte() & 15).map(|_| self.sizes[input.byte() as usize % self.sizes.len()]).collect();
        let (handle, fits) = (self.handle, self.bytes() + asked.iter().sum::<usize>() <= MOST_BYTES);
        let work = move || {
            for (start, size) in gone {
                unsafe { check(start, size) };
                unsafe { pool::release(handle, start as *mut u8) }.unwrap();
            }
            let taken = asked.into_iter().filter(|_| fits).filter_map(|size| Some((pool::allocate(handle, size).ok()?.as_ptr() as usize, size)));
            taken.collect::<Vec<_>>()
        };
        for (start, size) in std::thread::spawn(work).join().unwrap() {
            self.enter(start, size);
        }
    }

    fn count(&self) {
        let stats = pool::stats(self.handle).unwrap();
        assert_eq!((stats.live, stats.given), (self.bytes(), self.given));
        assert_eq!((stats.given - stats.taken) as usize, self.live.len());
        assert!(stats.held >= stats.live && stats.held_peak >= stats.held && stats.hits <= stats.given);
        assert!(!self.alone || stats.peak == self.peak, "{stats:?}, and the peak was {}", self.peak);
    }

    fn end(self) {
        let mut left = Vec::new();
        unsafe { pool::destroy(self.handle, &mut |start, size| left.push((start, size))).unwrap() };
        left.sort_unstable();
        assert!(left.into_iter().eq(self.live));
        assert!(pool::trim(self.handle).is_err());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    heap::trim();
    let (held, resident) = (account::held(Holder::Heap), account::resident());
    let tight = input.byte();
    account::set_budget(if tight & 1 == 1 { resident + ((2 + (tight as usize >> 1) % 60) << 20) } else { usize::MAX });
    let mut pools: [Option<Pool>; 2] = [None, None];
    while !input.is_over() {
        let operation = input.byte();
        let slot = &mut pools[usize::from(operation >> 7)];
        let Some(one) = slot else {
            *slot = Pool::new(&mut input);
            continue;
        };
        match operation & 15 {
            0..=4 => {
                let near = one.sizes[input.byte() as usize % one.sizes.len()];
                one.allocate(near - (input.byte() as usize & 3).min(near - 1));
            }
            5 => one.allocate(input.word() << (input.byte() & 7)),
            6..=9 => one.release(input.word(), operation & 16 != 0),
            10 => one.resize(input.word(), 1 + (input.word() << (input.byte() & 7))),
            11 => one.elsewhere(&mut input),
            12 => pool::trim(one.handle).unwrap(),
            13 => {
                let size = one.sizes[input.byte() as usize % one.sizes.len()];
                if size < 1 << 16 {
                    let _ = pool::warm(one.handle, size, input.byte() as usize); // LIMIT or OUT_OF_MEMORY where it must
                }
            }
            14 => {
                let wild = (input.word() << 20 | input.word() << 4) as *mut u8;
                assert!(unsafe { pool::release(one.handle, wild) }.is_err());
                if let Some((start, size)) = one.pick(input.word()) {
                    let inside = start + 1 + input.below(size);
                    let found = registry::find(inside as *mut u8).map(|info| info.start as usize);
                    assert_eq!(found == Some(start), inside < start + size);
                    assert!(unsafe { pool::release(one.handle, (start + 1) as *mut u8) }.is_err());
                }
            }
            _ => slot.take().unwrap().end(),
        }
        pools.iter().flatten().for_each(Pool::count);
        assert!(account::resident() <= account::budget());
    }
    pools.into_iter().flatten().for_each(Pool::end);
    account::set_budget(usize::MAX);
    heap::trim();
    assert!(account::held(Holder::Heap) <= held + (1 << 20), "{held} bytes grew to {}", account::held(Holder::Heap));
});

unsafe fn fill(start: usize, size: usize) {
    for at in (0..size.min(32)).chain((0..size).step_by(509)).chain([size - 1]) {
        unsafe { (start as *mut u8).add(at).write(mix(at as u64, start as u64) as u8) };
    }
}

unsafe fn check(start: usize, size: usize) {
    for at in (0..size.min(32)).chain((0..size).step_by(509)).chain([size - 1]) {
        let (got, want) = (unsafe { (start as *const u8).add(at).read() }, mix(at as u64, start as u64) as u8);
        assert_eq!(got, want, "byte {at} of {size} at {start:#x}");
    }
}
