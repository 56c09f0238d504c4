//! A heap's free address space: 2 MiB units cut into 32 slices, mapped when the heap grows and kept for ever, so that a stale
//! pointer can be looked up without a lock. Every slice is charged to the budget before it is given and until its pages have gone
//! back to the kernel. Called by the heap's owner alone: refills, runs, and the look for idle memory.

use super::classes::{RUNS, SLICE};
use super::local::{FIRST_UNIT, Heap, RUNNING, UNIT_SLICES, UNITS};
use super::window;
use crate::config;
use crate::monitor::account::{self, Holder};
use crate::os::vm;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Units that are passed over where something else is mapped, before the window counts as full.
const OBSTACLES: u32 = 8;

/// One unit's slices, a bit each. All zero: not there, nothing free.
pub struct Unit {
    /// In no span.
    free: Cell<u32>,
    /// Free, but charged: pages of a former span, or part of a huge page.
    dirty: Cell<u32>,
    /// Of those, still zero.
    clean: Cell<u32>,
    /// The kernel may make it one huge page: charged and dropped as a whole. Runs, of which a program may touch little, are not put here.
    huge: Cell<bool>,
}

/// What a heap knows of its units.
pub struct Slices {
    /// Number of the unit after the last mapped one; 0 = the heap has no window.
    end: Cell<u32>,
    /// Number of the unit after the last that the window has room for.
    most: Cell<u32>,
    /// No unit before this one has so many free slices in a row, less one, for a run; the last is for blocks.
    hints: [Cell<u32>; RUNS + 1],
    /// Slices in spans.
    used: Cell<usize>,
    /// Dirty slices.
    dirty: Cell<usize>,
    /// The fewest dirty slices since idle memory was last looked for.
    idle: Cell<usize>,
    /// Dirty slices that were dropped for being too many, and not missed so far.
    dropped: Cell<usize>,
    /// How many more dirty slices may be kept than the setting says, since dropped ones were missed.
    learned: Cell<usize>,
}

/// Bytes of mapped units of all heaps.
static MAPPED: AtomicUsize = AtomicUsize::new(0);
/// Dirty slices of all heaps.
static DIRTY: AtomicUsize = AtomicUsize::new(0);

/// Bytes of address space in units, and how many of those are charged but in no span.
pub fn sizes() -> (usize, usize) {
    (MAPPED.load(Ordering::Relaxed), DIRTY.load(Ordering::Relaxed) * SLICE)
}

/// What slices are taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Blocks of one class, one slice.
    Blocks,
    /// A run.
    Run,
    /// A run that has grown and will grow again: where there is room.
    GrowingRun,
}

/// Slices that were taken.
pub struct Taken {
    /// The first.
    pub slice: u32,
    /// Their pages were never used, or went back to the kernel since: they are zero.
    pub zero: bool,
}

impl Slices {
    /// No window.
    pub const fn none() -> Self {
        Self {
            end: Cell::new(0),
            most: Cell::new(0),
            hints: [const { Cell::new(0) }; RUNS + 1],
            used: Cell::new(0),
            dirty: Cell::new(0),
            idle: Cell::new(0),
            dropped: Cell::new(0),
            learned: Cell::new(0),
        }
    }

    /// The window is there, with room for units up to number `most`.
    pub fn open(&self, most: u32) {
        self.end.set(FIRST_UNIT as u32);
        self.most.set(most);
        self.hints.iter().for_each(|hint| hint.set(FIRST_UNIT as u32));
    }

    fn hint(&self, slices: u32, to: For) -> Option<&Cell<u32>> {
        self.hints.get(if to == For::Blocks { RUNS } else { slices as usize - 1 })
    }

    /// The unit has more room than before.
    fn reconsider(&self, unit: u32) {
        self.hints.iter().for_each(|hint| hint.set(hint.get().min(unit)));
    }

    fn add_dirty(&self, slices: usize) {
        self.dirty.set(self.dirty.get() + slices);
        DIRTY.fetch_add(slices, Ordering::Relaxed);
    }

    fn less_dirty(&self, slices: usize) {
        self.dirty.set(self.dirty.get().saturating_sub(slices));
        self.idle.set(self.idle.get().min(self.dirty.get()));
        DIRTY.fetch_sub(slices, Ordering::Relaxed);
    }

    /// All slices of mapped units, used or not.
    pub fn range(&self) -> core::ops::Range<u32> {
        (FIRST_UNIT * UNIT_SLICES) as u32..self.end.get().max(FIRST_UNIT as u32) * UNIT_SLICES as u32
    }

    /// The window has room for no further unit.
    pub fn is_full(&self) -> bool {
        self.end.get() >= self.most.get()
    }

    /// Nothing is charged for it.
    pub fn is_bare(&self) -> bool {
        self.used.get() + self.dirty.get() == 0
    }
}

impl Heap {
    /// The unit's bits.
    fn unit(&self, unit: u32) -> &'static Unit {
        // SAFETY: callers pass units of the window's mapped part, whose entries are mapped for ever; zero is valid.
        unsafe { &*((self.window() + UNITS + unit as usize * size_of::<Unit>()) as *const Unit) }
    }

    /// Takes `count` slices in a row, charged, 1 to [`RUNS`]. None: neither the budget nor,
    /// then, the window or the kernel has any.
    pub fn take_slices(&self, count: u32, to: For) -> Option<Taken> {
        let slices = &self.slices;
        let unit = if to == For::GrowingRun { self.roomy_unit() } else { None };
        let unit = match unit.or_else(|| self.unit_with(count, to)) {
            Some(unit) => unit,
            None => self.grow(to)?,
        };
        let bits = self.unit(unit);
        if bits.dirty.get() == 0 && bits.free.get() == u32::MAX {
            // One whose huge page was split may have one again.
            if !bits.huge.get() && self.may_be_huge(to) {
                window::allow_huge(self, unit, true);
                bits.huge.set(true);
            }
            if bits.huge.get() {
                self.pay_for_huge(unit, bits);
            }
        }
        let (free, dirty) = (bits.free.get(), bits.dirty.get());
        // Charged pages first: they cost nothing more.
        let at = run_of(free & dirty, count).or_else(|| run_of(free, count))?;
        let run = mask(at, count);
        let reused = (dirty & run).count_ones();
        if !self.pay((count - reused) as usize * SLICE) {
            return None;
        }
        let zero = dirty & !bits.clean.get() & run == 0;
        bits.free.set(free & !run);
        bits.dirty.set(dirty & !run);
        bits.clean.set(bits.clean.get() & !run);
        slices.used.set(slices.used.get() + count as usize);
        slices.less_dirty(reused as usize);
        self.miss((count - reused) as usize);
        Some(Taken { slice: unit * UNIT_SLICES as u32 + at, zero })
    }

    /// The whole unit is charged before any of it is touched; where the budget has no room for that, it is not huge.
    fn pay_for_huge(&self, unit: u32, bits: &Unit) {
        if account::try_charge(Holder::Heap, vm::HUGE) {
            bits.dirty.set(u32::MAX);
            bits.clean.set(u32::MAX);
            self.slices.add_dirty(UNIT_SLICES);
        } else {
            bits.huge.set(false);
            window::allow_huge(self, unit, false);
        }
    }

    /// Adds the `more` slices that follow `slice`, of the same unit, if they are free and can be charged.
    pub fn take_next(&self, slice: u32, more: u32) -> bool {
        let at = slice % UNIT_SLICES as u32;
        if at == 0 || at + more > UNIT_SLICES as u32 {
            return false;
        }
        let bits = self.unit(slice / UNIT_SLICES as u32);
        let run = mask(at, more);
        if bits.free.get() & run != run {
            return false;
        }
        let reused = (bits.dirty.get() & run).count_ones();
        if !self.pay((more - reused) as usize * SLICE) {
            return false;
        }
        bits.free.set(bits.free.get() & !run);
        bits.dirty.set(bits.dirty.get() & !run);
        bits.clean.set(bits.clean.get() & !run);
        self.slices.used.set(self.slices.used.get() + more as usize);
        self.slices.less_dirty(reused as usize);
        true
    }

    fn pay(&self, cost: usize) -> bool {
        let prepaid = self.prepaid.get();
        if prepaid >= cost {
            self.prepaid.set(prepaid - cost);
            return true;
        }
        account::try_charge(Holder::Heap, cost)
    }

    /// May what is taken lie in a huge page?
    fn may_be_huge(&self, to: For) -> bool {
        let many = self.slices.used.get() * SLICE >= config::HEAP_HUGE.get();
        to == For::Blocks && many && account::budget() == usize::MAX
    }

    /// The lowest unit with `count` free slices in a row.
    fn unit_with(&self, count: u32, to: For) -> Option<u32> {
        let hint = self.slices.hint(count, to)?;
        let mut unit = hint.get();
        while unit < self.slices.end.get() {
            let bits = self.unit(unit);
            if (to == For::Blocks || !bits.huge.get()) && run_of(bits.free.get(), count).is_some() {
                hint.set(unit);
                return Some(unit);
            }
            unit += 1;
        }
        hint.set(unit);
        None
    }

    /// A unit that is all free, dirty rather than not.
    fn roomy_unit(&self) -> Option<u32> {
        let first = self.slices.hint(1, For::Run)?.get();
        let mut best = None;
        for unit in (first..self.slices.end.get()).take(64) {
            let bits = self.unit(unit);
            if bits.free.get() == u32::MAX && !bits.huge.get() {
                if bits.dirty.get() != 0 {
                    return Some(unit);
                }
                best = best.or(Some(unit));
            }
        }
        best
    }

    /// Maps one more unit; returns its number.
    fn grow(&self, to: For) -> Option<u32> {
        let slices = &self.slices;
        for unit in slices.end.get()..slices.end.get() + OBSTACLES {
            if unit >= slices.most.get() || !window::widen(self, unit) {
                return None;
            }
            slices.end.set(unit + 1);
            let huge = self.may_be_huge(to);
            if window::map_unit(self, unit, huge) {
                self.unit(unit).free.set(u32::MAX);
                self.unit(unit).huge.set(huge);
                self.limit.set((unit as usize + 1) * vm::HUGE);
                MAPPED.fetch_add(vm::HUGE, Ordering::Relaxed);
                return Some(unit);
            }
        }
        None
    }

    /// Takes slices back whose spans are dissolved; their pages stay for the next ones, up to a bound.
    pub fn release_slices(&self, slice: u32, count: u32) {
        let unit = slice / UNIT_SLICES as u32;
        let run = mask(slice % UNIT_SLICES as u32, count);
        let bits = self.unit(unit);
        bits.free.set(bits.free.get() | run);
        bits.dirty.set(bits.dirty.get() | run);
        bits.clean.set(bits.clean.get() & !run);
        let slices = &self.slices;
        slices.reconsider(unit);
        slices.used.set(slices.used.get().saturating_sub(count as usize));
        slices.add_dirty(count as usize);
        let threads = RUNNING.load(Ordering::Relaxed).clamp(1, 8) as usize;
        let bound = config::HEAP_CACHE.get() / SLICE / threads + slices.learned.get();
        let (before, bound) = (slices.dirty.get(), bound.max(slices.used.get() / 4));
        if before > bound {
            self.drop_dirty(bound - bound / 4, true);
            slices.dropped.set(slices.dropped.get() + before - slices.dirty.get());
        }
    }

    /// Slices without pages were taken: had their pages been kept that were dropped, the kernel need not make them anew.
    fn miss(&self, count: usize) {
        let slices = &self.slices;
        let missed = count.min(slices.dropped.get());
        slices.dropped.set(slices.dropped.get() - missed);
        slices.learned.set((slices.learned.get() + missed).min(config::HEAP_LEARNED / SLICE));
    }

    /// Gives dirty pages back to the kernel until at most `keep` slices have some: whole units first, then parts of those without huge
    /// pages, then, with `split`, parts of the others; the highest first.
    pub fn drop_dirty(&self, keep: usize, split: bool) {
        let whole = |bits: &Unit| bits.free.get() == u32::MAX;
        let small = |bits: &Unit| !bits.huge.get();
        let passes: [&dyn Fn(&Unit) -> bool; 3] = [&whole, &small, &|_| split];
        for fits in passes {
            for unit in (FIRST_UNIT as u32..self.slices.end.get()).rev() {
                if self.slices.dirty.get() <= keep {
                    return;
                }
                let bits = self.unit(unit);
                if bits.dirty.get() != 0 && fits(bits) {
                    if !whole(bits) && bits.huge.replace(false) {
                        window::allow_huge(self, unit, false);
                        self.slices.reconsider(unit); // for runs
                    }
                    self.drop_unit(unit, bits);
                }
            }
        }
    }

    fn drop_unit(&self, unit: u32, bits: &Unit) {
        let mut left = bits.dirty.get();
        while left != 0 {
            let at = left.trailing_zeros();
            let count = (left >> at).trailing_ones();
            let run = mask(at, count);
            left &= !run;
            let start = self.start_of(unit * UNIT_SLICES as u32 + at);
            // SAFETY: the pages are of this heap and in no span. A kernel that refuses (locked memory) leaves them charged.
            if unsafe { vm::try_drop_pages(start, count as usize * SLICE) } {
                bits.dirty.set(bits.dirty.get() & !run);
                bits.clean.set(bits.clean.get() & !run);
                self.slices.less_dirty(count as usize);
                account::uncharge(Holder::Heap, count as usize * SLICE);
            }
        }
    }

    /// Has the heap keep no more than the setting says, until it misses something again.
    pub fn forget_learned(&self) {
        self.slices.dropped.set(0);
        self.slices.learned.set(0);
    }

    /// Gives back what was not needed since the last look.
    pub fn drop_idle(&self) {
        let slices = &self.slices;
        let idle = slices.idle.get().min(slices.dirty.get());
        if idle > 0 {
            self.drop_dirty(slices.dirty.get() - idle, true);
        }
        slices.idle.set(slices.dirty.get());
        slices.dropped.set(0);
        slices.learned.set(slices.learned.get() / 2);
    }
}

/// `count` ones from bit `at`; `at + count` is at most 32.
const fn mask(at: u32, count: u32) -> u32 {
    if count >= u32::BITS { u32::MAX } else { ((1u32 << count) - 1) << at }
}

/// First bit of the first run of `count` ones.
fn run_of(bits: u32, count: u32) -> Option<u32> {
    let mut starts = bits;
    let mut have = 1;
    while have < count {
        let step = have.min(count - have);
        starts &= starts >> step;
        have += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_where_a_slow_search_finds_them() {
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u32
        };
        for round in 0..20_000u32 {
            let bits = (random() | random()) << (round % 3);
            let count = 1 + round % 16;
            let slow = (0..=32 - count).find(|at| bits & mask(*at, count) == mask(*at, count));
            assert_eq!(run_of(bits, count), slow, "{bits:#x} {count}");
        }
        assert_eq!((run_of(0, 1), run_of(u32::MAX, 16), run_of(u32::MAX, 32)), (None, Some(0), Some(0)));
    }
}
