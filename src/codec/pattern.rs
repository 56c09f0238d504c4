//! Chunks that repeat a short pattern: zeros, constants, uniform superpositions, and what gates on low qubits make of them.
//! Found and rebuilt at memory speed, stored in one period's bytes.

use super::stream;

/// Periods found: powers of two from one complex amplitude to one page.
pub const MIN_PERIOD: usize = 16;
/// The longest.
pub const MAX_PERIOD: usize = 4096;

/// The smallest period (a power of two in `MIN_PERIOD..=MAX_PERIOD`) that `bytes` repeats with, if any.
/// `bytes.len()` is a multiple of `MAX_PERIOD`.
pub fn period(bytes: &[u8]) -> Option<usize> {
    let shifted = bytes.get(MAX_PERIOD..)?;
    if shifted.is_empty() || !bytes.len().is_multiple_of(MAX_PERIOD) {
        return None;
    }
    // Equal to itself one longest period on: slices compare by memcmp, which stops at the first difference.
    if bytes.get(..shifted.len())? != shifted {
        return None;
    }
    let mut period = MAX_PERIOD;
    while period > MIN_PERIOD {
        let half = period / 2;
        if bytes.get(..half)? != bytes.get(half..period)? {
            break;
        }
        period = half;
    }
    Some(period)
}

/// Are these bytes all zero?
pub fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: any eight bytes are a valid u64; align_to only yields aligned ones.
    let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
    head.iter().chain(tail).all(|b| *b == 0) && words.iter().all(|w| *w == 0)
}

/// Fills `out` with repetitions of `pattern`. `pattern.len()` is a power of two that divides `out.len()`.
pub fn repeat(pattern: &[u8], out: &mut [u8]) {
    // One page of repetitions first, so that the copies below are long whatever the period.
    let mut page = [0u8; MAX_PERIOD];
    if pattern.is_empty() || pattern.len() > MAX_PERIOD {
        return;
    }
    for part in page.chunks_exact_mut(pattern.len()) {
        part.copy_from_slice(pattern);
    }
    stream::repeat(&page, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, literally.
    fn naive(bytes: &[u8]) -> Option<usize> {
        let mut p = MIN_PERIOD;
        while p <= MAX_PERIOD {
            if (p..bytes.len()).all(|i| bytes[i] == bytes[i - p]) {
                return Some(p);
            }
            p *= 2;
        }
        None
    }

    #[test]
    fn finds_the_smallest_period() {
        let mut seed = 1u64;
        for case in 0..200 {
            let want = MIN_PERIOD << (case % 9);
            let mut bytes = vec![0u8; 16 * MAX_PERIOD];
            for i in 0..bytes.len() {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bytes[i] = if i < want { (seed >> 33) as u8 } else { bytes[i - want] };
            }
            if case % 3 == 0 {
                let at = (seed as usize >> 7) % bytes.len();
                bytes[at] ^= 1 << (case % 8); // one odd bit anywhere must be seen
            }
            assert_eq!(period(&bytes), naive(&bytes), "case {case}");
            if let Some(p) = period(&bytes) {
                let mut again = vec![0xAA; bytes.len()];
                repeat(&bytes[..p], &mut again);
                assert!(again == bytes);
            }
        }
    }

    #[test]
    fn zero_is_zero() {
        let mut bytes = vec![0u8; 65536];
        assert!(is_zero(&bytes) && period(&bytes) == Some(MIN_PERIOD));
        for at in [0, 1, 777, 65535] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
    }
}
