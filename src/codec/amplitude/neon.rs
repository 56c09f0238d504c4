//! The quantiser's inner loops for doubles in NEON, which every aarch64 has. Called by `kernel`, whose scalar loops say what these
//! must give.

use super::Width;
use super::kernel::{Tally, dequantise_scalar, quantise_scalar};
use core::arch::aarch64::*;

/// As `kernel::quantise` for doubles.
pub fn quantise_f64(bytes: &[u8], step: f64, codes: &mut [i16]) -> Tally {
    // SAFETY: every aarch64 that Rust's standard library runs on has NEON.
    unsafe { quantise(bytes, step, codes) }
}

/// As `kernel::dequantise` for doubles.
pub fn dequantise_f64(codes: &[i16], step: f64, bytes: &mut [u8]) {
    // SAFETY: as above.
    unsafe { dequantise(codes, step, bytes) }
}

#[target_feature(enable = "neon")]
fn quantise(bytes: &[u8], step: f64, codes: &mut [i16]) -> Tally {
    let (steps, inverse) = (vdupq_n_f64(step), vdupq_n_f64(1.0 / step));
    let (mut sum, mut errors) = (vdupq_n_f64(0.0), vdupq_n_u64(0));
    let (mut min, mut max, mut done) = (i16::MAX, i16::MIN, 0);
    for (bytes, to) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<4>().0) {
        let mut whole = [vdup_n_s32(0); 2];
        for (part, whole) in bytes.as_chunks::<16>().0.iter().zip(&mut whole) {
            // SAFETY: 16 bytes are there; the load wants no alignment.
            let x = unsafe { vld1q_f64(part.as_ptr().cast()) };
            let rounded = vrndnq_f64(vmulq_f64(x, inverse));
            let error = vsubq_f64(x, vmulq_f64(rounded, steps));
            errors = vorrq_u64(errors, vreinterpretq_u64_f64(error));
            let relative = vmulq_f64(error, inverse);
            sum = vaddq_f64(sum, vmulq_f64(relative, relative));
            *whole = vqmovn_s64(vcvtq_s64_f64(rounded));
        }
        let [low, high] = whole;
        let packed = vqmovn_s32(vcombine_s32(low, high));
        min = min.min(vminv_s16(packed));
        max = max.max(vmaxv_s16(packed));
        // SAFETY: room for four codes; the store wants no alignment.
        unsafe { vst1_s16(to.as_mut_ptr(), packed) };
        done += 4;
    }
    let bits = vgetq_lane_u64::<0>(errors) | vgetq_lane_u64::<1>(errors);
    let wide = Tally { sum: vaddvq_f64(sum), inexact: bits << 1 != 0, min, max };
    let (_, rest) = bytes.split_at(done * 8);
    let (_, codes) = codes.split_at_mut(done);
    wide.plus(quantise_scalar(Width::Double, rest, step, codes))
}

#[target_feature(enable = "neon")]
fn dequantise(codes: &[i16], step: f64, bytes: &mut [u8]) {
    let steps = vdupq_n_f64(step);
    let mut done = 0;
    for (codes, to) in codes.as_chunks::<4>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        // SAFETY: four codes are there; the load wants no alignment.
        let whole = vmovl_s16(unsafe { vld1_s16(codes.as_ptr()) });
        let low = vmulq_f64(vcvtq_f64_s64(vmovl_s32(vget_low_s32(whole))), steps);
        let high = vmulq_f64(vcvtq_f64_s64(vmovl_high_s32(whole)), steps);
        // SAFETY: room for 32 bytes; the stores want no alignment.
        unsafe {
            vst1q_f64(to.as_mut_ptr().cast(), low);
            vst1q_f64(to.as_mut_ptr().cast::<f64>().add(2), high);
        }
        done += 4;
    }
    let (_, codes) = codes.split_at(done);
    let (_, bytes) = bytes.split_at_mut(done * 8);
    dequantise_scalar(Width::Double, codes, step, bytes);
}
