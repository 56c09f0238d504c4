//! Where heaps lie: windows of 16 GiB side by side in a part of the address space that neither the kernel's own choice nor a
//! program's image reaches, from a random start. Nothing is reserved: a unit is mapped when it is needed, and never over
//! something that is there already. Called by `thread.rs` for new heaps and by `slices.rs` for their growth.

use super::local::{
    BINS, Bin, CHECKS, Check, FIRST_UNIT, HEADS, Heap, NARROW, RECORD, SLICES, SLICES_AT_FIRST, SPANS, UNITS, WAYS, WINDOW,
};
use super::numa;
use super::slices::Unit;
use super::span::Span;
use super::way::Way;
use crate::config;
use crate::ds::page_map::{self, Entry, Tag};
use crate::os::{random, vm};

/// Where the first window may start, with the room for a random start and how many wide windows fit: the first place where nothing
/// is. The others are for tools that hold much of the address space: valgrind all above 16 TiB, ThreadSanitizer 1 to 32 TiB.
static PLACES: [(usize, usize, usize); 3] =
    [(17 << 40, 1 << 40, config::HEAP_WIDE), (3 << 40, 1 << 40, 256), (1 << 36, 1 << 35, 0)];
/// Windows that are tried for one heap; something else may be mapped where they would be.
const TRIES: usize = 8;

/// Which windows were used. Under the depot's lock.
pub struct Windows {
    /// The first one; 0 = not chosen yet.
    base: usize,
    /// Windows tried so far.
    next: usize,
    /// Windows of full size.
    wide: usize,
}

impl Windows {
    /// None yet.
    pub const fn new() -> Self {
        Self { base: 0, next: 0, wide: 0 }
    }

    /// A new heap in the next window.
    pub fn make(&mut self) -> Option<&'static Heap> {
        if self.base != 0 {
            return self.make_here();
        }
        for (start, room, wide) in PLACES {
            self.base = start + random::bits() as usize % room / vm::HUGE * vm::HUGE;
            self.wide = wide;
            self.next = 0;
            if let Some(heap) = self.make_here() {
                return Some(heap);
            }
        }
        self.base = 0;
        None
    }

    fn make_here(&mut self) -> Option<&'static Heap> {
        for _ in 0..TRIES {
            let index = self.next;
            if index >= config::HEAP_THREADS {
                return None;
            }
            self.next += 1;
            let (wide, narrow) = (index.min(self.wide), index.saturating_sub(self.wide));
            let base = self.base + wide * WINDOW + narrow * NARROW;
            if map_entries(base, 0, SLICES_AT_FIRST) {
                let most = if index < self.wide { WINDOW } else { NARROW } / vm::HUGE;
                // SAFETY: the record's pages were just mapped and are zero, which is valid.
                let heap = unsafe { &*((base + RECORD) as *const Heap) };
                prepare(heap, most as u32);
                return Some(heap);
            }
        }
        None
    }
}

fn prepare(heap: &'static Heap, most: u32) {
    // SAFETY: they are the new heap's, which nobody else knows yet.
    unsafe { *heap.bins.get() = [Bin(heap.end()); BINS] };
    heap.magazines.lay(heap);
    heap.slices.open(most);
}

/// Maps the entries of the slices from `first` to `end`: those of every array, and with the first ones the record.
fn map_entries(base: usize, first: usize, end: usize) -> bool {
    let part = |offset: usize, size: usize| (base + offset + first * size, (end - first) * size);
    let units = if first == 0 { (base + UNITS, WINDOW / vm::HUGE * size_of::<Unit>()) } else { (0, 0) };
    let heads = if first == 0 { (base, HEADS + end * size_of::<usize>()) } else { part(HEADS, size_of::<usize>()) };
    let ways = part(WAYS, size_of::<Way>());
    let parts = [heads, part(CHECKS, size_of::<Check>()), ways, part(SPANS, size_of::<Span>()), units];
    for (done, (start, bytes)) in parts.iter().enumerate() {
        if *bytes > 0 && vm::map_at(*start, vm::round_up(*bytes, vm::PAGE)).is_err() {
            for (start, bytes) in parts.iter().take(done) {
                // SAFETY: mapped just now, known to nobody.
                unsafe { vm::unmap(*start, vm::round_up(*bytes, vm::PAGE)) };
            }
            return false;
        }
    }
    true
}

/// Sees to it that the entries of `unit`'s slices are there.
pub fn widen(heap: &Heap, unit: u32) -> bool {
    let at_first = (SLICES_AT_FIRST / super::local::UNIT_SLICES) as u32;
    unit != at_first.max(FIRST_UNIT as u32) || map_entries(heap.window(), SLICES_AT_FIRST, SLICES)
}

/// Maps a unit and enters it into the page map; false if something else is there or the kernel refuses.
pub fn map_unit(heap: &Heap, unit: u32, huge: bool) -> bool {
    let start = heap.window() + unit as usize * vm::HUGE;
    if vm::map_at(start, vm::HUGE).is_err() {
        return false;
    }
    numa::place(start, vm::HUGE);
    allow_huge(heap, unit, huge);
    if page_map::set_range(start, vm::HUGE, Entry { tag: Tag::Segment, payload: heap.mark() as u64 }).is_err() {
        // SAFETY: mapped just now, known to nobody.
        unsafe { vm::unmap(start, vm::HUGE) };
        return false;
    }
    true
}

/// May the kernel make a mapped unit one huge page? Where not the whole of it is charged, that would make more resident than is: at its
/// first touch, or later by khugepaged. A kernel without huge pages refuses the advice, which is as good.
pub fn allow_huge(heap: &Heap, unit: u32, huge: bool) {
    let start = heap.window() + unit as usize * vm::HUGE;
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: the range is mapped.
    unsafe { vm::try_advise(start, vm::HUGE, advice) };
}
