//! One look at a chunk before it is compressed with loss: its norm, and whether it looks like amplitudes at all. Whoever keeps an account of
//! errors needs the first; the second keeps bytes that are no amplitudes (indices, counters, flags, text) from being rounded. Called by
//! the pager.
#![forbid(unsafe_code)]

use super::{Element, Width};

/// What a chunk is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survey {
    /// The square of the L2 norm, right to a few parts in 10^12; NaN or infinite if a number is, or it does not fit.
    pub norm_squared: f64,
    /// No number is subnormal, and the norm is finite. Integers below 2^52 and negative ones, read as doubles, are one of these.
    pub ordinary: bool,
}

/// Sums that are kept apart, so that the compiler can add them side by side.
const LANES: usize = 8;

macro_rules! look {
    ($chunk:expr, $float:ty, $bits:ty, $bytes:literal, $mantissa:literal) => {{
        /// Adds what some numbers are; no closure, since one would not be compiled for what its caller is compiled for.
        #[inline(always)]
        fn add(numbers: &[[u8; $bytes]], sums: &mut [f64; LANES], subnormal: &mut [$bits; LANES]) {
            for ((bytes, sum), subnormal) in numbers.iter().zip(sums).zip(subnormal) {
                let bits = <$bits>::from_le_bytes(*bytes);
                let x = f64::from(<$float>::from_bits(bits));
                let plain = bits & (<$bits>::MAX >> 1);
                *sum += x * x;
                *subnormal |= <$bits>::from(plain != 0) & <$bits>::from(plain >> $mantissa == 0);
            }
        }
        let (mut sums, mut subnormal) = ([0.0f64; LANES], [0 as $bits; LANES]);
        let (wholes, rest) = $chunk.as_chunks::<{ $bytes * LANES }>();
        for whole in wholes {
            add(whole.as_chunks::<$bytes>().0, &mut sums, &mut subnormal);
        }
        add(rest.as_chunks::<$bytes>().0, &mut sums, &mut subnormal);
        let norm_squared: f64 = sums.iter().sum();
        // One that is NaN or infinite shows in the sum.
        Survey { norm_squared, ordinary: subnormal.iter().all(|odd| *odd == 0) && norm_squared.is_finite() }
    }};
}

/// Looks at every number of a chunk.
pub fn survey(element: Element, chunk: &[u8]) -> Survey {
    super::passes::survey(element, chunk)
}

/// As [`survey`], for `passes` to compile twice.
#[inline(always)]
pub fn look(element: Element, chunk: &[u8]) -> Survey {
    match element.width() {
        Width::Double => look!(chunk, f64, u64, 8, 52),
        Width::Single => look!(chunk, f32, u32, 4, 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(numbers: &[f64], width: Width) -> Vec<u8> {
        match width {
            Width::Double => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Width::Single => numbers.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        }
    }

    #[test]
    fn every_number_is_looked_at() {
        for element in [Element::F64, Element::F32] {
            for len in [0usize, 1, 7, 8, 9, 64, 1000] {
                let plain: Vec<f64> = (0..len).map(|i| (i as f64 - 3.0) * 0.125 + 0.0625).collect();
                let found = survey(element, &bytes(&plain, element.width()));
                let want: f64 = plain.iter().map(|x| x * x).sum();
                assert!((found.norm_squared - want).abs() <= 1e-12 * want && found.ordinary, "{len}");
                for at in 0..len.min(20) {
                    for (odd, ordinary) in [(f64::NAN, false), (f64::NEG_INFINITY, false), (-0.0, true), (0.0, true)] {
                        let mut numbers = plain.clone();
                        numbers[at] = odd;
                        let found = survey(element, &bytes(&numbers, element.width()));
                        assert_eq!(found.ordinary, ordinary, "{odd} at {at} of {len}");
                        assert_eq!(found.norm_squared.is_finite(), odd.is_finite());
                    }
                }
            }
        }
    }

    #[test]
    fn integers_are_no_amplitudes() {
        for number in [1u64, 4096, 1 << 40, (1 << 52) - 1, u64::MAX, -5i64 as u64] {
            let mut chunk = bytes(&[0.5; 100], Width::Double);
            chunk[8 * 57..8 * 58].copy_from_slice(&number.to_le_bytes());
            assert!(!survey(Element::C128, &chunk).ordinary, "{number}");
        }
        for number in [1u32, 70_000, (1 << 23) - 1, u32::MAX, -5i32 as u32] {
            let mut chunk = bytes(&[0.5; 100], Width::Single);
            chunk[4 * 99..].copy_from_slice(&number.to_le_bytes());
            assert!(!survey(Element::C64, &chunk).ordinary, "{number}");
        }
    }
}
