//! How much is measured: `monitoring_level_t`. Read on hot paths, one relaxed load; set by the floors above.
#![forbid(unsafe_code)]

use crate::config;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Nothing beyond what `memory_stats_t` needs.
pub const NONE: usize = 0;
/// Counters.
pub const BASIC: usize = 1;
/// And histograms, events, numbers per buffer.
pub const DETAILED: usize = 2;

static LEVEL: AtomicUsize = AtomicUsize::new(NONE);
/// What the program asked for.
static ASKED: AtomicUsize = AtomicUsize::new(NONE);

/// The level that the program asks for; QMEM_MONITOR may ask for more.
pub fn ask(level: usize) {
    ASKED.store(level, Relaxed);
    refresh();
}

/// Samplers that run: they need counters.
static WATCHERS: AtomicUsize = AtomicUsize::new(0);

/// A sampler begins.
pub fn watch() {
    WATCHERS.fetch_add(1, Relaxed);
    refresh();
}

/// A sampler ends.
pub fn unwatch() {
    WATCHERS.fetch_sub(1, Relaxed);
    refresh();
}

/// After the settings were read.
pub fn refresh() {
    let watched = if WATCHERS.load(Relaxed) > 0 { BASIC } else { NONE };
    LEVEL.store(ASKED.load(Relaxed).max(config::MONITOR.get()).max(watched), Relaxed);
}

/// The level in force.
pub fn get() -> usize {
    LEVEL.load(Relaxed)
}

/// Are counters wanted?
#[inline]
pub fn basic() -> bool {
    get() >= BASIC
}

/// Are histograms and events wanted?
#[inline]
pub fn detailed() -> bool {
    get() >= DETAILED
}
