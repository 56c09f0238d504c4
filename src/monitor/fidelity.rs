//! The error budget: what lossy compression has cost, per buffer and for the process, and whether it may cost more.
//!
//! What is claimed. Let x be what a buffer would hold had nothing been lost, x' what it holds, t the account's total. Then
//! |x - x'| <= t |x|, as long as what the program does to the buffer keeps its norm (gates) or makes it larger (a state that is written
//! for the first time). Such steps carry errors along and do not enlarge them; what others do nobody can say (a measurement whose
//! outcome was improbable enlarges them by what it divides by).
//!
//! Epochs. Errors of chunks that are out of memory at the same time are of disjoint, untouched parts, so they add in quadrature: an
//! epoch. It ends when one of them comes back, since from then on errors may meet; epochs add up.
//!
//! What an epoch's share is relative to. The norm of the buffer is not known while chunks are in memory, but two bounds are, and the
//! smaller one counts:
//! * the square root of the sum of e²/K, where K is the squared norm of all that is out of memory when the chunk goes: a part of x', so
//!   K <= |x'|²;
//! * the largest e/n of the epoch, n being the norm of the chunk itself: the sum of e² is at most its square times the sum of n², and
//!   the chunks are out together, so that this sum is a part of |x'|² too.
//!
//! The first is the better one when few chunks come and go, the second when nearly all do (and when a state is first written, K being
//! small then). Both grow only, so their minimum does. Since |x'| <= (1 + t)|x|, each is multiplied by 1 + t to be relative to |x|. K is a
//! sum of whole numbers, so that what leaves it leaves it exactly, and a chunk stands in it with its norm less its error.
//!
//! `error_spent` is the square of the total: the infidelity of normalised states at that distance is no more.
//!
//! How much of what is left an epoch may take falls with the square of what is left ([`Ledger::allowance`]): the first one a ninth, so
//! that many can follow, down to the least that is worth a loss. Pure accounting: called by the pager, and by those who report it.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What sums and products of rounded numbers may be off by, with room to spare.
const ROUNDED: f64 = 1.0 + 1e-9;
/// The first epoch may take one part in so many, plus one, of the bound.
const PARTS: f64 = 8.0;
/// Of less, relative to a chunk's norm, the codec makes little: epochs that could take less take this while it is there.
const LEAST: f64 = 1e-4;
/// Binary digits of [`Known`] below those of the first chunk's squared norm.
const DIGITS: i32 = 64;
/// The most that one chunk counts in [`Known`]: 2^26 of them cannot overflow it.
const MOST: u128 = 1 << 101;

/// The process's budget, and what all buffers, ended ones too, have spent of it.
pub struct Budget {
    /// Bits of an infidelity; 0.0 = no bound.
    limit: AtomicU64,
    spent: AtomicU64,
}

/// The budget of `qmem_set_error_budget`.
pub static PROCESS: Budget = Budget::new();

impl Budget {
    /// No bound, nothing spent.
    pub const fn new() -> Self {
        Self { limit: AtomicU64::new(0), spent: AtomicU64::new(0) }
    }

    /// The bound from now on; 0 = none. If more has been spent already, nothing further may be.
    pub fn set_limit(&self, infidelity: f64) {
        self.limit.store(infidelity.to_bits(), Relaxed);
    }

    /// The bound; 0 = none.
    pub fn limit(&self) -> f64 {
        f64::from_bits(self.limit.load(Relaxed))
    }

    /// The infidelity spent so far.
    pub fn spent(&self) -> f64 {
        f64::from_bits(self.spent.load(Relaxed))
    }

    /// What may be spent yet; infinite without a bound.
    fn left(&self) -> f64 {
        let limit = self.limit();
        if limit == 0.0 { f64::INFINITY } else { (limit - self.spent()).max(0.0) }
    }

    /// Takes `more` if the bound allows.
    fn take(&self, more: f64) -> bool {
        let limit = self.limit();
        let sum = |bits: u64| {
            let sum = f64::from_bits(bits) + more;
            (limit == 0.0 || more <= 0.0 || sum <= limit).then_some(sum.to_bits())
        };
        self.spent.fetch_update(Relaxed, Relaxed, sum).is_ok()
    }

    /// Takes back what was taken and not used.
    fn give_back(&self, less: f64) {
        let rest = |bits: u64| Some((f64::from_bits(bits) - less).max(0.0).to_bits());
        let _ = self.spent.fetch_update(Relaxed, Relaxed, rest); // it always has a rest
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

/// A sum of squared norms from which each can be taken again without a trace: whole multiples of one power of two, which the first one
/// decides. What is smaller than one multiple does not count, nor what is far larger: the sum is never too large. All zero: empty.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    unit: f64,
    sum: u128,
}

impl Known {
    fn multiples(&self, squared: f64) -> u128 {
        if self.unit > 0.0 { ((squared / self.unit) as u128).min(MOST) } else { 0 }
    }

    fn add(&mut self, squared: f64) {
        if self.unit == 0.0 && squared.is_normal() {
            let power = squared.to_bits() >> 52 << 52; // the power of two below
            let unit = f64::from_bits(power) * 2f64.powi(-DIGITS);
            self.unit = if unit.is_normal() { unit } else { f64::MIN_POSITIVE };
        }
        self.sum += self.multiples(squared);
    }

    fn remove(&mut self, squared: f64) {
        self.sum = self.sum.saturating_sub(self.multiples(squared));
    }

    fn value(&self) -> f64 {
        self.sum as f64 * self.unit
    }
}

/// What has been spent on one buffer. All zero: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    /// Σ over closed epochs of their shares.
    closed: f64,
    /// Of the epoch that is open: Σ e²/K, and the largest e/n.
    squares: f64,
    largest: f64,
    /// Closed epochs; the number of the open one.
    epoch: u32,
    /// The last closed epoch's share.
    last: f64,
    /// Squared norms of what is out of memory.
    known: Known,
    /// Nothing may be spent.
    sealed: bool,
}

/// A chunk that is out of memory, as the ledger has it. All zero: it has none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Entry {
    /// Its squared norm as it counts in the sum of what is known.
    norm_squared: f64,
    /// What it added to the sum of squares of its epoch; 0 = it was stored without loss.
    squared: f64,
    epoch: u32,
}

impl Entry {
    /// Was it stored with loss?
    pub fn lossy(&self) -> bool {
        self.squared > 0.0
    }

    /// Its squared norm, as far as it is known.
    pub fn norm_squared(&self) -> f64 {
        self.norm_squared
    }

    /// As three words, for a table that others read.
    pub fn words(self) -> [u64; 3] {
        [self.norm_squared.to_bits(), self.squared.to_bits(), u64::from(self.epoch)]
    }

    /// The entry of three words.
    pub fn of_words([norm, squared, epoch]: [u64; 3]) -> Self {
        Self { norm_squared: f64::from_bits(norm), squared: f64::from_bits(squared), epoch: epoch as u32 }
    }
}

/// A buffer's account in words that a program can use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Epochs in which something was spent.
    pub passes: u32,
    /// The error of the last of them, and of all on average, relative to the norm.
    pub last_pass: f64,
    /// As above.
    pub mean_pass: f64,
    /// The bound on the total relative L2 error.
    pub total: f64,
}

impl Ledger {
    /// Nothing spent.
    pub const fn new() -> Self {
        Self { closed: 0.0, squares: 0.0, largest: 0.0, epoch: 0, last: 0.0, known: Known { unit: 0.0, sum: 0 }, sealed: false }
    }

    /// The open epoch's share.
    fn open(&self) -> f64 {
        self.squares.sqrt().min(self.largest)
    }

    /// The bound on the buffer's total relative L2 error.
    pub fn total(&self) -> f64 {
        self.closed + self.open()
    }

    /// The most that the total may come to: a buffer's `tolerance` (infinite: it has none) and what the process has left.
    fn bound(&self, tolerance: f64, process: &Budget) -> f64 {
        let total = self.total();
        tolerance.min((total * total + process.left()).sqrt())
    }

    /// The error that the next chunk may have, relative to its own norm: 0 when nothing is left, and where nothing bounds the total,
    /// because then nobody has said how much may be lost.
    ///
    /// With r left of a bound b, an epoch may take r²/(8b + r). Epochs that take all of it leave 8/9, 8/10, 8/11 … of the bound: the
    /// tenth gets a fortieth of it, for two bits more in each number than the first.
    pub fn allowance(&self, tolerance: f64, process: &Budget) -> f64 {
        let bound = self.bound(tolerance, process);
        let left = bound - self.closed;
        if self.sealed || !bound.is_finite() || left.is_nan() || left <= 0.0 {
            return 0.0;
        }
        (left * left / (PARTS * bound + left)).max(LEAST.min(left)) / (1.0 + self.total()) / (ROUNDED * ROUNDED)
    }

    /// A chunk has gone out of memory with this squared norm.
    pub fn leave(&mut self, norm_squared: f64) -> Entry {
        let counts = if norm_squared.is_finite() { norm_squared } else { 0.0 };
        self.known.add(counts);
        Entry { norm_squared: counts, squared: 0.0, epoch: 0 }
    }

    /// May the chunk of this entry be stored with an error of `error` (L2, absolute)? If so it has been accounted; if not it must go
    /// without loss, and nothing has changed.
    pub fn spend(&mut self, entry: &mut Entry, error: f64, tolerance: f64, process: &Budget) -> bool {
        if error == 0.0 {
            return true;
        }
        let before = self.total();
        let (norm, known) = (entry.norm_squared.sqrt(), self.known.value().max(entry.norm_squared));
        let rounded = (1.0 + before) * ROUNDED;
        let (share, ratio) = (error / known.sqrt() * rounded, error / norm * rounded);
        if self.sealed || !(ratio.is_finite() && (0.0..1.0).contains(&ratio)) {
            return false; // a norm of zero, or numbers that are none: nothing can be said of the error
        }
        let next = Self { squares: self.squares + share * share, largest: self.largest.max(ratio), ..*self };
        let after = next.total();
        let bounded = tolerance.is_finite() || process.limit() > 0.0;
        if !bounded || share * share == 0.0 || after.next_up() > tolerance || !process.take(after * after - before * before) {
            return false;
        }
        *self = next;
        self.known.remove(entry.norm_squared);
        // What comes back has at least this norm.
        let kept = (norm - error).max(0.0);
        *entry = Entry { norm_squared: kept * kept, squared: share * share, epoch: self.epoch };
        self.known.add(entry.norm_squared);
        true
    }

    /// What [`Self::spend`] allowed was not done after all: the chunk is as it was. It still is out of memory.
    pub fn unspend(&mut self, entry: &mut Entry, process: &Budget) {
        if entry.lossy() && entry.epoch == self.epoch {
            let before = self.total();
            self.squares = (self.squares - entry.squared).max(0.0);
            if self.squares == 0.0 {
                self.largest = 0.0;
            }
            let after = self.total();
            process.give_back(before * before - after * after);
        }
        entry.squared = 0.0;
    }

    /// A chunk is in memory again.
    pub fn come_back(&mut self, entry: Entry) {
        self.known.remove(entry.norm_squared);
        if entry.lossy() && entry.epoch == self.epoch {
            self.close();
        }
    }

    fn close(&mut self) {
        self.last = self.open();
        self.closed = (self.closed + self.last).next_up();
        (self.squares, self.largest) = (0.0, 0.0);
        self.epoch += 1;
    }

    /// Nothing may be spent from now on, until [`Self::inherit`]: the total, and how many epochs it took.
    pub fn seal(&mut self) -> (f64, u32) {
        self.sealed = true;
        (self.total(), self.report().passes)
    }

    /// What the buffer holds has come with this error; it may be spent on again.
    pub fn inherit(&mut self, total: f64, passes: u32) {
        if self.open() > 0.0 {
            self.close();
        }
        self.closed += total;
        self.epoch = self.epoch.saturating_add(passes);
        self.sealed = false;
    }

    /// The account.
    pub fn report(&self) -> Report {
        let open = self.open();
        let passes = self.epoch.saturating_add(u32::from(open > 0.0));
        Report {
            passes,
            last_pass: if open > 0.0 { open } else { self.last },
            mean_pass: if passes > 0 { self.total() / f64::from(passes) } else { 0.0 },
            total: self.total(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKS: usize = 8;
    const LEN: usize = 32;

    struct Random(u64);
    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            self.0 >> 33
        }
        fn unit(&mut self) -> f64 {
            self.next() as f64 / (1u64 << 31) as f64 * 2.0 - 1.0
        }
    }

    /// A codec for the test: rounds to multiples of a step. The L2 error it makes.
    fn lossy(chunk: &mut [f64], step: f64) -> f64 {
        let mut squared = 0.0;
        for x in chunk {
            let rounded = (*x / step).round() * step;
            squared += (rounded - *x) * (rounded - *x);
            *x = rounded;
        }
        squared.sqrt()
    }

    fn norm(state: &[f64]) -> f64 {
        state.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// Rotations between a chunk and another one that is in memory, or inside it: what a gate does.
    fn rotate(random: &mut Random, c: usize, other: Option<usize>, states: [&mut Vec<f64>; 2]) {
        let (sin, cos) = (3.0 * random.unit()).sin_cos();
        for v in states {
            for i in c * LEN..(c + 1) * LEN {
                let j = other.map_or(c * LEN + (i + 1) % LEN, |o| o * LEN + i % LEN);
                if i != j {
                    let (a, b) = (v[i], v[j]);
                    (v[i], v[j]) = (cos * a - sin * b, sin * a + cos * b);
                }
            }
        }
    }

    /// Whatever the order of evictions, returns and norm-preserving steps, and however unequal the chunks: the true error never passes
    /// the account, nor the account the tolerance or the budget.
    #[test]
    fn the_true_error_is_within_the_account() {
        let (mut refused, mut tight) = (0, 0.0f64);
        for seed in 0..300 {
            let mut random = Random(seed);
            let skew = [1.0, 0.3, 1e-4][seed as usize / 9 % 3];
            let size = |i: usize| f64::powi(skew, (i / LEN) as i32);
            let mut exact: Vec<f64> = (0..CHUNKS * LEN).map(|i| random.unit() * size(i)).collect();
            let scale = norm(&exact) / [1.0, 1e-100, 1e60][seed as usize % 3];
            exact.iter_mut().for_each(|x| *x /= scale);
            let mut state = exact.clone();
            let budget = Budget::new();
            let tolerance = [0.02, 0.2, 0.9, f64::INFINITY][seed as usize % 4];
            budget.set_limit([1e-2, 1e-4, 0.0][seed as usize / 4 % 3]);
            let mut ledger = Ledger::new();
            let mut out: [Option<Entry>; CHUNKS] = [None; CHUNKS];
            for _ in 0..400 {
                let c = random.next() as usize % CHUNKS;
                let range = c * LEN..(c + 1) * LEN;
                match out[c] {
                    None if random.next().is_multiple_of(2) => {
                        let own = norm(&state[range.clone()]);
                        let mut stored = state[range.clone()].to_vec();
                        let mut entry = ledger.leave(own * own);
                        let allowed = ledger.allowance(tolerance, &budget);
                        // Now and then more than is allowed: then it is refused, or it happened to fit.
                        let greed = if random.next().is_multiple_of(5) { 40.0 } else { 1.0 };
                        let step = allowed.max(1e-9) * own * greed * (12.0 / LEN as f64).sqrt();
                        let error = if step > 0.0 { lossy(&mut stored, step) } else { 0.0 };
                        if error > 0.0 && !ledger.spend(&mut entry, error, tolerance, &budget) {
                            refused += 1;
                        } else if random.next().is_multiple_of(9) {
                            ledger.unspend(&mut entry, &budget); // nothing took it
                        } else {
                            state[range].copy_from_slice(&stored);
                        }
                        out[c] = Some(entry);
                    }
                    None => {
                        let other = (0..CHUNKS).cycle().skip(c + 1).take(CHUNKS - 1).find(|o| out[*o].is_none());
                        rotate(&mut random, c, other, [&mut exact, &mut state]);
                    }
                    Some(entry) => {
                        ledger.come_back(entry);
                        out[c] = None;
                    }
                }
                let difference: Vec<f64> = exact.iter().zip(&state).map(|(a, b)| a - b).collect();
                let (made, whole) = (norm(&difference), norm(&exact));
                assert!(made <= ledger.total() * whole + 1e-13 * whole, "{made} of {whole}, accounted {}", ledger.total());
                assert!(ledger.total() <= tolerance);
                assert!((budget.spent() - ledger.total().powi(2)).abs() <= 1e-9 * budget.spent().max(1e-6));
                assert!(budget.limit() == 0.0 || budget.spent() <= budget.limit());
                if ledger.total() > 0.0 {
                    tight = tight.max(made / whole / ledger.total());
                }
            }
            assert!(tolerance.is_finite() || budget.limit() > 0.0 || ledger.total() == 0.0, "nobody said how much may be lost");
        }
        assert!(refused > 1000, "the bounds were never reached");
        assert!(tight > 0.5, "the account is far above the error: {tight}");
    }

    #[test]
    fn quadrature_within_an_epoch_and_sums_over_epochs() {
        let (budget, mut ledger) = (Budget::new(), Ledger::new());
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 2e-3; // 1 + t is in it too
        let mut other = ledger.leave(100.0 * 100.0 - 9.0 - 16.0);
        let (mut one, mut two) = (ledger.leave(9.0), ledger.leave(16.0));
        assert!(ledger.spend(&mut one, 3e-4, 1.0, &budget) && ledger.spend(&mut two, 4e-4, 1.0, &budget));
        assert!(near(ledger.total(), 5e-6), "{}", ledger.total());
        ledger.come_back(one);
        ledger.come_back(two); // of the same epoch
        assert!(ledger.spend(&mut other, 1e-4, 1.0, &budget));
        assert!(near(ledger.total(), 6e-6) && near(budget.spent(), 36e-12), "{}", ledger.total());
        let report = ledger.report();
        assert!(report.passes == 2 && near(report.last_pass, 1e-6) && near(report.mean_pass, 3e-6), "{report:?}");
    }

    #[test]
    fn a_state_that_is_written_for_the_first_time_costs_no_more_than_its_chunks() {
        let (budget, mut ledger) = (Budget::new(), Ledger::new());
        for _ in 0..1000 {
            let mut entry = ledger.leave(1.0);
            assert!(ledger.spend(&mut entry, 1e-3, 1.0, &budget));
        }
        assert!((ledger.total() / 1e-3 - 1.0).abs() < 2e-3, "{}", ledger.total());
    }

    #[test]
    fn many_epochs_share_a_bound() {
        let (budget, mut ledger) = (Budget::new(), Ledger::new());
        let mut shares = Vec::new();
        for _ in 0..1000 {
            let allowed = ledger.allowance(0.1, &budget);
            let mut entry = ledger.leave(1.0);
            assert!(ledger.spend(&mut entry, allowed, 0.1, &budget) || allowed < 1e-12);
            ledger.come_back(entry);
            shares.push(allowed);
        }
        assert!((shares[0] - 0.1 / 9.0).abs() < 1e-8 && shares[9] > 0.0023 && shares[149] > 0.9e-4, "{:?}", &shares[..10]);
        assert!(ledger.total() > 0.0999 && ledger.total() <= 0.1 && shares[999] < 1e-9, "{}", ledger.total());
    }

    #[test]
    fn bounds_and_bad_numbers() {
        let (budget, mut ledger) = (Budget::new(), Ledger::new());
        let mut entry = ledger.leave(1.0);
        assert!(!ledger.spend(&mut entry, 0.1, 0.05, &budget) && !entry.lossy());
        assert_eq!((ledger.total(), budget.spent()), (0.0, 0.0));
        budget.set_limit(0.0001);
        assert!(!ledger.spend(&mut entry, 0.02, 1.0, &budget)); // 4e-4 > 1e-4
        assert!(ledger.spend(&mut entry, 0.00999, 1.0, &budget));
        let mut second = Ledger::new();
        let mut other = second.leave(1.0);
        assert!(!second.spend(&mut other, 0.001, 1.0, &budget)); // one budget for all buffers
        assert!(second.spend(&mut other, 0.0, 0.0, &budget)); // exact is always allowed
        for (error, squared) in
            [(1.0, 0.0), (f64::NAN, 1.0), (-1.0, 1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN), (0.1, f64::INFINITY)]
        {
            let mut entry = second.leave(squared);
            assert!(!second.spend(&mut entry, error, 1e300, &Budget::new()), "{error} of {squared}");
            second.come_back(entry);
        }
        assert_eq!(second.allowance(f64::INFINITY, &Budget::new()), 0.0);
        assert_eq!(ledger.allowance(0.0, &Budget::new()), 0.0);
        let (total, passes) = ledger.seal();
        assert!(!ledger.spend(&mut second.leave(1.0), 1e-9, 1.0, &Budget::new()) && passes == 1);
        second.inherit(total, passes);
        assert!(second.total() >= total && second.report().passes == 1);
    }

    #[test]
    fn what_is_known_is_exact_and_never_too_much() {
        let mut random = Random(5);
        let mut known = Known::default();
        let mut held = Vec::new();
        for _ in 0..10_000 {
            if held.is_empty() || random.next().is_multiple_of(2) {
                let squared = 2f64.powi(random.next() as i32 % 200 - 100) * (1.0 + random.unit().abs());
                known.add(squared);
                held.push(squared);
            } else {
                known.remove(held.swap_remove(random.next() as usize % held.len()));
            }
            assert!(known.value() <= held.iter().sum::<f64>() * ROUNDED);
        }
        held.drain(..).for_each(|squared| known.remove(squared));
        assert_eq!(known.sum, 0);
    }

    #[test]
    fn threads_share_a_budget_exactly() {
        let budget = Budget::new();
        budget.set_limit(0.01);
        let once = || {
            let mut ledger = Ledger::new();
            let mut entry = ledger.leave(1.0);
            ledger.spend(&mut entry, 0.001, 1.0, &budget)
        };
        let granted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..100_000).filter(|_| once()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((9_999..=10_000).contains(&granted), "{granted}");
        assert!(budget.spent() <= 0.01);
    }
}
