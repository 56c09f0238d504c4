//! The pager under everything at once: threads that write, check, evict, prefetch, pin, drop, resize, free and allocate regions
//! of mixed chunk sizes and contents under a tight budget, against a model of what every block must hold. QMEM_TEST_SECONDS sets
//! how long (default 15), QMEM_TEST_SEED what happens, QMEM_TEST_ROUND names the one round to run; the seed is printed.

use qmem::config;
use qmem::monitor::account::{self, Holder};
use qmem::paged::{self, Options, Request, Strategy};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What one thread writes or checks at a time; several share every chunk.
const BLOCK: usize = 16 * KIB;
const REGIONS: usize = 10;
/// No operation takes longer than this unless somebody was forgotten.
const STUCK: Duration = Duration::from_secs(30);

static OPERATIONS: AtomicU64 = AtomicU64::new(0);
/// One pager per process: the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 24
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What a block holds: a kind of content, and a number that makes it its own.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Content {
    kind: u8,
    salt: u64,
}

const ZERO: Content = Content { kind: 4, salt: 0 };
const KINDS: usize = 6;

impl Content {
    fn any(random: &mut Random, compressible: bool) -> Self {
        Self { kind: if compressible { 2 + random.below(4) } else { random.below(KINDS) } as u8, salt: random.next() }
    }

    /// The word at this place of the region.
    fn word(self, i: usize) -> u64 {
        let noise = |x: u64| {
            let x = (x ^ self.salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
        };
        match self.kind {
            0 => noise(i as u64),
            1 if i.is_multiple_of(2) => noise(i as u64),
            2 => (i / 300) as u64 ^ self.salt,
            4 => 0,
            5 => noise((i / 512 % 5) as u64) & 0xFFFF, // few different pages
            _ => self.salt,
        }
    }
}

/// One region and what it should hold, by block.
struct Model {
    start: usize,
    size: usize,
    request: Request,
    blocks: Vec<Mutex<Content>>,
}

impl Model {
    fn new(round: &Round, random: &mut Random) -> Option<Self> {
        let chunk = [0, 64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB][random.below(8)];
        let size = (1 + random.below(round.largest / 4096)) * 4096 - random.below(2) * 24;
        let pooled = round.pool_limit > 0 && random.one_in(3);
        let request =
            Request { size, align: 0, chunk_size: chunk, swappable: true, element: None, tolerance: 0.0, pooled, tag: 1 };
        let start = paged::allocate(&request).ok()?.as_ptr() as usize;
        let blocks = (0..size.div_ceil(BLOCK)).map(|_| Mutex::new(ZERO)).collect();
        Some(Self { start, size, request, blocks })
    }

    fn words(&self, block: usize) -> std::ops::Range<usize> {
        block * BLOCK / 8..((block + 1) * BLOCK).min(self.size) / 8
    }

    fn check(&self, block: usize, is: Content) {
        let base = self.start as *const u64;
        for i in self.words(block) {
            // SAFETY: inside the region, which lives as long as its model; the block's lock is ours.
            let found = unsafe { base.add(i).read() };
            if found != is.word(i) {
                eprintln!(
                    "word {i} of {:#x} ({:?}) is {found:#x}, not {:#x}: block {block} of {} should hold {is:?}",
                    self.start,
                    self.request,
                    is.word(i),
                    self.blocks.len()
                );
                std::process::abort();
            }
        }
    }

    fn write(&self, block: usize, content: Content) {
        let base = self.start as *mut u64;
        for i in self.words(block) {
            // SAFETY: as in `check`.
            unsafe { base.add(i).write(content.word(i)) };
        }
    }

    fn check_all(&self) {
        for (i, block) in self.blocks.iter().enumerate() {
            self.check(i, *block.lock().unwrap());
        }
    }

    fn range(&self, random: &mut Random) -> (*const u8, usize) {
        let at = random.below(self.size);
        let len = 1 + random.below((self.size - at).min(6 * MIB));
        ((self.start + at) as *const u8, len)
    }

    /// A pinned block stays, and what the program drops from it reads as zeros.
    fn pin(&self, random: &mut Random) {
        let block = random.below(self.blocks.len());
        let (first, len) = (self.start + block * BLOCK, BLOCK.min(self.size - block * BLOCK));
        if paged::pin(first as *const u8, len).is_err() {
            return;
        }
        let mut content = self.blocks[block].lock().unwrap();
        self.check(block, *content);
        if len == BLOCK && random.one_in(4) {
            // SAFETY: whole pages of our own block.
            unsafe { libc::madvise(first as *mut _, BLOCK, libc::MADV_DONTNEED) };
            *content = ZERO;
            self.check(block, ZERO);
        }
        drop(content);
        paged::unpin(first as *const u8, len).unwrap();
    }

    /// Whole chunks of one content, so that what is stored as a pattern or a dictionary is met too.
    fn fill(&mut self, random: &mut Random, content: Content) {
        let first = random.below(self.blocks.len());
        let last = (first + random.below(4 * MIB / BLOCK)).min(self.blocks.len());
        for block in first..last {
            self.write(block, content);
            *self.blocks[block].get_mut().unwrap() = content;
        }
    }

    fn resize(&mut self, round: &Round, random: &mut Random) {
        let size = (1 + random.below(round.largest / 4096)) * 4096;
        // SAFETY: the model is ours alone, and with it the region.
        let Ok(start) = (unsafe { paged::resize(self.start as *mut u8, size) }) else { return };
        (self.start, self.request.size) = (start.as_ptr() as usize, size);
        let cut = !self.size.is_multiple_of(BLOCK) && size != self.size;
        if cut && size > self.size {
            // The last block was not whole: the rest of it is zero now. Settle that by writing it whole.
            let (last, old) = (self.blocks.len() - 1, self.size);
            let content = *self.blocks[last].get_mut().unwrap();
            let whole = Model { start: self.start, size: old, request: self.request, blocks: Vec::new() };
            whole.check(last, content);
            for i in old / 8..((last + 1) * BLOCK).min(size) / 8 {
                // SAFETY: inside the region, which is ours alone.
                assert_eq!(unsafe { (self.start as *const u64).add(i).read() }, 0, "growth is zero: word {i}");
            }
            self.size = size;
            self.write(last, content);
        }
        self.size = size;
        self.blocks.resize_with(size.div_ceil(BLOCK), || Mutex::new(ZERO));
    }

    fn free(self) {
        // SAFETY: the model is gone, and with it everyone who uses the region.
        unsafe { paged::free(self.start as *mut u8).unwrap() };
    }
}

struct Round {
    name: &'static str,
    budget: usize,
    swap_max: usize,
    strategy: Strategy,
    compression: bool,
    swapping: bool,
    compressible: bool,
    largest: usize,
    pool_limit: usize,
    heap: bool,
    threads: usize,
}

const PLAIN: Round = Round {
    name: "compression and swap",
    budget: 64 * MIB,
    swap_max: 0,
    strategy: Strategy::Adaptive,
    compression: true,
    swapping: true,
    compressible: false,
    largest: 30 * MIB,
    pool_limit: 0,
    heap: false,
    threads: 4,
};

const ROUNDS: &[Round] = &[
    PLAIN,
    Round { name: "swap only", compression: false, budget: 48 * MIB, ..PLAIN },
    Round { name: "little swap", swap_max: 160 * MIB, budget: 40 * MIB, threads: 6, ..PLAIN },
    Round { name: "pool and heap", pool_limit: 12 * MIB, heap: true, strategy: Strategy::Throughput, ..PLAIN },
    Round { name: "compact", swapping: false, strategy: Strategy::Compact, compressible: true, ..PLAIN },
    Round { name: "many threads", threads: 24, budget: 36 * MIB, strategy: Strategy::Latency, ..PLAIN },
];

fn operation(round: &Round, slot: &RwLock<Option<Model>>, random: &mut Random) {
    if random.one_in(40) {
        let mut entry = slot.write().unwrap();
        match (random.below(5), entry.as_mut()) {
            (0, Some(_)) | (_, None) => {
                if let Some(old) = entry.take() {
                    old.free();
                }
                *entry = Model::new(round, random);
            }
            (1 | 2, Some(model)) => model.resize(round, random),
            (_, Some(model)) => {
                let content = Content::any(random, round.compressible);
                model.fill(random, content);
            }
        }
        return;
    }
    let entry = slot.read().unwrap();
    let Some(model) = entry.as_ref() else { return };
    match random.below(20) {
        0 => drop(paged::evict(model.range(random).0, 1).err()),
        1 => {
            let (ptr, len) = model.range(random);
            let _ = paged::evict(ptr, len);
        }
        2 | 3 => {
            let (ptr, len) = model.range(random);
            paged::prefetch(ptr, len).unwrap();
        }
        4 | 5 => model.pin(random),
        6 => {
            let stats = paged::region_stats(model.start as *const u8).expect("a live region");
            assert!(stats.logical_bytes == model.size && stats.swapped_bytes <= account::swap().max(MIB), "{stats:?}");
        }
        _ => {
            let first = random.below(model.blocks.len());
            let (count, write) = (1 + random.below(24), !random.one_in(4));
            for block in first..(first + count).min(model.blocks.len()) {
                let mut content = model.blocks[block].lock().unwrap();
                model.check(block, *content);
                if write {
                    *content = Content::any(random, round.compressible);
                    model.write(block, *content);
                }
            }
        }
    }
}

fn heap_pressure(stop: &AtomicBool, seed: u64) {
    let mut random = Random(seed);
    while !stop.load(SeqCst) {
        let bytes = 1 + random.below(8 * MIB);
        if account::charge(Holder::Heap, bytes).is_ok() {
            std::thread::sleep(Duration::from_millis(3));
            account::uncharge(Holder::Heap, bytes);
        }
    }
}

/// Ends the process if nothing happens for long: a thread that was never woken.
fn watch(stop: &AtomicBool, name: &str) {
    let (mut seen, mut since) = (0, Instant::now());
    while !stop.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
        let now = OPERATIONS.load(SeqCst);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > STUCK {
            eprintln!("stuck in {name}: {:?}, {} bytes resident", paged::stats(), account::resident());
            std::process::abort();
        }
    }
}

fn run(round: &Round, seconds: f64, seed: u64) {
    account::set_budget(round.budget);
    config::SWAP_MAX.set(round.swap_max).unwrap();
    let options =
        Options { strategy: round.strategy, compression: round.compression, deduplication: true, swapping: round.swapping };
    paged::configure(&options).expect("a pager");
    paged::set_pool_limit(round.pool_limit);
    account::reset_peak();
    let slots: Vec<RwLock<Option<Model>>> = (0..REGIONS).map(|_| RwLock::new(None)).collect();
    let stop = AtomicBool::new(false);
    let done = AtomicUsize::new(0);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&stop, round.name));
        let heap = round.heap.then(|| scope.spawn(|| heap_pressure(&stop, seed)));
        let workers: Vec<_> = (0..round.threads as u64)
            .map(|t| {
                let (slots, done) = (&slots, &done);
                scope.spawn(move || {
                    let mut random = Random(seed ^ (t + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
                    while Instant::now() < end {
                        let slot = random.below(REGIONS);
                        operation(round, &slots[slot], &mut random);
                        done.fetch_add(1, SeqCst);
                        OPERATIONS.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|w| w.join().unwrap());
        for slot in &slots {
            if let Some(model) = slot.read().unwrap().as_ref() {
                model.check_all();
            }
            OPERATIONS.fetch_add(1, SeqCst);
        }
        stop.store(true, SeqCst);
        watcher.join().unwrap();
        heap.into_iter().for_each(|h| h.join().unwrap());
    });
    let stats = paged::stats();
    assert_eq!(stats.pinned_bytes, 0, "{}: {stats:?}", round.name);
    assert!(account::peak() <= round.budget, "{}: peak {} over the budget", round.name, account::peak());
    println!("{}: {} operations, {} faults, {} evictions", round.name, done.into_inner(), stats.page_faults, stats.evictions);
    slots.into_iter().filter_map(|slot| slot.into_inner().unwrap()).for_each(Model::free);
    let left = paged::stats();
    assert_eq!((left.resident_bytes, left.pooled_bytes), (0, 0), "{}", round.name);
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!((account::resident(), account::committed()), (0, 0), "{}: everything charged was given back", round.name);
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn every_block_holds_what_was_written() {
    let (seconds, seed) = (number("QMEM_TEST_SECONDS", 15) as f64, number("QMEM_TEST_SEED", 20_251));
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    println!("QMEM_TEST_SEED={seed}");
    let start = Instant::now();
    let mut turn = 0;
    let only = std::env::var("QMEM_TEST_ROUND").ok();
    while turn == 0 || start.elapsed().as_secs_f64() < seconds - 1.0 {
        for (i, round) in ROUNDS.iter().enumerate().filter(|(_, r)| only.as_ref().is_none_or(|o| o == r.name)) {
            let share = (seconds / ROUNDS.len() as f64).min(10.0);
            run(round, share, seed.wrapping_add(turn * 1000 + i as u64));
        }
        turn += 1;
    }
}

#[test]
fn hints_about_a_freed_region_do_not_touch_its_successor() {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    account::set_budget(64 * MIB);
    let options = Options { strategy: Strategy::Adaptive, compression: false, deduplication: false, swapping: true };
    paged::configure(&options).expect("a pager");
    let request = |size| Request {
        size,
        align: 0,
        chunk_size: 64 * KIB,
        swappable: true,
        element: None,
        tolerance: 0.0,
        pooled: false,
        tag: 1,
    };
    let end = Instant::now() + Duration::from_secs(3);
    let mut content = Content { kind: 0, salt: 1 };
    while Instant::now() < end {
        content.salt += 1;
        let kept = paged::allocate(&request(4 * MIB)).unwrap().as_ptr().cast::<u64>();
        // SAFETY: inside the region just made.
        (0..4 * MIB / 8).for_each(|i| unsafe { kept.add(i).write(content.word(i)) });
        let hinted = paged::allocate(&request(5 * MIB)).unwrap().as_ptr();
        paged::evict(kept.cast(), 4 * MIB).unwrap();
        paged::prefetch(hinted, 5 * MIB).unwrap();
        // The chunks that the grown region takes have just been hinted at.
        // SAFETY: nobody uses either any more, but through what `resize` gives.
        let grown = unsafe {
            paged::free(hinted).unwrap();
            paged::resize(kept.cast(), 5 * MIB).unwrap().as_ptr().cast::<u64>()
        };
        for i in 0..5 * MIB / 8 {
            let want = if i < 4 * MIB / 8 { content.word(i) } else { 0 };
            // SAFETY: inside the region.
            assert_eq!(unsafe { grown.add(i).read() }, want, "word {i} of version {}", content.salt);
        }
        // SAFETY: not used after.
        unsafe { paged::free(grown.cast()).unwrap() };
    }
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!(account::resident(), 0, "everything charged was given back");
    drop(turn);
}

#[test]
fn pages_dropped_during_eviction_leave_nobody_waiting() {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    account::set_budget(64 * MIB);
    let options = Options { strategy: Strategy::Adaptive, compression: false, deduplication: false, swapping: true };
    paged::configure(&options).expect("a pager");
    let request = Request {
        size: MIB,
        align: 0,
        chunk_size: 64 * KIB,
        swappable: true,
        element: None,
        tolerance: 0.0,
        pooled: false,
        tag: 1,
    };
    let start = paged::allocate(&request).unwrap().as_ptr() as usize;
    let content = Content { kind: 0, salt: 1 };
    // SAFETY: inside the region just made.
    (0..64 * KIB / 8).for_each(|i| unsafe { (start as *mut u64).add(i).write(content.word(i)) });
    let (stop, end) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(3));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&stop, "dropping pages"));
        let droppers: Vec<_> = (0..3)
            .map(|t| {
                scope.spawn(move || {
                    while Instant::now() < end {
                        let page = (start + t * 8192) as *mut u64;
                        // SAFETY: whole pages of the region; what is dropped is expected to be gone, its neighbour to stay.
                        let beside = unsafe {
                            libc::madvise(page.cast(), 4096, libc::MADV_DONTNEED);
                            std::hint::black_box(page.read_volatile());
                            page.add(600).read_volatile()
                        };
                        assert_eq!(beside, content.word(t * 1024 + 600));
                        OPERATIONS.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        while Instant::now() < end {
            let _ = paged::evict(start as *const u8, 64 * KIB);
        }
        droppers.into_iter().for_each(|d| d.join().unwrap());
        stop.store(true, SeqCst);
        watcher.join().unwrap();
    });
    // SAFETY: not used after.
    unsafe { paged::free(start as *mut u8).unwrap() };
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!(account::resident(), 0, "everything charged was given back");
    drop(turn);
}

#[test]
fn pinned_means_there_at_once() {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    account::set_budget(64 * MIB);
    let options = Options { strategy: Strategy::Adaptive, compression: false, deduplication: false, swapping: true };
    paged::configure(&options).expect("a pager");
    let request = Request {
        size: MIB,
        align: 0,
        chunk_size: 512 * KIB,
        swappable: true,
        element: None,
        tolerance: 0.0,
        pooled: false,
        tag: 1,
    };
    let start = paged::allocate(&request).unwrap().as_ptr() as usize;
    let content = Content { kind: 0, salt: 1 };
    // SAFETY: inside the region just made.
    (0..512 * KIB / 8).for_each(|i| unsafe { (start as *mut u64).add(i).write(content.word(i)) });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let _ = paged::evict(start as *const u8, 512 * KIB);
            }
        });
        let (end, mut absent) = (Instant::now() + Duration::from_secs(1), 0);
        while Instant::now() < end {
            paged::pin(start as *const u8, 1).unwrap();
            let mut there = [0u8; 512 * KIB / 4096];
            // SAFETY: whole pages of the region, and a byte for each.
            unsafe { libc::mincore(start as *mut _, 512 * KIB, there.as_mut_ptr()) };
            absent += there.iter().filter(|page| **page & 1 == 0).count();
            paged::unpin(start as *const u8, 1).unwrap();
        }
        stop.store(true, SeqCst);
        assert_eq!(absent, 0, "pages that were not there although pinned");
    });
    // SAFETY: not used after.
    unsafe { paged::free(start as *mut u8).unwrap() };
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!(account::resident(), 0, "everything charged was given back");
    drop(turn);
}
