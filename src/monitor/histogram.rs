//! Latencies: counts in buckets that are a quarter of an octave wide, so any quantile is right within 19 %. Fixed memory, no lock.
//! Recorded by pager and API where the level asks for it, read by exporters.
#![forbid(unsafe_code)]

use super::level;
use crate::os::clock;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets per doubling.
const PARTS: usize = 4;
/// Nanoseconds up to 2^OCTAVES are told apart: 18 minutes.
const OCTAVES: usize = 40;
const BUCKETS: usize = OCTAVES * PARTS;

/// Counts of durations.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    most: AtomicU64,
}

/// A copy of one, for reading.
#[derive(Clone)]
pub struct Snapshot {
    buckets: [u64; BUCKETS],
    /// Nanoseconds of all together.
    pub sum: u64,
    /// The longest.
    pub most: u64,
    /// How many.
    pub count: u64,
}

/// Page faults, from the pager's reading of one to its answer.
pub static FAULTS: Histogram = Histogram::new();
/// Evictions of one chunk: moving it out, choosing a place, compressing.
pub static EVICTIONS: Histogram = Histogram::new();
/// Writes to the swap file and reads from it.
pub static SWAP: Histogram = Histogram::new();
/// Calls that give a block; one in 64 is measured.
pub static ALLOCATIONS: Histogram = Histogram::new();

/// Every histogram with its name.
pub static ALL: [(&str, &str, &Histogram); 4] = [
    ("fault", "Time to serve a page fault of a paged buffer.", &FAULTS),
    ("eviction", "Time to take one chunk out of memory, without writing it.", &EVICTIONS),
    ("swap_io", "Time of one read from the swap file or one batch written to it.", &SWAP),
    ("allocation", "Time of a call that gives a block; one call in 64 is measured.", &ALLOCATIONS),
];

fn bucket(nanos: u64) -> usize {
    let nanos = nanos.max(1);
    let octave = nanos.ilog2() as usize;
    let part = if octave >= 2 { (nanos >> (octave - 2)) as usize & (PARTS - 1) } else { 0 };
    (octave * PARTS + part).min(BUCKETS - 1)
}

/// The first number of nanoseconds beyond a bucket.
fn end(bucket: usize) -> u64 {
    let (octave, part) = (bucket / PARTS, bucket % PARTS);
    if octave < 2 { 1 << (octave + 1) } else { ((PARTS + part + 1) as u64) << (octave - 2) }
}

impl Histogram {
    /// Empty.
    pub const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0), most: AtomicU64::new(0) }
    }

    /// One more.
    pub fn record(&self, nanos: u64) {
        if let Some(count) = self.buckets.get(bucket(nanos)) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(nanos, Relaxed);
        self.most.fetch_max(nanos, Relaxed);
    }

    /// Starts measuring if the level says so.
    #[inline]
    pub fn start(&'static self) -> Option<Running> {
        level::detailed().then(|| Running { histogram: self, from: clock::monotonic() })
    }

    /// As it is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut copy = Snapshot { buckets: [0; BUCKETS], sum: self.sum.load(Relaxed), most: self.most.load(Relaxed), count: 0 };
        for (to, from) in copy.buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Relaxed);
            copy.count += *to;
        }
        copy
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// A measurement that has begun.
#[must_use]
pub struct Running {
    histogram: &'static Histogram,
    from: u64,
}

impl Running {
    /// Ends it.
    pub fn stop(self) {
        self.histogram.record(clock::monotonic().saturating_sub(self.from));
    }
}

impl Snapshot {
    /// An upper bound of the `share`-quantile, in nanoseconds; 0 if there is none.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && self.count > 0 {
                return end(at).min(self.most);
            }
        }
        self.most
    }

    /// How many took less than 2^`octave` nanoseconds.
    pub fn below(&self, octave: u32) -> u64 {
        self.buckets.iter().take(octave as usize * PARTS).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_hold_what_they_say() {
        for nanos in (0..5000).chain((12..62).flat_map(|e| [(1u64 << e) - 1, 1 << e, (1 << e) + 1])) {
            let at = bucket(nanos);
            if at < BUCKETS - 1 {
                assert!(nanos < end(at) && (at == 0 || nanos.max(1) >= end(at - 1) || at < 2 * PARTS), "{nanos} in {at}");
            }
        }
        assert!((2 * PARTS..BUCKETS - 1).all(|at| end(at) < end(at + 1) && end(at + 1) * 4 <= end(at) * 5));
    }

    #[test]
    fn quantiles_agree_with_sorting() {
        let histogram = Histogram::new();
        let mut all: Vec<u64> = Vec::new();
        let mut seed = 5u64;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let nanos = 100 + (seed >> 40) % (1 << (8 + (seed >> 20) % 12));
            histogram.record(nanos);
            all.push(nanos);
        }
        all.sort_unstable();
        let copy = histogram.snapshot();
        assert_eq!((copy.count, copy.sum, copy.most), (10_000, all.iter().sum(), *all.last().unwrap()));
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let (exact, got) = (all[((all.len() as f64 * share).ceil() as usize).max(1) - 1], copy.quantile(share));
            assert!(exact <= got && got as f64 <= exact as f64 * 1.26, "{share}: {exact} and {got}");
        }
        assert_eq!(copy.below(10), all.iter().filter(|n| **n < 1024).count() as u64);
        assert_eq!(Histogram::new().snapshot().quantile(0.5), 0);
    }
}
