//! The process's numbers at one moment, from all who count: what `memory_stats_t` says. Called by `ffi`, samplers and exporters.
#![forbid(unsafe_code)]

use super::memory;
use crate::monitor::counters::BLOCKS;
use crate::monitor::{account, fidelity};
use crate::paged::{self, PagedStats};
use core::sync::atomic::Ordering::Relaxed;

/// `memory_stats_t` without C's types.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // as in memory_stats_t
pub struct Numbers {
    pub total_allocated: usize,
    pub peak_allocated: usize,
    pub num_allocations: usize,
    pub num_frees: usize,
    pub largest_allocation: usize,
    pub fragmentation: f64,
    pub current_allocated: usize,
    pub resident_bytes: usize,
    pub peak_resident_bytes: usize,
    pub budget_bytes: usize,
    pub paged: PagedStats,
    pub error_spent: f64,
}

/// Now.
pub fn now() -> Numbers {
    Numbers {
        total_allocated: BLOCKS.total.load(Relaxed),
        peak_allocated: BLOCKS.peak.load(Relaxed),
        num_allocations: BLOCKS.allocations.load(Relaxed),
        num_frees: BLOCKS.frees.load(Relaxed),
        largest_allocation: BLOCKS.largest.load(Relaxed),
        fragmentation: memory::fragmentation(),
        current_allocated: BLOCKS.current.load(Relaxed),
        resident_bytes: account::resident(),
        peak_resident_bytes: account::peak(),
        budget_bytes: if account::budget() == usize::MAX { 0 } else { account::budget() },
        paged: paged::stats(),
        error_spent: fidelity::PROCESS.spent(),
    }
}
