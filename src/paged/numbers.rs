//! The pager's numbers, counted when asked for: they are exact, cost nothing while nobody asks, and a look at every chunk
//! when somebody does. Called by the face.

use super::PagedStats;
use super::pager::Pager;
use super::region::Region;
use super::slot::{Codec, Kind, SlotId};
use super::state::{State, Word};
use core::sync::atomic::Ordering::Relaxed;

/// One region's.
pub fn of_region(pager: &Pager, region: &Region) -> PagedStats {
    let size = region.chunk_bytes();
    let mut stats = PagedStats {
        logical_bytes: region.size.load(Relaxed),
        page_faults: region.faults.load(Relaxed),
        evictions: region.evictions.load(Relaxed),
        ..PagedStats::default()
    };
    for id in region.chunks() {
        let Some(chunk) = pager.regions.chunk(id) else { continue };
        let word = Word::load(&chunk.word);
        match word.state() {
            State::Resident | State::Staged | State::Filling | State::Evicting => stats.resident_bytes += size,
            State::Stored => {
                // The slot may change under us; then this number was true a moment ago.
                let id = SlotId(chunk.slot.load(Relaxed));
                let Some(slot) = pager.slots.get(id) else { continue };
                if slot.codec == Codec::Amplitude {
                    stats.lossy_bytes += size;
                }
                let (held, count) = match slot.kind {
                    Kind::Pattern | Kind::LongPattern | Kind::Compressed => (slot.len as usize, &mut stats.compressed_bytes),
                    Kind::Swapped | Kind::SwappedBlob => (slot.extent.bytes(), &mut stats.swapped_bytes),
                    Kind::Free => continue,
                };
                let saved = pager.saved_share(id, held);
                *count += held - saved;
                stats.deduplicated_bytes += saved;
            }
            State::Zero | State::Gone | State::Poisoned => {}
        }
        if word.pins() > 0 {
            stats.pinned_bytes += size;
        }
    }
    if region.pooled.load(Relaxed) {
        stats.pooled_bytes = stats.resident_bytes;
    }
    stats
}

/// All regions' together; the event counters include regions that have ended.
pub fn of_all(pager: &Pager) -> PagedStats {
    let mut all = PagedStats::default();
    for (_, region) in pager.regions.live() {
        let one = of_region(pager, region);
        all.logical_bytes += one.logical_bytes;
        all.resident_bytes += one.resident_bytes;
        all.compressed_bytes += one.compressed_bytes;
        all.swapped_bytes += one.swapped_bytes;
        all.deduplicated_bytes += one.deduplicated_bytes;
        all.pinned_bytes += one.pinned_bytes;
        all.lossy_bytes += one.lossy_bytes;
    }
    all.pooled_bytes = pager.pooled.load(Relaxed);
    all.page_faults = pager.counters.faults.load(Relaxed);
    all.evictions = pager.counters.evictions.load(Relaxed);
    all
}
