//! The entropy coder of dense mode: range asymmetric numeral systems (Duda) over bytes, 32 interleaved states that share one stream
//! of 16-bit words, frequencies of 12 bits. Called by the amplitude codec only. The scalar loops are the definition; x86-64
//! machines with AVX2 or AVX-512 work on eight or sixteen states at a time.
//!
//! Blob: which bytes occur (32 bytes of flags), their frequencies (one byte below 128, else two), the 32 states after encoding, the
//! words. All little-endian.

#[cfg(target_arch = "x86_64")]
use super::rans_x86::{self as wide, Reach};

/// Nothing but the scalar loops.
#[cfg(not(target_arch = "x86_64"))]
mod wide {
    use super::{Decoder, LANES, Reach};

    pub fn encode(_: Reach, _: &[[u8; LANES]], _: &mut [u32; LANES], _: &[u16; 256], _: &mut [u8], _: &mut usize) -> usize {
        0
    }

    pub fn decode(_: Reach, _: &mut Decoder, _: &mut [u8]) -> usize {
        0
    }
}

/// States that are worked on at a time.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy, Debug)]
enum Reach {
    One,
}

#[cfg(not(target_arch = "x86_64"))]
impl Reach {
    #[cfg(test)]
    fn all() -> impl Iterator<Item = Self> {
        [Self::One].into_iter()
    }

    fn best() -> Self {
        Self::One
    }
}

/// Interleaved states.
pub const LANES: usize = 32;
/// Bits of a frequency; they sum to 1 << BITS.
const BITS: u32 = 12;
const TOTAL: u32 = 1 << BITS;
/// A state is at least this between symbols, and begins and ends as it.
const LOW: u32 = 1 << 16;
/// Bytes of the longest head: flags and frequencies; then come the states.
const HEAD: usize = 32 + 512;
/// Bytes beside the words at most, with the room that writing them backwards wants.
pub const OVERHEAD: usize = HEAD + LANES * 4 + 2 * (LANES + 1) + 2;

/// How often each byte occurs.
pub type Counts = [u32; 256];
/// For each slot of the decoder: frequency (12 bits), slot less the symbol's first one (12 bits), symbol (8 bits).
pub type Table = [u32; TOTAL as usize];

/// Counts bytes.
pub fn count(symbols: &[u8]) -> Counts {
    // Four tables, so that equal neighbours do not wait for each other.
    let mut parts = [[0u32; 256]; 4];
    let (fours, rest) = symbols.as_chunks::<4>();
    for four in fours {
        for (part, symbol) in parts.iter_mut().zip(four) {
            part[usize::from(*symbol)] += 1;
        }
    }
    for symbol in rest {
        parts[0][usize::from(*symbol)] += 1;
    }
    let mut counts = [0; 256];
    for (i, count) in counts.iter_mut().enumerate() {
        *count = parts.iter().map(|part| part[i]).sum();
    }
    counts
}

/// Bytes that the words of such symbols take, about.
pub fn estimate(counts: &Counts) -> usize {
    let all: u64 = counts.iter().map(|c| u64::from(*c)).sum();
    let bits = counts.iter().filter(|c| **c > 0).map(|c| f64::from(*c) * (all as f64 / f64::from(*c)).log2());
    (bits.sum::<f64>() / 8.0) as usize
}

/// Frequencies that sum to TOTAL, at least 1 for each byte that occurs, as near as may be. None if fewer than two different bytes occur.
fn frequencies(counts: &Counts) -> Option<[u16; 256]> {
    let all: u64 = counts.iter().map(|c| u64::from(*c)).sum();
    if counts.iter().filter(|c| **c > 0).count() < 2 {
        return None;
    }
    let mut frequencies = [0u16; 256];
    let mut sum = 0i32;
    for (f, count) in frequencies.iter_mut().zip(counts).filter(|(_, count)| **count > 0) {
        *f = ((u64::from(*count) * u64::from(TOTAL) + all / 2) / all).clamp(1, u64::from(TOTAL) - 1) as u16;
        sum += i32::from(*f);
    }
    // What rounding left over goes where it costs least: each step to or from the symbol that gains most or loses least by it.
    while sum != TOTAL as i32 {
        let change = if sum < TOTAL as i32 { 1i32 } else { -1 };
        // A symbol's cost is count * -log2(f); its derivative is near enough.
        let price = |i: usize| f64::from(counts[i]) / (f64::from(frequencies[i]) + 0.5 * f64::from(change)) * f64::from(-change);
        let may = |i: &usize| frequencies[*i] > 1 || (change > 0 && frequencies[*i] == 1);
        let best = (0..256).filter(may).min_by(|a, b| price(*a).total_cmp(&price(*b)))?;
        frequencies[best] = (i32::from(frequencies[best]) + change) as u16;
        sum += change;
    }
    Some(frequencies)
}

fn write_head(frequencies: &[u16; 256], out: &mut [u8]) -> Option<usize> {
    out.get_mut(..32)?.fill(0);
    let mut at = 32;
    for (i, f) in frequencies.iter().enumerate().filter(|(_, f)| **f > 0) {
        *out.get_mut(i / 8)? |= 1 << (i % 8);
        if *f >= 128 {
            *out.get_mut(at)? = (f >> 8) as u8 | 128;
            at += 1;
        }
        *out.get_mut(at)? = *f as u8;
        at += 1;
    }
    Some(at)
}

/// The frequencies, and where what follows them begins. None if they are not what [`frequencies`] gives.
fn read_head(blob: &[u8]) -> Option<([u16; 256], usize)> {
    let (flags, mut at, mut sum) = (blob.get(..32)?, 32, 0);
    let mut frequencies = [0u16; 256];
    for (_, f) in frequencies.iter_mut().enumerate().filter(|(i, _)| flags[i / 8] >> (i % 8) & 1 != 0) {
        let mut value = u16::from(*blob.get(at)?);
        at += 1;
        if value >= 128 {
            value = (value & 127) << 8 | u16::from(*blob.get(at)?);
            at += 1;
        }
        if value == 0 || u32::from(value) >= TOTAL {
            return None;
        }
        (*f, sum) = (value, sum + u32::from(value));
    }
    (sum == TOTAL).then_some((frequencies, at))
}

/// What encoding a symbol takes: dividing by its frequency is multiplying by `reciprocal` and taking the upper 64 bits.
#[derive(Clone, Copy)]
struct Step {
    reciprocal: u64,
    /// A state from here on gives a word away first.
    limit: u32,
    bias: u32,
    rest: u32,
}

fn steps(frequencies: &[u16; 256]) -> [Step; 256] {
    let mut start = 0;
    frequencies.map(|f| {
        let f = u32::from(f);
        // x < f << 20 < 2^32, so ceil(2^64 / f) gives x / f exactly; for f = 1 that number is one too large, and floor(2^64) - 1
        // gives x - 1, which the bias makes good.
        let (reciprocal, bias) = match f {
            0 | 1 => (u64::MAX, start + TOTAL - 1),
            f => (u64::MAX / u64::from(f) + 1, start),
        };
        start += f;
        Step { reciprocal, limit: f << (32 - BITS), bias, rest: TOTAL.wrapping_sub(f) }
    })
}

/// Encodes `symbols`, whose counts are given, into `out`: the blob's length. None if fewer than two different bytes occur or `out`
/// is too short ([`OVERHEAD`] and 12 bits for each symbol are always enough).
pub fn encode(symbols: &[u8], counts: &Counts, out: &mut [u8]) -> Option<usize> {
    encode_with(Reach::best(), symbols, counts, out)
}

/// [`encode`] with so many states at a time.
fn encode_with(reach: Reach, symbols: &[u8], counts: &Counts, out: &mut [u8]) -> Option<usize> {
    let frequencies = frequencies(counts)?;
    let head = write_head(&frequencies, out)?;
    let steps = steps(&frequencies);
    let body = out.get_mut(head..)?;
    // Words go backwards from the end, in the reverse of the order in which the decoder takes them.
    let mut states = [LOW; LANES];
    let mut at = body.len() & !1;
    let (groups, rest) = symbols.as_chunks::<LANES>();
    at = encode_some(rest, &mut states, &steps, body, at)?;
    let done = wide::encode(reach, groups, &mut states, &frequencies, body, &mut at);
    for group in groups.get(..groups.len() - done)?.iter().rev() {
        at = encode_some(group, &mut states, &steps, body, at)?;
    }
    let words = (body.len() & !1) - at;
    if at < LANES * 4 {
        return None;
    }
    for (to, state) in body.as_chunks_mut::<4>().0.iter_mut().zip(states) {
        *to = state.to_le_bytes();
    }
    body.copy_within(at..at + words, LANES * 4);
    Some(head + LANES * 4 + words)
}

/// Up to [`LANES`] symbols, last one first; the words end at `at`. Where they begin then.
fn encode_some(symbols: &[u8], states: &mut [u32; LANES], steps: &[Step; 256], body: &mut [u8], at: usize) -> Option<usize> {
    // One place more than the symbols: a word that is not wanted is written below the last one, and over it comes the next.
    let window: &mut [[u8; 2]; LANES + 1] =
        body.get_mut(at.checked_sub(2 * (LANES + 1))?..at)?.as_chunks_mut::<2>().0.first_chunk_mut()?;
    let mut left = LANES + 1;
    for (symbol, state) in symbols.iter().zip(states).rev() {
        let step = &steps[usize::from(*symbol)];
        let x = *state;
        let full = x >= step.limit;
        if let Some(place) = window.get_mut(left - 1) {
            *place = (x as u16).to_le_bytes();
        }
        left -= usize::from(full);
        let x = if full { x >> 16 } else { x };
        let quotient = ((u128::from(x) * u128::from(step.reciprocal)) >> 64) as u32;
        *state = x.wrapping_add(step.bias).wrapping_add(quotient.wrapping_mul(step.rest));
    }
    Some(at - 2 * (LANES + 1 - left))
}

fn fill(table: &mut Table, frequencies: &[u16; 256]) {
    let mut slots = table.iter_mut();
    for (symbol, f) in frequencies.iter().enumerate() {
        for (offset, slot) in slots.by_ref().take(usize::from(*f)).enumerate() {
            *slot = u32::from(*f) | (offset as u32) << BITS | (symbol as u32) << (2 * BITS);
        }
    }
}

/// A decoder in the middle of a blob.
pub struct Decoder<'a> {
    pub(super) states: [u32; LANES],
    pub(super) words: &'a [u8],
    pub(super) table: &'a Table,
}

impl<'a> Decoder<'a> {
    /// Reads the head of a blob; `table` is filled for it. None if it is none.
    pub fn new(blob: &'a [u8], table: &'a mut Table) -> Option<Self> {
        let (frequencies, head) = read_head(blob)?;
        fill(table, &frequencies);
        let (first, words) = blob.get(head..)?.split_at_checked(LANES * 4)?;
        let mut states = [0; LANES];
        for (state, bytes) in states.iter_mut().zip(first.as_chunks::<4>().0) {
            *state = u32::from_le_bytes(*bytes);
        }
        Some(Self { states, words, table })
    }

    /// Decodes the next symbols; as many at a time as [`LANES`] goes into, but for the last.
    pub fn decode(&mut self, out: &mut [u8]) -> Option<()> {
        self.decode_with(Reach::best(), out)
    }

    /// [`Self::decode`] with so many states at a time.
    fn decode_with(&mut self, reach: Reach, out: &mut [u8]) -> Option<()> {
        let done = wide::decode(reach, self, out);
        self.decode_scalar(out.get_mut(done..)?)
    }

    /// The definition of [`Self::decode`].
    fn decode_scalar(&mut self, out: &mut [u8]) -> Option<()> {
        for group in out.chunks_mut(LANES) {
            for (symbol, state) in group.iter_mut().zip(&mut self.states) {
                let entry = self.table[(*state % TOTAL) as usize];
                *symbol = (entry >> (2 * BITS)) as u8;
                let x = (entry % TOTAL).wrapping_mul(*state >> BITS).wrapping_add(entry >> BITS & (TOTAL - 1));
                *state = if x < LOW {
                    let (word, rest) = self.words.split_first_chunk::<2>()?;
                    self.words = rest;
                    x << 16 | u32::from(u16::from_le_bytes(*word))
                } else {
                    x
                };
            }
        }
        Some(())
    }

    /// Was everything taken, and does every state end as encoding began?
    pub fn finished(&self) -> bool {
        self.words.is_empty() && self.states.iter().all(|state| *state == LOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *seed >> 33
    }

    /// Bytes of some skew: 0 is uniform, more is more.
    fn bytes(n: usize, skew: u32, seed: &mut u64) -> Vec<u8> {
        (0..n).map(|_| (0..=skew).map(|_| random(seed) as u8).fold(255, u8::min)).collect()
    }

    fn round_trip(symbols: &[u8]) -> Option<usize> {
        let counts = count(symbols);
        let mut out = vec![0xEE; OVERHEAD + symbols.len() * 3 / 2];
        let n = encode(symbols, &counts, &mut out)?;
        let mut table = [0; TOTAL as usize];
        for reach in Reach::all() {
            let mut same = vec![0x33; out.len()];
            assert_eq!(encode_with(reach, symbols, &counts, &mut same), Some(n));
            assert!(same[..n] == out[..n], "{} symbols by {reach:?} and by {:?}", symbols.len(), Reach::best());
            let mut back = vec![1; symbols.len()];
            let mut decoder = Decoder::new(&out[..n], &mut table).expect("a head");
            let done = decoder.decode_with(reach, &mut back);
            assert!(done.is_some() && decoder.finished() && back == symbols, "{} symbols, {reach:?}", symbols.len());
        }
        // In pieces, as the codec takes them.
        let mut back = vec![1; symbols.len()];
        let mut decoder = Decoder::new(&out[..n], &mut table).unwrap();
        for piece in back.chunks_mut(LANES * 7) {
            decoder.decode(piece).unwrap();
        }
        assert!(decoder.finished() && back == symbols);
        // One word short is seen.
        let short = Decoder::new(&out[..n - 2], &mut table);
        assert!(short.is_none_or(|mut decoder| decoder.decode(&mut back).is_none() || !decoder.finished()));
        Some(n)
    }

    #[test]
    fn what_is_encoded_comes_back() {
        let mut seed = 3;
        for n in (2..100).chain([1000, 4096, 65537]) {
            for skew in [0, 1, 7, 60, 400] {
                let symbols = bytes(n, skew, &mut seed);
                assert!(round_trip(&symbols).is_some() || symbols.iter().all(|s| *s == symbols[0]));
            }
            let rare: Vec<u8> = (0..n).map(|i| u8::from(i == n / 2)).collect();
            assert!(round_trip(&rare).is_some());
        }
        assert!(round_trip(&[7; 100]).is_none() && round_trip(&[]).is_none());
    }

    #[test]
    fn size_is_near_the_entropy() {
        let mut seed = 5;
        for skew in [0, 3, 30, 300] {
            let symbols = bytes(200_000, skew, &mut seed);
            let n = round_trip(&symbols).unwrap() - OVERHEAD;
            let least = estimate(&count(&symbols));
            assert!(n <= least + least / 100 + 64, "skew {skew}: {n} bytes, entropy {least}");
        }
    }

    #[test]
    fn damage_never_escapes() {
        let mut seed = 9;
        let symbols = bytes(5000, 5, &mut seed);
        let mut out = vec![0; 20_000];
        let n = encode(&symbols, &count(&symbols), &mut out).unwrap();
        let (mut table, mut back) = ([0; TOTAL as usize], vec![0; symbols.len()]);
        for _ in 0..5000 {
            let mut bad = out[..n].to_vec();
            for _ in 0..1 + random(&mut seed) % 3 {
                let at = random(&mut seed) as usize % n;
                bad[at] ^= random(&mut seed) as u8;
            }
            bad.truncate(n - (random(&mut seed) % 40) as usize);
            for reach in Reach::all() {
                if let Some(mut decoder) = Decoder::new(&bad, &mut table) {
                    let _ = decoder.decode_with(reach, &mut back);
                }
            }
        }
    }
}
