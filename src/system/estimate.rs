//! Says beforehand whether a run fits: bytes of a state of n qubits against the machine, the budget and the swap space. Called
//! by `ffi::memory`; changes nothing.
#![forbid(unsafe_code)]

use super::allocation;
use crate::ds::Text;
use crate::error::Error;
use crate::fail;
use crate::monitor::account;
use core::fmt::{self, Write};

/// `qmem_workload_t`, not yet checked.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // as in qmem_workload_t
pub struct Workload {
    pub num_qubits: u32,
    pub bytes_per_amplitude: u32,
    pub copies: u32,
    pub expected_ratio: f64,
}

/// `qmem_estimate_t` without C's types.
#[derive(Clone, Copy)]
#[allow(missing_docs)] // as in qmem_estimate_t
pub struct Estimate {
    pub logical: usize,
    pub resident: usize,
    pub swap: usize,
    pub fits_in_memory: bool,
    pub fits_in_budget: bool,
    pub fits_with_swap: bool,
    pub advice: Text<255>,
}

/// What is there to put a state into.
#[derive(Clone, Copy)]
struct Room {
    machine: usize,
    budget: usize,
    swap: usize,
}

/// Judges a workload by the budget in force, or before initialisation by the one that max_memory = 0 would get.
pub fn estimate(workload: &Workload) -> Result<Estimate, Error> {
    let machine = allocation::machine_budget();
    let budget = if allocation::bounded() { account::budget() } else { allocation::budget_for(0) };
    judge(workload, Room { machine, budget, swap: account::swap() })
}

fn judge(workload: &Workload, room: Room) -> Result<Estimate, Error> {
    let Workload { num_qubits, bytes_per_amplitude, copies, expected_ratio } = *workload;
    if num_qubits == 0 || num_qubits > 60 {
        return Err(fail!(InvalidArgument, "num_qubits = {num_qubits} is outside 1 to 60"));
    }
    if !matches!(bytes_per_amplitude, 8 | 16) {
        return Err(fail!(
            InvalidArgument,
            "bytes_per_amplitude = {bytes_per_amplitude} is neither 8 (complex float) nor 16 (complex double)"
        ));
    }
    if expected_ratio != 0.0 && !(expected_ratio.is_finite() && expected_ratio >= 1.0) {
        return Err(fail!(
            InvalidArgument,
            "expected_ratio = {expected_ratio} is neither 0 (no compression) nor a finite number from 1"
        ));
    }
    let one = (1usize << num_qubits).saturating_mul(bytes_per_amplitude as usize);
    let logical = one.saturating_mul(copies.max(1) as usize);
    let stored = if expected_ratio > 1.0 { (logical as f64 / expected_ratio).ceil() as usize } else { logical };
    let resident = stored.min(room.budget);
    let mut estimate = Estimate {
        logical,
        resident,
        swap: stored - resident,
        fits_in_memory: stored <= room.machine,
        fits_in_budget: stored <= room.budget,
        fits_with_swap: stored <= room.budget.saturating_add(room.swap),
        advice: Text::new(),
    };
    let _ = advise(&mut estimate, workload, stored, room); // a Text takes what fits and never fails
    Ok(estimate)
}

fn advise(estimate: &mut Estimate, workload: &Workload, stored: usize, room: Room) -> fmt::Result {
    let (fits_in_budget, fits_in_memory, fits_with_swap) =
        (estimate.fits_in_budget, estimate.fits_in_memory, estimate.fits_with_swap);
    let (logical, budget, swap) = (Size(estimate.logical), Size(room.budget), Size(room.swap));
    let need = Size(stored.saturating_sub(room.budget).saturating_sub(room.swap));
    let bet = estimate.logical > room.budget.saturating_add(room.swap);
    let advice = &mut estimate.advice;
    write!(advice, "{} qubits take {logical}", workload.num_qubits)?;
    if stored != estimate.logical {
        write!(advice, ", {} if they compress ", Size(stored))?;
        let ratio = workload.expected_ratio;
        if ratio < 1e6 { write!(advice, "{ratio}x")? } else { write!(advice, "{ratio:e}x")? }
    }
    if fits_in_budget {
        write!(advice, "; the budget is {budget}: it fits.")?;
    } else if fits_in_memory {
        write!(advice, "; the budget is {budget}, but this machine has {}: raise max_memory.", Size(room.machine))?;
    } else if fits_with_swap {
        write!(advice, "; the budget is {budget} and swap space {swap}: it fits with swapping.")?;
    } else {
        write!(
            advice,
            "; budget {budget} and swap {swap} lack {need}: enable swapping with a disk that large, or use fewer qubits."
        )?;
    }
    if bet && (fits_in_budget || fits_with_swap) {
        write!(advice, " Granted only with STRATEGY_COMPACT, which bets on compression.")?;
    }
    Ok(())
}

/// Bytes for a person.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, 0);
        while value >= 1024.0 && unit < 6 {
            value /= 1024.0;
            unit += 1;
        }
        let unit = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][unit];
        if value.fract() == 0.0 { write!(f, "{value} {unit}") } else { write!(f, "{value:.1} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { machine: 8 << 30, budget: 4 << 30, swap: 16 << 30 };

    fn of(num_qubits: u32, copies: u32, expected_ratio: f64) -> Result<Estimate, Error> {
        judge(&Workload { num_qubits, bytes_per_amplitude: 16, copies, expected_ratio }, ROOM)
    }

    #[test]
    fn flags_and_bytes() {
        let e = of(28, 0, 0.0).unwrap(); // 4 GiB
        assert_eq!((e.logical, e.resident, e.swap), (4 << 30, 4 << 30, 0));
        assert!(e.fits_in_budget && e.fits_in_memory && e.fits_with_swap);
        let e = of(29, 1, 0.0).unwrap(); // 8 GiB
        assert_eq!((e.resident, e.swap), (4 << 30, 4 << 30));
        assert!(!e.fits_in_budget && e.fits_in_memory && e.fits_with_swap);
        let e = of(29, 3, 0.0).unwrap(); // 24 GiB
        assert!(!e.fits_in_budget && !e.fits_in_memory && !e.fits_with_swap);
        let e = of(31, 1, 8.0).unwrap(); // 32 GiB / 8
        assert!(e.fits_in_budget);
        assert!(e.advice.as_str().contains("STRATEGY_COMPACT") && e.advice.as_str().contains("32 GiB"), "{}", e.advice);
        assert_eq!(of(60, u32::MAX, 0.0).unwrap().logical, usize::MAX);
    }

    #[test]
    fn advice_ends_in_a_sentence() {
        for n in 1..=60 {
            for ratio in [0.0, 1.0, 2.5, 4.0 / 3.0, 1e300] {
                let e = of(n, 3, ratio).unwrap();
                assert!(e.advice.as_str().ends_with('.'), "{}", e.advice);
            }
        }
    }

    #[test]
    fn bad_numbers_are_refused() {
        for (n, ratio) in [(0, 0.0), (61, 0.0), (20, 0.5), (20, -1.0), (20, f64::NAN), (20, f64::INFINITY)] {
            assert!(of(n, 1, ratio).is_err(), "{n} {ratio}");
        }
        assert!(judge(&Workload { num_qubits: 4, bytes_per_amplitude: 4, copies: 1, expected_ratio: 0.0 }, ROOM).is_err());
    }
}
