//! Process-wide counters behind `memory_stats_t`. Relaxed atomics: each is exact, a set of them is not a snapshot.

use super::{histogram, level};
use crate::error;
use crate::os::clock;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// One number that only grows.
pub struct Counter(AtomicUsize);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// `n` more.
    #[inline]
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

/// A row of counters, one per kind of thing.
pub struct Counters<const N: usize>([Counter; N]);

impl<const N: usize> Counters<N> {
    /// All zero.
    pub const fn new() -> Self {
        Self([const { Counter::new() }; N])
    }

    /// One more of `kind`.
    #[inline]
    pub fn count(&self, kind: usize) {
        if let Some(counter) = self.0.get(kind) {
            counter.add(1);
        }
    }

    /// So far of `kind`.
    pub fn get(&self, kind: usize) -> usize {
        self.0.get(kind).map_or(0, Counter::get)
    }
}

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Failures dispatched, by class.
pub static ERRORS: Counters<{ error::CLASSES }> = Counters::new();
/// Retries of failed operations.
pub static RETRIES: Counter = Counter::new();
/// Operations that a fallback strategy saved.
pub static FALLBACKS: Counter = Counter::new();

/// What the pager does beyond faults and evictions; all but the first are counted from the level BASIC on.
pub struct Pager {
    /// Faults whose chunk had been read ahead.
    pub ahead_hits: Counter,
    /// Chunks that were read ahead and mapped before they were asked for.
    pub ahead_mapped: Counter,
    /// Chunks that were read ahead in vain.
    pub ahead_wasted: Counter,
    /// Bytes read from the swap file and written to it.
    pub swap_read: Counter,
    /// As above.
    pub swap_written: Counter,
    /// Nanoseconds that both took.
    pub swap_nanos: Counter,
}

/// The pager's.
pub static PAGER: Pager = Pager {
    ahead_hits: Counter::new(),
    ahead_mapped: Counter::new(),
    ahead_wasted: Counter::new(),
    swap_read: Counter::new(),
    swap_written: Counter::new(),
    swap_nanos: Counter::new(),
};

/// A transfer to or from the swap file that is being measured, if the level says so.
pub struct Transfer {
    from: Option<u64>,
}

impl Transfer {
    /// It begins.
    pub fn begin() -> Self {
        Self { from: level::basic().then(clock::monotonic) }
    }

    /// It has ended.
    pub fn end(self, bytes: usize, written: bool) {
        let Some(from) = self.from else { return };
        let nanos = clock::monotonic().saturating_sub(from);
        PAGER.swap_nanos.add(nanos as usize);
        (if written { &PAGER.swap_written } else { &PAGER.swap_read }).add(bytes);
        if level::detailed() {
            histogram::SWAP.record(nanos);
        }
    }
}

/// Blocks given and taken through the API.
pub struct Blocks {
    /// Bytes ever given.
    pub total: AtomicUsize,
    /// Bytes given and not taken back.
    pub current: AtomicUsize,
    /// The most of that.
    pub peak: AtomicUsize,
    /// Blocks ever given.
    pub allocations: AtomicUsize,
    /// Blocks taken back.
    pub frees: AtomicUsize,
    /// The largest ever given.
    pub largest: AtomicUsize,
}

/// Faults on paged buffers.
pub struct Faults {
    /// Nanoseconds in which they were served.
    pub nanos: AtomicU64,
    /// Those on chunks that had been evicted.
    pub again: AtomicU64,
    /// Nanoseconds of those.
    pub again_nanos: AtomicU64,
}

/// The pager's faults.
pub static FAULTS: Faults = Faults { nanos: AtomicU64::new(0), again: AtomicU64::new(0), again_nanos: AtomicU64::new(0) };

impl Faults {
    /// One was served; `again` says that its chunk had been evicted.
    pub fn served(&self, nanos: u64, again: bool) {
        self.nanos.fetch_add(nanos, Relaxed);
        if again {
            self.again.fetch_add(1, Relaxed);
            self.again_nanos.fetch_add(nanos, Relaxed);
        }
    }
}

/// The API's blocks of every kind.
pub static BLOCKS: Blocks = Blocks::new();

impl Blocks {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            total: AtomicUsize::new(0),
            current: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            allocations: AtomicUsize::new(0),
            frees: AtomicUsize::new(0),
            largest: AtomicUsize::new(0),
        }
    }

    /// One block of `bytes` was given.
    pub fn gave(&self, bytes: usize) {
        self.allocations.fetch_add(1, Relaxed);
        self.total.fetch_add(bytes, Relaxed);
        let now = self.current.fetch_add(bytes, Relaxed) + bytes;
        if now > self.peak.load(Relaxed) {
            self.peak.fetch_max(now, Relaxed);
        }
        if bytes > self.largest.load(Relaxed) {
            self.largest.fetch_max(bytes, Relaxed);
        }
    }

    /// One block of `bytes` came back.
    pub fn took(&self, bytes: usize) {
        self.frees.fetch_add(1, Relaxed);
        self.current.fetch_sub(bytes, Relaxed);
    }

    /// A block changed its size in place or by moving.
    pub fn resized(&self, from: usize, to: usize) {
        self.current.fetch_sub(from, Relaxed);
        let now = self.current.fetch_add(to, Relaxed) + to;
        self.total.fetch_add(to.saturating_sub(from), Relaxed);
        self.peak.fetch_max(now, Relaxed);
        self.largest.fetch_max(to, Relaxed);
    }

    /// Starts the peak again from what is live now.
    pub fn reset_peak(&self) {
        self.peak.store(self.current.load(Relaxed), Relaxed);
    }
}

impl Default for Blocks {
    fn default() -> Self {
        Self::new()
    }
}
