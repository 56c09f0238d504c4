//! The quantiser's two inner loops: numbers to multiples of a step, with the error made, and back. Picks the widest instructions
//! that the machine has; the scalar loops are the definition, and what the others are tested against. Called by the amplitude
//! codec only; knows nothing of blobs.
#![forbid(unsafe_code)]

use super::Width;

/// What quantising some numbers came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally {
    /// Sum of the squared errors, in squares of the step; NaN or infinite if a number was, or was far out of reach.
    pub sum: f64,
    /// Not every number is exactly its code times the step.
    pub inexact: bool,
    /// The smallest code, saturated.
    pub min: i16,
    /// The largest code, saturated.
    pub max: i16,
}

impl Tally {
    pub(super) const NONE: Self = Self { sum: 0.0, inexact: false, min: i16::MAX, max: i16::MIN };

    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            inexact: self.inexact | other.inexact,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

/// The number at an index.
pub fn number(width: Width, bytes: &[u8], index: usize) -> Option<f64> {
    match width {
        Width::Double => Some(f64::from_le_bytes(*bytes.get(index * 8..)?.first_chunk()?)),
        Width::Single => Some(f64::from(f32::from_le_bytes(*bytes.get(index * 4..)?.first_chunk()?))),
    }
}

/// The code of one number, not saturated; None if it does not fit 32 bits.
pub fn code(width: Width, x: f64, step: f64) -> Option<i32> {
    let k = match width {
        Width::Double => (x * (1.0 / step)).round_ties_even(),
        Width::Single => f64::from((x as f32 * (1.0 / step as f32)).round_ties_even()),
    };
    (k.abs() < f64::from(1 << 30)).then_some(k as i32)
}

/// Writes a number: its code times the step.
pub fn put(width: Width, bytes: &mut [u8], index: usize, code: i32, step: f64) -> Option<()> {
    match width {
        Width::Double => *bytes.get_mut(index * 8..)?.first_chunk_mut()? = (f64::from(code) * step).to_le_bytes(),
        Width::Single => *bytes.get_mut(index * 4..)?.first_chunk_mut()? = (code as f32 * step as f32).to_le_bytes(),
    }
    Some(())
}

/// Codes of little-endian numbers: each the nearest multiple of `step`, ties to even, saturated to 16 bits. `codes` has as many
/// places as `bytes` has numbers.
pub fn quantise(width: Width, bytes: &[u8], step: f64, codes: &mut [i16]) -> Tally {
    #[cfg(target_arch = "x86_64")]
    if let Some(tally) = super::x86::quantise(width, bytes, step, codes) {
        return tally;
    }
    #[cfg(target_arch = "aarch64")]
    if width == Width::Double {
        return super::neon::quantise_f64(bytes, step, codes);
    }
    quantise_scalar(width, bytes, step, codes)
}

/// Numbers from codes, the inverse of [`quantise`] where that was exact.
pub fn dequantise(width: Width, codes: &[i16], step: f64, bytes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if super::x86::dequantise(width, codes, step, bytes) {
        return;
    }
    #[cfg(target_arch = "aarch64")]
    if width == Width::Double {
        return super::neon::dequantise_f64(codes, step, bytes);
    }
    dequantise_scalar(width, codes, step, bytes);
}

/// The definition of [`quantise`].
pub fn quantise_scalar(width: Width, bytes: &[u8], step: f64, codes: &mut [i16]) -> Tally {
    let mut tally = Tally::NONE;
    let mut add = |code: i16, error: f64, in_steps: f64| {
        tally.sum += in_steps * in_steps;
        tally.inexact |= error != 0.0;
        tally.min = tally.min.min(code);
        tally.max = tally.max.max(code);
        code
    };
    match width {
        Width::Double => {
            let inverse = 1.0 / step;
            for (bytes, code) in bytes.as_chunks::<8>().0.iter().zip(codes) {
                let x = f64::from_le_bytes(*bytes);
                let k = (x * inverse).round_ties_even();
                let error = x - k * step;
                *code = add(k as i16, error, error * inverse);
            }
        }
        Width::Single => {
            let (step, inverse) = (step as f32, 1.0 / step as f32);
            for (bytes, code) in bytes.as_chunks::<4>().0.iter().zip(codes) {
                let x = f32::from_le_bytes(*bytes);
                let k = (x * inverse).round_ties_even();
                let error = x - k * step;
                *code = add(k as i16, f64::from(error), f64::from(error * inverse));
            }
        }
    }
    tally
}

/// The definition of [`dequantise`].
pub fn dequantise_scalar(width: Width, codes: &[i16], step: f64, bytes: &mut [u8]) {
    match width {
        Width::Double => {
            for (bytes, code) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(codes) {
                *bytes = (f64::from(*code) * step).to_le_bytes();
            }
        }
        Width::Single => {
            for (bytes, code) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
                *bytes = (f32::from(*code) * step as f32).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64) -> f64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }

    fn check(width: Width, numbers: &[f64], step: f64) {
        let bytes: Vec<u8> = match width {
            Width::Double => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Width::Single => numbers.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        };
        let (mut codes, mut plain) = (vec![0; numbers.len()], vec![0; numbers.len()]);
        let tally = quantise(width, &bytes, step, &mut codes);
        let want = quantise_scalar(width, &bytes, step, &mut plain);
        assert!(codes == plain, "codes of {} numbers, step {step}", numbers.len());
        assert_eq!((tally.inexact, tally.min, tally.max), (want.inexact, want.min, want.max));
        let near = (tally.sum - want.sum).abs() <= want.sum.abs() * 1e-5;
        assert!(near || want.sum.is_nan() && tally.sum.is_nan(), "{} is not {}", tally.sum, want.sum);
        let (mut back, mut plain) = (vec![1; bytes.len()], vec![2; bytes.len()]);
        dequantise(width, &codes, step, &mut back);
        dequantise_scalar(width, &codes, step, &mut plain);
        assert!(back == plain, "numbers of codes");
        if !want.inexact && want.min > i16::MIN && want.max < i16::MAX {
            let differ = (0..numbers.len()).find(|i| number(width, &back, *i) != number(width, &bytes, *i));
            assert_eq!(differ, None, "exact codes give the numbers back");
        }
    }

    #[test]
    fn wide_loops_agree_with_the_scalar_ones() {
        let mut seed = 1;
        for width in [Width::Double, Width::Single] {
            for len in (0..70).chain([255, 256, 1000, 8191]) {
                for step in [0.0078125, 0.01171875, 3.0517578125e-5, 1.5] {
                    let numbers: Vec<f64> = (0..len).map(|_| random(&mut seed) * 2.0).collect();
                    check(width, &numbers, step);
                    let on_grid: Vec<f64> = numbers.iter().map(|x| (x / step).round() * step).collect();
                    check(width, &on_grid, step);
                }
            }
            // Half-way points go to the even neighbour everywhere; what saturates, saturates the same way.
            check(width, &[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5, 32766.5, -32768.5, 40000.0, -40000.0, -0.0], 1.0);
        }
    }

    #[test]
    fn what_is_no_number_shows_in_the_sum() {
        for width in [Width::Double, Width::Single] {
            for at in [0, 5, 16, 33] {
                for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    let numbers: Vec<f64> = (0..40).map(|i| if i == at { odd } else { f64::from(i) }).collect();
                    let bytes: Vec<u8> = match width {
                        Width::Double => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
                        Width::Single => numbers.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
                    };
                    for tally in [quantise(width, &bytes, 0.5, &mut [0; 40]), quantise_scalar(width, &bytes, 0.5, &mut [0; 40])] {
                        assert!(!tally.sum.is_finite(), "{odd} at {at} in {width:?}");
                    }
                }
            }
        }
    }
}
