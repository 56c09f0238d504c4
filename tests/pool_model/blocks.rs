//! One thread: every operation against the model, bounds, contraction, budgets, look-ups, what is refused.

use super::*;
use qmem::error::Status;
use qmem::monitor::account::{self, Holder};
use qmem::registry::{self, Kind};
use qmem::{config, heap};
use std::collections::BTreeMap;

/// Blocks by start: the block size that they have.
struct Model {
    handle: usize,
    sizes: Vec<usize>,
    max: usize,
    live: BTreeMap<usize, usize>,
    random: Random,
    given: usize,
    peak: usize,
}

impl Model {
    fn bytes(&self) -> usize {
        self.live.values().sum()
    }

    fn of_size(&self, size: usize) -> usize {
        self.live.values().filter(|s| **s == size).count()
    }

    fn allocate(&mut self) {
        let top = self.sizes.last().unwrap() + 20;
        let near = self.sizes[self.random.below(self.sizes.len())];
        let asked = if self.random.below(3) == 0 { self.random.below(top) } else { near - self.random.below(near.min(9)) };
        let want = self.sizes.iter().copied().find(|size| *size >= asked);
        match (pool::allocate(self.handle, asked), want) {
            (Ok(block), Some(size)) => {
                let start = block.as_ptr() as usize;
                assert!(self.of_size(size) < self.max, "block {} of {size} bytes, of {}", self.of_size(size) + 1, self.max);
                assert!(start.is_multiple_of((1 << size.next_multiple_of(16).trailing_zeros()).min(65536)));
                assert!(self.live.range(..start).next_back().is_none_or(|(at, size)| at + size <= start));
                assert!(self.live.range(start..).next().is_none_or(|(at, _)| start + size <= *at));
                assert_eq!(pool::block_size(self.handle, asked).unwrap(), size);
                unsafe { fill(start, size) };
                self.live.insert(start, size);
                self.given += 1;
                self.peak = self.peak.max(self.bytes());
            }
            (Err(error), Some(size)) => {
                assert_eq!((error.status, self.of_size(size)), (Status::Limit, self.max), "{error}");
                assert!(error.to_string().contains(&format!("all {} blocks of {size} bytes", self.max)), "{error}");
            }
            (Err(error), None) => assert_eq!(error.status, Status::InvalidArgument),
            (Ok(_), None) => panic!("{asked} bytes from {:?}", self.sizes),
        }
    }

    fn pick(&mut self) -> Option<(usize, usize)> {
        let n = self.random.below(self.live.len().max(1));
        self.live.iter().nth(n).map(|(start, size)| (*start, *size))
    }

    fn release(&mut self) {
        let Some((start, size)) = self.pick() else { return };
        unsafe { check(start, size) };
        let ptr = start as *mut u8;
        if self.random.below(8) == 0 {
            unsafe { registry::free(ptr).unwrap() }; // any free goes to the pool
        } else {
            unsafe { pool::release(self.handle, ptr).unwrap() };
        }
        self.live.remove(&start);
        // Once more, and through every door: refused, as a block of the past or as nobody's.
        for again in [unsafe { pool::release(self.handle, ptr) }, unsafe { registry::free(ptr) }] {
            let error = again.unwrap_err();
            assert!(matches!(error.status, Status::InvalidArgument | Status::NotFound), "{error}");
        }
        assert!(registry::find(ptr).is_none() && !unsafe { heap::free(ptr) });
    }

    fn probe(&mut self) {
        let Some((start, size)) = self.pick() else { return };
        let inside = (start + self.random.below(size)) as *mut u8;
        let info = registry::find(inside).unwrap();
        assert_eq!((info.kind, info.start as usize, info.size, info.usable), (Kind::Pool, start, size, size));
        assert_ne!(registry::find((start + size) as *mut u8).map(|info| info.start as usize), Some(start));
        assert!(registry::retain(start as *mut u8).is_err() && registry::references(start as *mut u8) == 1);
        if inside as usize != start {
            assert!(unsafe { pool::release(self.handle, inside) }.unwrap_err().to_string().contains("pass the start"));
        }
        assert!(!unsafe { heap::free(start as *mut u8) }, "the heap freed a pool's slab");
    }

    fn resize(&mut self) {
        let Some((start, size)) = self.pick() else { return };
        let to = 1 + self.random.below(self.sizes.last().unwrap() + 10);
        let want = self.sizes.iter().copied().find(|size| *size >= to);
        let result = unsafe { registry::resize(start as *mut u8, to, 16) };
        let room = want.is_some_and(|want| want == size || self.of_size(want) < self.max);
        match result {
            Ok(new) => {
                let (new, got) = (new.as_ptr() as usize, pool::find(new.as_ptr()).unwrap().size);
                assert!(got >= to && (Some(got) == want || got == size));
                let first = |at: usize| unsafe { (at as *const u8).read() };
                assert_eq!(first(new), start as u8, "contents are kept");
                self.live.remove(&start);
                assert!(self.live.insert(new, got).is_none());
                unsafe { fill(new, got) };
                if new != start {
                    self.given += 1;
                    self.peak = self.peak.max(self.bytes() + size);
                }
            }
            Err(error) => {
                assert!(!room, "{error}");
                unsafe { check(start, size) };
            }
        }
    }

    fn count(&mut self) {
        let stats = pool::stats(self.handle).unwrap();
        assert_eq!(stats.live, self.bytes());
        assert_eq!((stats.given, (stats.given - stats.taken) as usize), (self.given as u64, self.live.len()));
        assert_eq!(stats.peak, self.peak, "{stats:?} after {} blocks of {:?}", self.given, self.sizes.len());
        assert!(stats.held >= stats.live && stats.held_peak >= stats.held && stats.hits <= stats.given);
    }

    fn run(seed: u64, sizes: &[usize], initial: usize, max: usize, thread_cache: bool, steps: usize) {
        let handle = create(sizes, initial, max, thread_cache);
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable();
        let mut model = Model { handle, sizes, max, live: BTreeMap::new(), random: Random(seed), given: 0, peak: 0 };
        for step in 0..steps {
            // Waves: mostly more, then mostly fewer.
            let more = if step / 1500 % 2 == 0 { 7 } else { 4 };
            match model.random.below(14) {
                n if n < more => model.allocate(),
                11 => model.probe(),
                12 => model.resize(),
                13 if step % 5 == 0 => pool::trim(handle).unwrap(),
                _ => model.release(),
            }
            if step % 97 == 0 {
                model.count();
            }
        }
        let mut left = Vec::new();
        unsafe { pool::destroy(handle, &mut |start, size| left.push((start, size))).unwrap() };
        left.sort_unstable();
        assert!(left.into_iter().eq(model.live), "what destroy reports is what is live");
        assert!(pool::allocate(handle, 1).is_err() && pool::stats(handle).is_err());
    }
}

#[test]
fn operations_do_what_the_model_does() {
    let _guard = alone();
    let before = account::held(Holder::Heap);
    for (seed, cache) in [(1, false), (2, true)] {
        Model::run(seed, &config::POOL_SIZES_DEFAULT, 0, 65536, cache, 12_000);
        Model::run(seed + 10, &[90, 1, 33, 4000], 5, 700, cache, 12_000);
        Model::run(seed + 20, &[100_000, 64, 70_000], 1, 9, cache, 4000);
        Model::run(seed + 30, &[16], 1, 5000, cache, 12_000);
        Model::run(seed + 40, &[1_500_000, 300_000], 1, 4, cache, 1500);
        Model::run(seed + 50, &(1..=200).collect::<Vec<_>>(), 1, 3, cache, 6000);
    }
    heap::trim();
    let after = account::held(Holder::Heap);
    assert!(after <= before + (1 << 20), "{before} bytes grew to {after}");
}

#[test]
fn a_pool_grows_when_it_must_and_shrinks_when_it_can() {
    let _guard = alone();
    for cache in [false, true] {
        let handle = create(&[1000], 100, 50_000, cache);
        let held = || pool::stats(handle).unwrap().held;
        let first = held();
        assert!((100_000..400_000).contains(&first), "{first}");
        let mut blocks: Vec<_> = (0..50_000).map(|_| pool::allocate(handle, 1000).unwrap().as_ptr() as usize).collect();
        assert_eq!(pool::allocate(handle, 1000).unwrap_err().status, Status::Limit);
        let full = held();
        assert!(full > 50_000_000 && full < 56_000_000, "{full} bytes for 50 MB of blocks");
        let mut random = Random(8);
        for at in (1..blocks.len()).rev() {
            blocks.swap(at, random.below(at + 1));
        }
        blocks.into_iter().for_each(|start| unsafe { pool::release(handle, start as *mut u8).unwrap() });
        // Without being asked: what was there from the start is left, a little beside it, and what the thread keeps at hand.
        let pinned = if cache { 16 << 16 } else { 0 };
        assert!((100_000..=first + (2 << 16) + pinned).contains(&held()), "{} of {full} bytes are held", held());
        pool::trim(handle).unwrap();
        assert_eq!(held(), 0);
        let again = pool::allocate(handle, 1).unwrap();
        unsafe { pool::release(handle, again.as_ptr()).unwrap() };
        end(handle);
    }
}

#[test]
fn blocks_are_ready_and_resident_after_a_warm_up() {
    let _guard = alone();
    let handle = create(&[4096, 64], 1, 3000, true);
    pool::warm(handle, 4000, 2000).unwrap();
    let faults = || {
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
        usage.ru_minflt
    };
    let held = pool::stats(handle).unwrap().held;
    let before = faults();
    let mut blocks = Vec::with_capacity(3000);
    for _ in 0..2000 {
        let block = pool::allocate(handle, 4096).unwrap().as_ptr();
        unsafe { block.write(1) };
        blocks.push(block);
    }
    assert!(faults() - before < 60, "{} faults in 2000 warm blocks", faults() - before);
    assert_eq!(pool::stats(handle).unwrap().held, held);
    assert_eq!(pool::warm(handle, 4096, 3001).unwrap_err().status, Status::InvalidArgument);
    assert!(pool::warm(handle, 4096, 1001).unwrap_err().to_string().contains("only 1000"));
    pool::warm(handle, 4096, 1000).unwrap();
    blocks.into_iter().for_each(|block| unsafe { pool::release(handle, block).unwrap() });
    pool::warm(handle, 4096, 3000).unwrap(); // what the thread keeps at hand is collected for it
    end(handle);
}

#[test]
fn pools_stay_inside_the_budget() {
    let _guard = alone();
    heap::trim();
    let base = account::resident();
    account::set_budget(base + (8 << 20));
    let big = pool::create(&Config { sizes: &[4096], initial: 4000, max: 0, thread_cache: false }).unwrap_err();
    assert!(big.status == Status::OutOfMemory && big.to_string().contains("initial_capacity = 4000 blocks of 4096"), "{big}");
    let handle = create(&[], 0, 0, true); // what was not asked for takes a part of what there is
    assert!(pool::stats(handle).unwrap().held <= (1 << 20) + (8 << 16));
    let mut blocks = Vec::new();
    let error = loop {
        match pool::allocate(handle, 4096) {
            Ok(block) => blocks.push(block.as_ptr()),
            Err(error) => break error,
        }
        assert!(account::resident() <= account::budget());
    };
    assert_eq!(error.status, Status::OutOfMemory, "{error}");
    assert!(blocks.len() * 4096 > 6 << 20, "only {} blocks of 4 KiB from 8 MiB", blocks.len());
    blocks.into_iter().for_each(|block| unsafe { pool::release(handle, block).unwrap() });
    account::set_budget(usize::MAX);
    end(handle);
    heap::trim();
    assert!(account::resident() <= base + (64 << 10), "{} bytes stay of {base}", account::resident());
}

#[test]
fn bad_requests_are_refused_with_their_numbers() {
    let bad = |sizes: &[usize], initial, max| {
        let error = pool::create(&Config { sizes, initial, max, thread_cache: false }).unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument);
        error.to_string()
    };
    assert!(bad(&[64, 0], 0, 0).contains("block_sizes[1] = 0"));
    assert!(bad(&[64, 64], 0, 0).contains("64 more than once"));
    assert!(bad(&[64], 11, 10).contains("initial_capacity = 11 and max_capacity = 10"));
    assert!(bad(&[64], 0, 1 << 32).contains("4294967295"));
    assert!(bad(&[64], 70_000, 0).contains("65536"));
    let (one, other) = (create(&[64], 1, 2, false), create(&[64], 1, 2, false));
    let block = pool::allocate(one, 64).unwrap().as_ptr();
    assert!(unsafe { pool::release(other, block) }.unwrap_err().to_string().contains("another pool"));
    let local = [0u8; 64];
    for ptr in [local.as_ptr().cast_mut(), 16 as *mut u8, usize::MAX as *mut u8, one as *mut u8] {
        assert_eq!(unsafe { pool::release(one, ptr) }.unwrap_err().status, Status::NotFound, "{ptr:?}");
    }
    assert!(
        pool::allocate(one, 65)
            .unwrap_err()
            .to_string()
            .contains("65 bytes are more than the pool's largest block, which has 64")
    );
    for handle in [0, 5, one + 1, one ^ 1 << 40] {
        assert!(pool::allocate(handle, 1).is_err() && pool::trim(handle).is_err() && pool::warm(handle, 1, 1).is_err());
    }
    unsafe { pool::release(one, block).unwrap() };
    end(one);
    end(other);
    assert!(pool::allocate(one, 1).unwrap_err().to_string().contains("destroyed already"));
}
