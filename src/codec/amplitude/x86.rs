//! The quantiser's inner loops in AVX2 and AVX-512, chosen when the program runs. Called by `kernel`, whose scalar loops say what
//! these must give. Every load and store is of a fixed-size array inside a slice.

use super::Width;
use super::kernel::{Tally, dequantise_scalar, quantise_scalar};
use core::arch::x86_64::*;
use std::is_x86_feature_detected as has;

/// Numbers of singles whose squares are summed in single precision before they go to the total: few enough for five digits.
const SUBTOTAL: usize = 512;

/// None on a machine without AVX2.
pub fn quantise(width: Width, bytes: &[u8], step: f64, codes: &mut [i16]) -> Option<Tally> {
    // SAFETY: each function is called on machines that have what it is compiled for.
    let (done, tally) = unsafe {
        match width {
            Width::Double if wide() => quantise_f64_avx512(bytes, step, codes),
            Width::Double if has!("avx2") => quantise_f64_avx2(bytes, step, codes),
            Width::Single if has!("avx2") => quantise_f32_avx2(bytes, step as f32, codes),
            _ => return None,
        }
    };
    let rest = bytes.get(done * width.bytes()..)?;
    Some(tally.plus(quantise_scalar(width, rest, step, codes.get_mut(done..)?)))
}

/// False on a machine without AVX2.
pub fn dequantise(width: Width, codes: &[i16], step: f64, bytes: &mut [u8]) -> bool {
    // SAFETY: each function is called on machines that have what it is compiled for.
    let done = unsafe {
        match width {
            Width::Double if wide() => dequantise_f64_avx512(codes, step, bytes),
            Width::Double if has!("avx2") => dequantise_f64_avx2(codes, step, bytes),
            Width::Single if has!("avx2") => dequantise_f32_avx2(codes, step as f32, bytes),
            _ => return false,
        }
    };
    if let (Some(codes), Some(bytes)) = (codes.get(done..), bytes.get_mut(done * width.bytes()..)) {
        dequantise_scalar(width, codes, step, bytes);
    }
    true
}

fn wide() -> bool {
    has!("avx512f") && has!("avx512vl")
}

#[target_feature(enable = "avx2")]
fn load_pd(bytes: &[u8; 32]) -> __m256d {
    // SAFETY: 32 bytes are there; an unaligned load.
    unsafe { _mm256_loadu_pd(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load_ps(bytes: &[u8; 32]) -> __m256 {
    // SAFETY: 32 bytes are there; an unaligned load.
    unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store_codes(to: &mut [i16; 8], codes: __m128i) {
    // SAFETY: room for 16 bytes; an unaligned store.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), codes) };
}

/// Smallest and largest of eight codes.
#[target_feature(enable = "avx2")]
fn extremes(min: __m128i, max: __m128i) -> (i16, i16) {
    let (mut low, mut high) = ([0i16; 8], [0i16; 8]);
    store_codes(&mut low, min);
    store_codes(&mut high, max);
    (low.into_iter().fold(i16::MAX, i16::min), high.into_iter().fold(i16::MIN, i16::max))
}

#[target_feature(enable = "avx2")]
fn total(sum: __m256d) -> f64 {
    let half = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd::<1>(sum));
    _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)))
}

/// Is any bit set but a sign?
#[target_feature(enable = "avx2")]
fn any_pd(bits: __m256d) -> bool {
    let magnitude = _mm256_castpd_si256(_mm256_andnot_pd(_mm256_set1_pd(-0.0), bits));
    _mm256_testz_si256(magnitude, magnitude) == 0
}

#[target_feature(enable = "avx2")]
fn quantise_f64_avx2(bytes: &[u8], step: f64, codes: &mut [i16]) -> (usize, Tally) {
    let (steps, inverse) = (_mm256_set1_pd(step), _mm256_set1_pd(1.0 / step));
    let (mut sums, mut errors) = ([_mm256_setzero_pd(); 2], _mm256_setzero_pd());
    let (mut min, mut max) = (_mm_set1_epi16(i16::MAX), _mm_set1_epi16(i16::MIN));
    let mut done = 0;
    for (bytes, to) in bytes.as_chunks::<64>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
        let mut whole = [_mm_setzero_si128(); 2];
        for ((part, sum), whole) in bytes.as_chunks::<32>().0.iter().zip(&mut sums).zip(&mut whole) {
            let x = load_pd(part);
            *whole = _mm256_cvtpd_epi32(_mm256_mul_pd(x, inverse));
            let error = _mm256_sub_pd(x, _mm256_mul_pd(_mm256_cvtepi32_pd(*whole), steps));
            errors = _mm256_or_pd(errors, error);
            let relative = _mm256_mul_pd(error, inverse);
            *sum = _mm256_add_pd(*sum, _mm256_mul_pd(relative, relative));
        }
        let [low, high] = whole;
        let packed = _mm_packs_epi32(low, high);
        min = _mm_min_epi16(min, packed);
        max = _mm_max_epi16(max, packed);
        store_codes(to, packed);
        done += 8;
    }
    let [a, b] = sums;
    let (min, max) = extremes(min, max);
    (done, Tally { sum: total(_mm256_add_pd(a, b)), inexact: any_pd(errors), min, max })
}

#[target_feature(enable = "avx2")]
fn quantise_f32_avx2(bytes: &[u8], step: f32, codes: &mut [i16]) -> (usize, Tally) {
    let (steps, inverse) = (_mm256_set1_ps(step), _mm256_set1_ps(1.0 / step));
    let (mut sum, mut errors) = (_mm256_setzero_pd(), _mm256_setzero_ps());
    let (mut min, mut max) = (_mm_set1_epi16(i16::MAX), _mm_set1_epi16(i16::MIN));
    let mut done = 0;
    for (bytes, codes) in bytes.chunks(SUBTOTAL * 4).zip(codes.chunks_mut(SUBTOTAL)) {
        let mut part = _mm256_setzero_ps();
        for (bytes, to) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
            let x = load_ps(bytes);
            let whole = _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse));
            let error = _mm256_sub_ps(x, _mm256_mul_ps(_mm256_cvtepi32_ps(whole), steps));
            errors = _mm256_or_ps(errors, error);
            let relative = _mm256_mul_ps(error, inverse);
            part = _mm256_add_ps(part, _mm256_mul_ps(relative, relative));
            let packed = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
            min = _mm_min_epi16(min, packed);
            max = _mm_max_epi16(max, packed);
            store_codes(to, packed);
            done += 8;
        }
        let halves = (_mm256_castps256_ps128(part), _mm256_extractf128_ps::<1>(part));
        sum = _mm256_add_pd(sum, _mm256_add_pd(_mm256_cvtps_pd(halves.0), _mm256_cvtps_pd(halves.1)));
    }
    let magnitude = _mm256_castps_si256(_mm256_andnot_ps(_mm256_set1_ps(-0.0), errors));
    let (min, max) = extremes(min, max);
    (done, Tally { sum: total(sum), inexact: _mm256_testz_si256(magnitude, magnitude) == 0, min, max })
}

#[target_feature(enable = "avx512f,avx512vl,avx2")]
fn quantise_f64_avx512(bytes: &[u8], step: f64, codes: &mut [i16]) -> (usize, Tally) {
    let (steps, inverse) = (_mm512_set1_pd(step), _mm512_set1_pd(1.0 / step));
    let (mut sum, mut errors) = (_mm512_setzero_pd(), _mm512_setzero_si512());
    let (mut min, mut max) = (_mm_set1_epi16(i16::MAX), _mm_set1_epi16(i16::MIN));
    let mut done = 0;
    for (bytes, to) in bytes.as_chunks::<64>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
        // SAFETY: 64 bytes are there; an unaligned load.
        let x = unsafe { _mm512_loadu_pd(bytes.as_ptr().cast()) };
        let whole = _mm512_cvtpd_epi32(_mm512_mul_pd(x, inverse));
        let error = _mm512_sub_pd(x, _mm512_mul_pd(_mm512_cvtepi32_pd(whole), steps));
        errors = _mm512_or_si512(errors, _mm512_castpd_si512(error));
        let relative = _mm512_mul_pd(error, inverse);
        sum = _mm512_add_pd(sum, _mm512_mul_pd(relative, relative));
        let packed = _mm256_cvtsepi32_epi16(whole);
        min = _mm_min_epi16(min, packed);
        max = _mm_max_epi16(max, packed);
        store_codes(to, packed);
        done += 8;
    }
    let inexact = _mm512_test_epi64_mask(errors, _mm512_set1_epi64(i64::MAX)) != 0;
    let (min, max) = extremes(min, max);
    (done, Tally { sum: _mm512_reduce_add_pd(sum), inexact, min, max })
}

#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i16; 8]) -> __m256i {
    // SAFETY: 16 bytes are there; an unaligned load.
    _mm256_cvtepi16_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
fn dequantise_f64_avx2(codes: &[i16], step: f64, bytes: &mut [u8]) -> usize {
    let steps = _mm256_set1_pd(step);
    let mut done = 0;
    for (codes, to) in codes.as_chunks::<8>().0.iter().zip(bytes.as_chunks_mut::<64>().0) {
        let whole = load_codes(codes);
        let low = _mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(whole)), steps);
        let high = _mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256::<1>(whole)), steps);
        // SAFETY: room for 64 bytes; unaligned stores.
        unsafe {
            _mm256_storeu_pd(to.as_mut_ptr().cast(), low);
            _mm256_storeu_pd(to.as_mut_ptr().cast::<f64>().add(4), high);
        }
        done += 8;
    }
    done
}

#[target_feature(enable = "avx2")]
fn dequantise_f32_avx2(codes: &[i16], step: f32, bytes: &mut [u8]) -> usize {
    let steps = _mm256_set1_ps(step);
    let mut done = 0;
    for (codes, to) in codes.as_chunks::<8>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        let numbers = _mm256_mul_ps(_mm256_cvtepi32_ps(load_codes(codes)), steps);
        // SAFETY: room for 32 bytes; an unaligned store.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr().cast(), numbers) };
        done += 8;
    }
    done
}

#[target_feature(enable = "avx512f,avx512vl,avx2")]
fn dequantise_f64_avx512(codes: &[i16], step: f64, bytes: &mut [u8]) -> usize {
    let steps = _mm512_set1_pd(step);
    let mut done = 0;
    for (codes, to) in codes.as_chunks::<8>().0.iter().zip(bytes.as_chunks_mut::<64>().0) {
        let numbers = _mm512_mul_pd(_mm512_cvtepi32_pd(load_codes(codes)), steps);
        // SAFETY: room for 64 bytes; an unaligned store.
        unsafe { _mm512_storeu_pd(to.as_mut_ptr().cast(), numbers) };
        done += 8;
    }
    done
}
