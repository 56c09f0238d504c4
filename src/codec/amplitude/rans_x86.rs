//! The entropy coder's inner loops in AVX2 and AVX-512, chosen when the program runs: eight or sixteen states at a time, with the same
//! words in the same order as the scalar ones, which are the definition. Called by `rans` only.

use super::rans::{Decoder, LANES};
use core::arch::x86_64::*;
use std::is_x86_feature_detected as has;

/// Bytes of words that a round over all states may look at: as many as it can take, and a vector beyond.
const AHEAD: usize = LANES * 2 + 32;

/// For each set of lanes that want a word: the number of the word for each lane.
static PLACES: [[u8; 8]; 256] = {
    let mut places = [[0u8; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 != 0 {
                places[set][lane] = next;
                next += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    places
};

/// The same the other way: which lane each of eight words comes from if those of a set are moved to the end.
static SOURCES: [[u8; 8]; 256] = {
    let mut sources = [[0u8; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut next) = (8, 8);
        while lane > 0 {
            lane -= 1;
            if set >> lane & 1 != 0 {
                next -= 1;
                sources[set][next] = lane as u8;
            }
        }
        set += 1;
    }
    sources
};

/// States that are worked on at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One: these loops do nothing.
    One,
    /// AVX2.
    Eight,
    /// AVX-512.
    Sixteen,
}

impl Reach {
    /// Every one of this machine.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::One, Self::Eight, Self::Sixteen].into_iter().filter(|reach| *reach as u8 <= Self::best() as u8)
    }

    /// The widest of this machine.
    pub fn best() -> Self {
        if !has!("avx2") || !has!("popcnt") {
            Self::One
        } else if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
            Self::Sixteen
        } else {
            Self::Eight
        }
    }
}

/// Encodes whole rounds, last one first, while there is room before `at`; how many that were. `reach` is at most the machine's best.
pub fn encode(
    reach: Reach,
    groups: &[[u8; LANES]],
    states: &mut [u32; LANES],
    frequencies: &[u16; 256],
    body: &mut [u8],
    at: &mut usize,
) -> usize {
    let mut start = 0;
    let table: [u32; 256] = frequencies.map(|f| {
        let entry = u32::from(f) | start << 16;
        start += u32::from(f);
        entry
    });
    // SAFETY: the machine has what each is compiled for.
    unsafe {
        match reach {
            Reach::One => 0,
            Reach::Eight => encode_avx2(groups, states, &table, body, at),
            Reach::Sixteen => encode_avx512(groups, states, &table, body, at),
        }
    }
}

/// Encodes eight symbols into eight states; the words go before `at`, where `body` has AHEAD bytes.
#[target_feature(enable = "avx2,popcnt")]
fn push(symbols: &[u8; 8], state: &mut __m256i, table: &[u32; 256], body: &mut [u8], at: &mut usize) {
    // SAFETY: eight bytes are there.
    let symbols = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(symbols.as_ptr().cast()) });
    // SAFETY: a symbol is below 256, the length of the table.
    let entries = unsafe { _mm256_i32gather_epi32::<4>(table.as_ptr().cast(), symbols) };
    let low = _mm256_set1_epi32(0xFFFF);
    let (frequency, start) = (_mm256_and_si256(entries, low), _mm256_srli_epi32::<16>(entries));
    // Full: x >= f << 20, without a sign in the way.
    let fits = _mm256_cmpgt_epi32(frequency, _mm256_srli_epi32::<20>(*state));
    let set = !_mm256_movemask_ps(_mm256_castsi256_ps(fits)) as usize & 255;
    // SAFETY: set is below 256; eight bytes are there.
    let sources = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(SOURCES.as_ptr().add(set).cast())) };
    let words = _mm256_permutevar8x32_epi32(_mm256_and_si256(*state, low), sources);
    let words = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    // SAFETY: the caller saw to it that AHEAD bytes are before the round's `at`, and a round takes at most LANES * 2 of them.
    unsafe { _mm_storeu_si128(body.as_mut_ptr().add(*at - 16).cast(), words) };
    *at -= 2 * set.count_ones() as usize;
    let x = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(*state), *state, fits);
    // x / f in floating point, made a little too small: at most one below the quotient, which is below 2^20.
    let halves = (_mm256_cvtepi32_ps(_mm256_srli_epi32::<16>(x)), _mm256_cvtepi32_ps(_mm256_and_si256(x, low)));
    let whole = _mm256_add_ps(_mm256_mul_ps(halves.0, _mm256_set1_ps(65536.0)), halves.1);
    let less = _mm256_mul_ps(whole, _mm256_set1_ps(1.0 - 1.0 / (1 << 22) as f32));
    let quotient = _mm256_cvttps_epi32(_mm256_div_ps(less, _mm256_cvtepi32_ps(frequency)));
    let rest = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, frequency));
    let right = _mm256_cmpgt_epi32(frequency, rest); // all ones where it is; else one more
    let quotient = _mm256_add_epi32(quotient, _mm256_andnot_si256(right, _mm256_set1_epi32(1)));
    let rest = _mm256_sub_epi32(rest, _mm256_andnot_si256(right, frequency));
    *state = _mm256_add_epi32(_mm256_slli_epi32::<12>(quotient), _mm256_add_epi32(rest, start));
}

#[target_feature(enable = "avx2,popcnt")]
fn encode_avx2(groups: &[[u8; LANES]], states: &mut [u32; LANES], table: &[u32; 256], body: &mut [u8], at: &mut usize) -> usize {
    // SAFETY: 32 states are four vectors of eight; unaligned loads.
    let mut vectors: [__m256i; 4] =
        core::array::from_fn(|i| unsafe { _mm256_loadu_si256(states.as_ptr().cast::<__m256i>().add(i)) });
    let mut done = 0;
    for group in groups.iter().rev() {
        if *at < AHEAD || *at > body.len() {
            break;
        }
        for (eight, vector) in group.as_chunks::<8>().0.iter().zip(&mut vectors).rev() {
            push(eight, vector, table, body, at);
        }
        done += 1;
    }
    for (i, vector) in vectors.iter().enumerate() {
        // SAFETY: as the loads above.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().cast::<__m256i>().add(i), *vector) };
    }
    done
}

/// As [`push`] for sixteen states.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn push_wide(symbols: &[u8; 16], state: &mut __m512i, table: &[u32; 256], body: &mut [u8], at: &mut usize) {
    // SAFETY: sixteen bytes are there.
    let symbols = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(symbols.as_ptr().cast()) });
    // SAFETY: a symbol is below 256, the length of the table.
    let entries = unsafe { _mm512_i32gather_epi32::<4>(symbols, table.as_ptr().cast()) };
    let (frequency, start) = (_mm512_and_si512(entries, _mm512_set1_epi32(0xFFFF)), _mm512_srli_epi32::<16>(entries));
    // Full: x >= f << 20.
    let full = _mm512_cmple_epu32_mask(frequency, _mm512_srli_epi32::<20>(*state));
    let words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, *state));
    *at -= 2 * full.count_ones() as usize;
    let taken = ((1u32 << full.count_ones()) - 1) as u16;
    // SAFETY: only the words that were taken are written, below the old `at`; the caller saw to it that there is room for them.
    unsafe { _mm256_mask_storeu_epi16(body.as_mut_ptr().add(*at).cast(), taken, words) };
    let x = _mm512_mask_srli_epi32::<16>(*state, full, *state);
    let less = _mm512_mul_ps(_mm512_cvtepu32_ps(x), _mm512_set1_ps(1.0 - 1.0 / (1 << 22) as f32));
    let quotient = _mm512_cvttps_epi32(_mm512_div_ps(less, _mm512_cvtepi32_ps(frequency)));
    let rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
    let off = _mm512_cmpge_epu32_mask(rest, frequency); // one more goes in
    let quotient = _mm512_mask_add_epi32(quotient, off, quotient, _mm512_set1_epi32(1));
    let rest = _mm512_mask_sub_epi32(rest, off, rest, frequency);
    *state = _mm512_add_epi32(_mm512_slli_epi32::<12>(quotient), _mm512_add_epi32(rest, start));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn encode_avx512(
    groups: &[[u8; LANES]],
    states: &mut [u32; LANES],
    table: &[u32; 256],
    body: &mut [u8],
    at: &mut usize,
) -> usize {
    // SAFETY: 32 states are two vectors of sixteen; unaligned loads.
    let mut vectors: [__m512i; 2] = core::array::from_fn(|i| unsafe { _mm512_loadu_si512(states.as_ptr().add(16 * i).cast()) });
    let mut done = 0;
    for group in groups.iter().rev() {
        if *at < AHEAD || *at > body.len() {
            break;
        }
        for (symbols, vector) in group.as_chunks::<16>().0.iter().zip(&mut vectors).rev() {
            push_wide(symbols, vector, table, body, at);
        }
        done += 1;
    }
    for (i, vector) in vectors.iter().enumerate() {
        // SAFETY: as the loads above.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().add(16 * i).cast(), *vector) };
    }
    done
}

/// Decodes whole rounds while enough words are left; how many symbols that gave. `reach` is at most the machine's best.
pub fn decode(reach: Reach, decoder: &mut Decoder, out: &mut [u8]) -> usize {
    // SAFETY: the machine has what each is compiled for.
    unsafe {
        match reach {
            Reach::One => 0,
            Reach::Eight => decode_avx2(decoder, out),
            Reach::Sixteen => decode_avx512(decoder, out),
        }
    }
}

/// One step of eight states. `words` are looked at from `at` on, 16 bytes of them; `at` moves by what was taken.
#[target_feature(enable = "avx2,popcnt")]
fn step(decoder: &Decoder, state: &mut __m256i, words: &[u8], at: &mut usize) -> __m256i {
    let twelve = _mm256_set1_epi32(4095);
    let slots = _mm256_and_si256(*state, twelve);
    // SAFETY: slots are below 4096, the length of the table.
    let entries = unsafe { _mm256_i32gather_epi32::<4>(decoder.table.as_ptr().cast(), slots) };
    let frequency = _mm256_and_si256(entries, twelve);
    let offset = _mm256_and_si256(_mm256_srli_epi32::<12>(entries), twelve);
    let x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32::<12>(*state)), offset);
    let short = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(x), _mm256_setzero_si256());
    let set = _mm256_movemask_ps(_mm256_castsi256_ps(short)) as usize;
    // SAFETY: the caller saw to it that AHEAD bytes follow the round's first word, of which a round takes at most LANES * 2.
    let next = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(words.as_ptr().add(*at).cast())) };
    // SAFETY: set is below 256; eight bytes are there.
    let places = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(PLACES.as_ptr().add(set).cast())) };
    let filled = _mm256_or_si256(_mm256_slli_epi32::<16>(x), _mm256_permutevar8x32_epi32(next, places));
    *state = _mm256_blendv_epi8(x, filled, short);
    *at += 2 * set.count_ones() as usize;
    _mm256_srli_epi32::<24>(entries)
}

#[target_feature(enable = "avx2,popcnt")]
fn decode_avx2(decoder: &mut Decoder, out: &mut [u8]) -> usize {
    // SAFETY: 32 states are four vectors of eight; unaligned loads.
    let mut states: [__m256i; 4] =
        core::array::from_fn(|i| unsafe { _mm256_loadu_si256(decoder.states.as_ptr().cast::<__m256i>().add(i)) });
    let words = decoder.words;
    let (mut at, mut done) = (0, 0);
    // Packing works on halves: it gives the first fours of all vectors, then the second ones.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for to in out.as_chunks_mut::<LANES>().0 {
        if words.len() - at < AHEAD {
            break;
        }
        let [a, b, c, d] = &mut states;
        let s0 = step(decoder, a, words, &mut at);
        let s1 = step(decoder, b, words, &mut at);
        let s2 = step(decoder, c, words, &mut at);
        let s3 = step(decoder, d, words, &mut at);
        let bytes = _mm256_packus_epi16(_mm256_packus_epi32(s0, s1), _mm256_packus_epi32(s2, s3));
        // SAFETY: room for 32 bytes; an unaligned store.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(bytes, order)) };
        done += LANES;
    }
    for (i, state) in states.iter().enumerate() {
        // SAFETY: as the loads above.
        unsafe { _mm256_storeu_si256(decoder.states.as_mut_ptr().cast::<__m256i>().add(i), *state) };
    }
    decoder.words = words.get(at..).unwrap_or_default();
    done
}

/// As [`step`] for sixteen states.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn step_wide(decoder: &Decoder, state: &mut __m512i, words: &[u8], at: &mut usize, to: &mut [u8; 16]) {
    let twelve = _mm512_set1_epi32(4095);
    let slots = _mm512_and_si512(*state, twelve);
    // SAFETY: slots are below 4096, the length of the table.
    let entries = unsafe { _mm512_i32gather_epi32::<4>(slots, decoder.table.as_ptr().cast()) };
    let frequency = _mm512_and_si512(entries, twelve);
    let offset = _mm512_and_si512(_mm512_srli_epi32::<12>(entries), twelve);
    let x = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32::<12>(*state)), offset);
    let short = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(1 << 16));
    // SAFETY: the caller saw to it that AHEAD bytes follow the round's first word, of which a round takes at most LANES * 2.
    let next = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(words.as_ptr().add(*at).cast())) };
    let filled = _mm512_maskz_expand_epi32(short, next);
    *state = _mm512_mask_or_epi32(x, short, _mm512_slli_epi32::<16>(x), filled);
    *at += 2 * short.count_ones() as usize;
    // SAFETY: room for sixteen bytes; an unaligned store.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_srli_epi32::<24>(entries))) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn decode_avx512(decoder: &mut Decoder, out: &mut [u8]) -> usize {
    // SAFETY: 32 states are two vectors of sixteen; unaligned loads.
    let mut states: [__m512i; 2] =
        core::array::from_fn(|i| unsafe { _mm512_loadu_si512(decoder.states.as_ptr().add(16 * i).cast()) });
    let words = decoder.words;
    let (mut at, mut done) = (0, 0);
    for to in out.as_chunks_mut::<LANES>().0 {
        if words.len() - at < AHEAD {
            break;
        }
        for (state, to) in states.iter_mut().zip(to.as_chunks_mut::<16>().0) {
            step_wide(decoder, state, words, &mut at, to);
        }
        done += LANES;
    }
    for (i, state) in states.iter().enumerate() {
        // SAFETY: as the loads above.
        unsafe { _mm512_storeu_si512(decoder.states.as_mut_ptr().add(16 * i).cast(), *state) };
    }
    decoder.words = words.get(at..).unwrap_or_default();
    done
}
