//! The pager: operations read from bytes against a model of every page's contents, in a budget that holds a part of them.
//! Each input has a pager of its own, which must have given everything back at the end. Wants userfaultfd with UFFDIO_MOVE.
#![no_main]
#![allow(clippy::undocumented_unsafe_blocks)] // every range used is live by the model

use libfuzzer_sys::fuzz_target;
use qmem::config;
use qmem::error::{Class, Error, Failure, Status, set_hook};
use qmem::monitor::account;
use qmem::paged::{self, Options, Request, Strategy};
use qmem_fuzz::{Input, mix};
use std::sync::Once;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const OPERATIONS: usize = 60;
/// Pages written and checked by one input, so that it ends in a part of a second.
const WORK: usize = 10_000;
/// What pins must leave of the budget, and what we leave it in everything that the commit rule does not bound for us.
const LEAVE: usize = 16 * MIB;

/// A page: which contents it has, and how many of its words (the others are zero).
#[derive(Clone, Copy, PartialEq, Debug)]
struct Page {
    id: u32,
    words: u16,
}

struct Region {
    start: *mut u8,
    size: usize,
    chunk: usize,
    /// Its chunk size was the pager's choice.
    fitted: bool,
    swappable: bool,
    pooled: bool,
    pages: Vec<Page>,
    /// Ranges pinned, as given.
    pins: Vec<(usize, usize)>,
}

struct Model<'a> {
    input: Input<'a>,
    regions: Vec<Region>,
    options: Options,
    budget: usize,
    swap: usize,
    work: usize,
    count: u32,
}

fuzz_target!(|bytes: &[u8]| {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| set_hook(on_report));
    let mut input = Input::new(bytes);
    let (kind, sizes) = (input.byte(), input.byte());
    let swap = [64, 32, 96, 48][usize::from(sizes & 3)] * MIB;
    let budget = config::MIN_PAGED_BUDGET + usize::from(sizes >> 2 & 15) * MIB;
    config::SWAP_MAX.set(swap).unwrap();
    config::PREFETCH_DEPTH.set(usize::from(sizes >> 6) * 3).unwrap();
    account::set_budget(budget);
    let options = options(kind);
    match paged::configure(&options) {
        Ok(()) => {}
        Err(error) if error.status == Status::Unsupported => {
            println!("skipped: {error}");
            unsafe { libc::_exit(77) };
        }
        Err(error) => panic!("no pager: {error}"),
    }
    let swap = if options.swapping { swap } else { 0 };
    let mut model = Model { input, regions: Vec::new(), options, budget, swap, work: WORK, count: 0 };
    for _ in 0..OPERATIONS {
        if model.input.is_over() || model.work == 0 {
            break;
        }
        model.step();
        assert!(account::resident() <= budget, "{} of {budget} bytes are resident", account::resident());
        assert_eq!(account::committed(), model.granted());
        assert_eq!(paged::stats().logical_bytes, model.regions.iter().map(|r| r.size).sum::<usize>());
    }
    while !model.regions.is_empty() {
        model.regions[0].check_what_was_written();
        model.free(0);
    }
    paged::shutdown();
    assert_eq!((account::resident(), account::committed()), (0, 0), "everything charged was given back");
    let stats = paged::stats();
    assert_eq!((stats.resident_bytes, stats.compressed_bytes, stats.swapped_bytes, stats.pinned_bytes), (0, 0, 0, 0));
});

/// Nothing here is damaged, and everything granted can be held: only a full swap file may be told.
fn on_report(failure: &Failure<'_>) -> Result<(), Error> {
    assert_eq!(failure.class, Class::Io, "{}", failure.error);
    Err(failure.error.clone())
}

fn options(kind: u8) -> Options {
    let strategy = [Strategy::Adaptive, Strategy::Latency, Strategy::Throughput, Strategy::Compact][usize::from(kind >> 2 & 3)];
    Options { strategy, compression: kind & 1 == 0, deduplication: kind & 16 != 0, swapping: kind & 2 == 0 }
}

/// Page `page` in contents `id`: `words` words of it, zeros behind them.
fn contents(id: u32, page: usize, words: usize) -> [u64; 512] {
    let (salt, first) = (u64::from(id), page as u64 * 512);
    let mut out = [0; 512];
    let each = out.iter_mut().take(words).zip(first..);
    match id % 6 {
        0 => each.for_each(|(to, at)| *to = mix(at, salt)),
        1 => each.for_each(|(to, at)| *to = if at % 2 == 0 { mix(at, salt) } else { salt }),
        2 => each.for_each(|(to, _)| *to = salt),
        3 => each.for_each(|(to, at)| *to = (at / 700) ^ salt),
        4 => each.for_each(|(to, at)| *to = mix(at % 8, salt)),
        _ => each.for_each(|(to, _)| *to = mix(page as u64 / 40 % 20, salt)),
    }
    out
}

/// Bytes of a chunk where the pager chooses.
fn fitting(size: usize) -> usize {
    size.next_power_of_two().clamp(64 << 10, 2 * MIB)
}

impl Region {
    /// Bytes of a chunk after it was resized.
    fn recut(&self, size: usize) -> usize {
        let stays = size.div_ceil(self.chunk) == self.size.div_ceil(self.chunk);
        if stays || !self.fitted { self.chunk } else { self.chunk.max(fitting(size)) }
    }

    fn words(&self, page: usize) -> usize {
        (self.size.saturating_sub(page * PAGE) / 8).min(512)
    }

    /// Whole pages, clipped to the region.
    fn clip(&self, from: usize, count: usize) -> std::ops::Range<usize> {
        let pages = self.pages.len();
        from.min(pages)..from.saturating_add(count).min(pages)
    }

    /// One page of each 2 MiB, so that chunks come and go at little cost.
    fn sparse(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        (first % 512..self.pages.len()).step_by(512)
    }

    fn write(&mut self, pages: impl Iterator<Item = usize>, id: u32) {
        for page in pages {
            let words = self.words(page);
            let to = unsafe { std::slice::from_raw_parts_mut(self.start.add(page * PAGE).cast::<u64>(), words) };
            to.copy_from_slice(&contents(id, page, words)[..words]);
            self.pages[page] = Page { id, words: words as u16 };
        }
    }

    fn check_what_was_written(&self) {
        self.check((0..self.pages.len()).filter(|page| self.pages[*page].id != 0 || page % 499 == 0));
    }

    fn check(&self, pages: impl Iterator<Item = usize>) {
        for page in pages {
            let Page { id, words } = self.pages[page];
            let got = unsafe { std::slice::from_raw_parts(self.start.add(page * PAGE).cast::<u64>(), self.words(page)) };
            let want = contents(id, page, usize::from(words));
            if *got != want[..got.len()] {
                let i = (0..got.len()).find(|i| got[*i] != want[*i]);
                panic!("word {i:?} of page {page} of {} bytes in chunks of {}, contents {id}", self.size, self.chunk);
            }
        }
    }

    fn pinned(&self) -> usize {
        let chunk = self.chunk;
        let mut chunks: Vec<usize> = self.pins.iter().flat_map(|(at, n)| at / chunk..(at + n - 1) / chunk + 1).collect();
        chunks.sort_unstable();
        chunks.dedup();
        chunks.len() * chunk
    }
}

impl Model<'_> {
    fn step(&mut self) {
        let operation = self.input.byte();
        let nth = usize::from(operation >> 4) % self.regions.len().max(1);
        if std::env::var_os("QMEM_FUZZ_TRACE").is_some() {
            let sizes: Vec<_> = self.regions.iter().map(|r| (r.size, r.chunk, r.pooled, r.pins.len())).collect();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            eprintln!("{now:.3?} {} on {nth} of {sizes:?} {:?}; {:?}", operation & 15, self.options, paged::stats());
        }
        match operation & 15 {
            0 => return self.allocate(),
            14 => return self.reconfigure(),
            _ if self.regions.is_empty() => return self.allocate(),
            _ => {}
        }
        match operation & 15 {
            1..=3 => self.write(nth),
            4 | 5 => self.check(nth),
            6 | 7 => self.advise(nth, operation & 15 == 6),
            8 => self.pin(nth),
            9 => self.unpin(nth),
            10 => self.resize(nth),
            11 => self.free(nth),
            12 => self.drop_pages(nth),
            13 => self.system_calls(nth),
            _ => self.race(nth),
        }
    }

    /// First page and number of pages, small and large; usize::MAX = one in each 2 MiB.
    fn range(&mut self, nth: usize) -> (usize, usize) {
        let kind = self.input.byte();
        let pages = self.regions[nth].pages.len();
        match kind & 3 {
            0 => (self.input.below(pages), 1 + usize::from(kind >> 2)),
            1 if kind & 4 == 0 => (self.input.below(pages), 16 * usize::from(kind >> 2)),
            1 => (self.input.below(pages) / 512 * 512, 512),
            2 if kind & 12 == 0 => (0, pages),
            _ => (self.input.below(512), usize::MAX),
        }
    }

    fn spend(&mut self, pages: usize) -> usize {
        let pages = pages.min(self.work);
        self.work -= pages;
        pages
    }

    fn granted(&self) -> usize {
        self.regions.iter().map(|r| r.size.next_multiple_of(r.chunk)).sum()
    }

    /// What the program may ask for without betting on compression: so many bytes in whole chunks.
    fn may(&self, more: usize, swappable: bool) -> bool {
        let fixed: usize = self.regions.iter().filter(|r| !r.swappable).map(|r| r.pages.len() * PAGE + r.chunk).sum();
        // Without swap a chunk that was evicted by request comes back beside its blob.
        (swappable || fixed + more + LEAVE <= self.budget)
            && (self.swap > 0 || self.granted() + more + LEAVE <= self.budget)
            && self.granted() + more <= self.budget + self.swap.saturating_sub(config::IN_FLIGHT)
    }

    fn allocate(&mut self) {
        let (kind, scale) = (self.input.byte(), self.input.byte());
        let size = match scale & 3 {
            0 => 1 + self.input.word(),
            1 => PAGE * (1 + self.input.below(1024)),
            _ => MIB * (1 + usize::from(scale >> 2)) + 8 * self.input.below(1000),
        };
        let chunk_size = [0, 64 << 10, 128 << 10, 256 << 10, 512 << 10, MIB, 2 * MIB, 8 * MIB][usize::from(kind & 7)];
        let (swappable, pooled) = (kind & 8 == 0, kind & 0x30 == 0x30);
        let align = if kind & 0xC0 == 0xC0 { 8 * MIB } else { 0 };
        let chunk = if chunk_size == 0 { fitting(size) } else { chunk_size.min(2 * MIB) };
        if self.regions.len() >= 8 || !self.may(size.next_multiple_of(chunk), swappable) {
            return;
        }
        let request = Request { size, align, chunk_size, swappable, element: None, tolerance: 0.0, pooled, tag: 1 };
        let start = paged::allocate(&request).unwrap_or_else(|e| panic!("{size} bytes with {} granted: {e}", self.granted()));
        let start = start.as_ptr();
        assert_eq!(start as usize % align.max(2 * MIB), 0);
        let pages = vec![Page { id: 0, words: 0 }; size.div_ceil(PAGE)];
        let fitted = chunk_size == 0;
        self.regions.push(Region { start, size, chunk, fitted, swappable, pooled, pages, pins: Vec::new() });
    }

    fn write(&mut self, nth: usize) {
        let ((from, count), kind) = (self.range(nth), self.input.byte());
        // New contents, or those that another page has already (so that pages repeat and chunks are unchanged).
        self.count += 1;
        let id = if kind & 0xC0 == 0 { u32::from(kind & 7) } else { self.count * 6 + u32::from(kind) % 6 };
        if count == usize::MAX {
            let pages = self.regions[nth].sparse(from);
            self.regions[nth].write(pages, id.max(1));
        } else {
            let count = self.spend(count);
            let pages = self.regions[nth].clip(from, count);
            self.regions[nth].write(pages, id.max(1));
        }
    }

    fn check(&mut self, nth: usize) {
        let (from, count) = self.range(nth);
        if count == usize::MAX {
            return self.regions[nth].check(self.regions[nth].sparse(from));
        }
        let count = self.spend(count);
        let region = &self.regions[nth];
        region.check(region.clip(from, count));
    }

    fn bytes(&mut self, nth: usize) -> (*mut u8, usize) {
        let (from, count) = self.range(nth);
        let odd = usize::from(self.input.byte());
        let region = &self.regions[nth];
        let at = (from * PAGE + odd).min(region.size - 1);
        (region.start.wrapping_add(at), count.saturating_mul(PAGE).clamp(1, region.size - at))
    }

    fn advise(&mut self, nth: usize, evict: bool) {
        let (start, len) = self.bytes(nth);
        if evict {
            assert!(paged::evict(start, len).is_ok_and(|()| true) || self.may_stay(), "a chunk stayed for no reason");
        } else {
            paged::prefetch(start, len).unwrap();
        }
    }

    /// Is there any reason for a chunk not to be evicted?
    fn may_stay(&self) -> bool {
        let pinned = self.regions.iter().any(|r| !r.pins.is_empty());
        pinned || self.swap < self.granted() * 2 || self.regions.iter().any(|r| !r.swappable) || !self.options.swapping
    }

    fn pin(&mut self, nth: usize) {
        let (start, len) = self.bytes(nth);
        if self.regions[nth].pooled {
            return;
        }
        let at = start as usize - self.regions[nth].start as usize;
        self.regions[nth].pins.push((at, len));
        let fixed: usize = self.regions.iter().map(|r| if r.swappable { r.pinned() } else { r.size + r.chunk }).sum();
        let pinned: usize = self.regions.iter().map(Region::pinned).sum();
        if self.regions[nth].pins.len() > 20 || (pinned <= self.budget - LEAVE && fixed > self.budget - LEAVE) {
            self.regions[nth].pins.pop();
            return;
        }
        match paged::pin(start, len) {
            Ok(()) => assert!(pinned <= self.budget - LEAVE),
            Err(error) => {
                assert!(error.status == Status::Limit && pinned > self.budget - LEAVE, "{error}");
                self.regions[nth].pins.pop();
            }
        }
        self.count_pins();
    }

    fn unpin(&mut self, nth: usize) {
        let which = usize::from(self.input.byte());
        let region = &mut self.regions[nth];
        if region.pins.is_empty() {
            assert!(paged::unpin(region.start, 1).is_err());
            return;
        }
        let (at, len) = region.pins.swap_remove(which % region.pins.len());
        paged::unpin(region.start.wrapping_add(at), len).unwrap();
        self.count_pins();
    }

    fn count_pins(&self) {
        let pinned: usize = self.regions.iter().map(Region::pinned).sum();
        assert_eq!(paged::stats().pinned_bytes, pinned);
        for region in &self.regions {
            let stats = paged::region_stats(region.start).unwrap();
            assert_eq!((stats.pinned_bytes, stats.logical_bytes), (region.pinned(), region.size));
            assert!(stats.resident_bytes >= stats.pinned_bytes, "pinned and not resident: {stats:?}");
        }
    }

    fn resize(&mut self, nth: usize) {
        let kind = self.input.byte();
        let old = self.regions[nth].size;
        let size = match kind & 3 {
            0 => old + self.input.word(),
            1 => old.saturating_sub(self.input.word()),
            2 => MIB * usize::from(kind >> 2) + self.input.below(PAGE),
            _ => 1 + self.input.below(old),
        };
        let chunk = self.regions[nth].recut(size);
        let (before, after) = (old.next_multiple_of(self.regions[nth].chunk), size.next_multiple_of(chunk));
        // Where chunks of another size take the old ones' place, for a while there are both.
        let more = if chunk == self.regions[nth].chunk { after.saturating_sub(before) } else { after };
        if !self.may(more, self.regions[nth].swappable) {
            return;
        }
        let chunks = |region: &Region, size: usize| size.div_ceil(region.chunk);
        let region = &mut self.regions[nth];
        let stays = size > 0 && chunks(region, size) == chunks(region, old);
        match unsafe { paged::resize(region.start, size) } {
            Ok(start) => {
                assert!(size > 0 && (stays || region.pins.is_empty()));
                region.start = start.as_ptr();
                region.size = size;
                region.chunk = chunk;
                region.pages.resize(size.div_ceil(PAGE), Page { id: 0, words: 0 });
                let last = region.pages.len() - 1;
                // The last page's end: what is cut off reads as zeros when the region grows again.
                let words = region.words(last) as u16;
                let kept = region.pages[last].words;
                region.pages[last].words = kept.min(words);
                if kept > words && size % 8 != 0 {
                    // The word that is cut through: its bytes beyond the end are gone too.
                    unsafe { region.start.add(size / 8 * 8).write_bytes(0, size % 8) };
                }
                for (at, len) in &mut region.pins {
                    // A pin keeps its chunks, of which there are as many as before; it is undone by a range inside the buffer.
                    *at = (*at).min(size - 1);
                    *len = (*len).min(size - *at);
                }
            }
            Err(error) => {
                let pinned = error.status == Status::Busy && !region.pins.is_empty();
                assert!(pinned || size == 0, "{old} to {size} bytes: {error}");
            }
        }
    }

    fn free(&mut self, nth: usize) {
        let region = self.regions.swap_remove(nth);
        unsafe { paged::free(region.start).unwrap() };
        assert!(paged::find(region.start).is_none());
    }

    /// The program gives pages to the kernel (MADV_DONTNEED) while they are resident.
    fn drop_pages(&mut self, nth: usize) {
        let ((from, count), region) = (self.range(nth), &mut self.regions[nth]);
        let range = region.clip(from, count.min(64));
        let (at, len) = (range.start * PAGE, (range.len() * PAGE).min(region.size.saturating_sub(range.start * PAGE)));
        let start = region.start.wrapping_add(at);
        if region.pooled || len == 0 || paged::pin(start, len).is_err() {
            return;
        }
        unsafe { libc::madvise(start.cast(), range.len() * PAGE, libc::MADV_DONTNEED) };
        region.pages[range].fill(Page { id: 0, words: 0 });
        paged::unpin(start, len).unwrap();
    }

    /// The kernel itself reads and writes pages, resident or not.
    fn system_calls(&mut self, nth: usize) {
        let ((from, count), to) = (self.range(nth), self.input.below(self.regions[nth].pages.len()));
        let region = &mut self.regions[nth];
        let range = region.clip(from, count.min(16));
        let target = region.clip(to, range.len());
        let bytes = target.len() * PAGE;
        if bytes == 0 || (from..from + target.len()).end * PAGE > region.size || target.end * PAGE > region.size {
            return;
        }
        unsafe {
            let file = libc::memfd_create(c"fuzz".as_ptr(), 0);
            assert_eq!(libc::pwrite(file, region.start.add(from * PAGE).cast(), bytes, 0), bytes as isize);
            // Back to where it came from; to another place the contents would be another page's.
            assert_eq!(libc::pread(file, region.start.add(from * PAGE).cast(), bytes, 0), bytes as isize);
            assert_eq!(libc::pread(file, region.start.add(target.start * PAGE).cast(), bytes, 0), bytes as isize);
            libc::close(file);
        }
        let id = 6 + u32::from(self.input.byte());
        region.write(target, id);
        region.check(region.clip(from, 16));
    }

    /// Two threads sweep over halves of a region, one writing, while it is evicted and read ahead.
    fn race(&mut self, nth: usize) {
        let kind = self.input.byte();
        self.count += 1;
        let id = self.count * 6 + u32::from(kind) % 6;
        let budget = self.spend(6 * 512);
        let region = &mut self.regions[nth];
        let middle = (region.pages.len() / 2).min(budget);
        let mut front = Region { pages: region.pages.clone(), pins: Vec::new(), ..*region };
        let (start, size) = (region.start as usize, region.size);
        std::thread::scope(|scope| {
            let writer = Sent(&mut front);
            scope.spawn(move || {
                let Sent(front) = { writer };
                front.write(0..middle, id);
                front.check(0..middle);
            });
            let reader = Sent(&mut *region);
            scope.spawn(move || {
                let Sent(region) = { reader };
                region.check(region.clip(middle, budget));
            });
            for _ in 0..kind >> 5 {
                let _ = paged::evict(start as *const u8, size);
                paged::prefetch(start as *const u8, size).unwrap();
            }
        });
        region.pages = front.pages;
    }

    /// Other options at run time; never less than what is granted needs.
    fn reconfigure(&mut self) {
        let mut next = options(self.input.byte());
        if !next.swapping && self.granted() + LEAVE > self.budget {
            next.swapping = self.options.swapping;
        }
        paged::quiesce();
        assert!(
            paged::allocate(&Request {
                size: 1,
                align: 0,
                chunk_size: 0,
                swappable: true,
                element: None,
                tolerance: 0.0,
                pooled: false,
                tag: 1
            })
            .is_err()
        );
        paged::configure(&next).unwrap();
        self.swap = if next.swapping { config::SWAP_MAX.get() } else { 0 };
        self.options = next;
    }
}

/// The regions of the model are ours to hand to a thread: each has its own part of the pages.
struct Sent<'a>(&'a mut Region);
unsafe impl Send for Sent<'_> {}
