//! Chunks made of few different pages: what gates leave of structured states (uniform superpositions, basis states, marked
//! amplitudes, oracles). Each different 4 KiB page is kept once, by its period where it has one; the chunk is a list of runs
//! of them. Encoding is one comparison of each page with the one before it, decoding is copying pages that stay in the cache:
//! both near memory speed, where a byte-oriented LZ is slow on matches at short distances.
//!
//! Blob: u32 raw length; raw bytes through LZ4. Raw: u16 pages of the dictionary, u16 runs; runs (u16 count, u16 page);
//! then for each dictionary page u16 period and as many bytes. All little-endian.

use super::hash;
use super::pattern::{self, MAX_PERIOD as PAGE};
use super::stream;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// Different pages in one chunk at most.
const PAGES: usize = 64;
/// Pages of the largest chunk.
const MAX_RUNS: usize = (2 << 20) / PAGE;
/// Bytes of the largest raw form, in whole pages: a blob begins behind it and may go to a disk as it is.
const RAW: usize = (4 + MAX_RUNS * 4 + PAGES * (2 + PAGE)).next_multiple_of(PAGE);
/// Bytes that [`encode`] and [`decode`] want to work in.
pub const WORK: usize = RAW + PAGES * PAGE + get_maximum_output_size(RAW) + 4;

/// What a chunk turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// One page repeated, itself with this period.
    Pattern(usize),
    /// A blob of this length at this place in `work`.
    Blob {
        /// First byte.
        at: usize,
        /// Bytes.
        len: usize,
    },
}

/// Encodes a chunk of whole pages, or says None as soon as it has too many different ones. `work`: at least [`WORK`] bytes.
pub fn encode(table: &mut CompressTable, chunk: &[u8], work: &mut [u8]) -> Option<Encoded> {
    if chunk.is_empty() || !chunk.len().is_multiple_of(PAGE) || chunk.len() > MAX_RUNS * PAGE {
        return None;
    }
    let mut hashes = [0u64; PAGES];
    let mut first = [0u16; PAGES];
    let mut runs = [(0u16, 0u16); MAX_RUNS];
    let (mut pages, mut len) = (0usize, 0usize);
    let page = |i: usize| chunk.get(i * PAGE..(i + 1) * PAGE);
    for i in 0..chunk.len() / PAGE {
        let this = page(i)?;
        if i > 0 && page(i - 1)? == this {
            runs.get_mut(len - 1)?.0 += 1;
            continue;
        }
        let sum = hash::sum64(this);
        let known =
            (0..pages).find(|d| hashes.get(*d) == Some(&sum) && first.get(*d).and_then(|f| page(usize::from(*f))) == Some(this));
        let entry = match known {
            Some(entry) => entry,
            None if pages >= PAGES => return None,
            None => {
                *hashes.get_mut(pages)? = sum;
                *first.get_mut(pages)? = i as u16;
                pages += 1;
                pages - 1
            }
        };
        *runs.get_mut(len)? = (1, entry as u16);
        len += 1;
    }
    if pages == 1 {
        return Some(Encoded::Pattern(page_period(page(0)?)));
    }
    let (raw, out) = work.split_at_mut_checked(RAW)?;
    let mut at = put(raw, 0, &(pages as u16).to_le_bytes())?;
    at = put(raw, at, &(len as u16).to_le_bytes())?;
    for (count, entry) in runs.get(..len)? {
        at = put(raw, at, &count.to_le_bytes())?;
        at = put(raw, at, &entry.to_le_bytes())?;
    }
    for f in first.get(..pages)? {
        let this = page(usize::from(*f))?;
        let period = page_period(this);
        at = put(raw, at, &(period as u16).to_le_bytes())?;
        at = put(raw, at, this.get(..period)?)?;
    }
    out.get_mut(..4)?.copy_from_slice(&(at as u32).to_le_bytes());
    let room = get_maximum_output_size(at);
    let n = compress_into_with_table(raw.get(..at)?, out.get_mut(4..4 + room)?, table).ok()?;
    Some(Encoded::Blob { at: RAW, len: 4 + n })
}

/// Rebuilds a chunk of exactly `out.len()` bytes; false if the blob is not one of as many. `work`: at least [`WORK`] bytes.
pub fn decode(blob: &[u8], out: &mut [u8], work: &mut [u8]) -> bool {
    rebuild(blob, out, work).is_some()
}

fn rebuild(blob: &[u8], out: &mut [u8], work: &mut [u8]) -> Option<()> {
    let (head, packed) = blob.split_first_chunk::<4>()?;
    let (raw, rest) = work.split_at_mut_checked(RAW)?;
    let raw = raw.get_mut(..u32::from_le_bytes(*head) as usize)?;
    if decompress_into(packed, raw).ok()? != raw.len() {
        return None;
    }
    let expanded = rest.get_mut(..PAGES * PAGE)?;
    let (pages, runs) = (usize::from(word(raw, 0)?), usize::from(word(raw, 2)?));
    if pages > PAGES {
        return None;
    }
    let mut at = 4 + runs * 4;
    for entry in 0..pages {
        let period = usize::from(word(raw, at)?);
        if !period.is_power_of_two() || period > PAGE {
            return None;
        }
        pattern::repeat(raw.get(at + 2..at + 2 + period)?, expanded.get_mut(entry * PAGE..(entry + 1) * PAGE)?);
        at += 2 + period;
    }
    let mut to = 0;
    for run in 0..runs {
        let (count, entry) = (usize::from(word(raw, 4 + run * 4)?), usize::from(word(raw, 6 + run * 4)?));
        let page = expanded.get(entry * PAGE..(entry + 1) * PAGE).filter(|_| entry < pages)?;
        stream::repeat(page, out.get_mut(to..to + count * PAGE)?);
        to += count * PAGE;
    }
    (to == out.len() && at == raw.len()).then_some(())
}

/// The smallest power-of-two period of one page; the page itself if it has none.
fn page_period(page: &[u8]) -> usize {
    let mut period = PAGE;
    while period > pattern::MIN_PERIOD && page.get(..period / 2) == page.get(period / 2..period) {
        period /= 2;
    }
    period
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) -> Option<usize> {
    to.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
    Some(at + bytes.len())
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(n: usize, content: impl Fn(usize, usize) -> u8) -> Vec<u8> {
        (0..n * PAGE).map(|i| content(i / PAGE, i % PAGE)).collect()
    }

    #[test]
    fn round_trips_what_it_takes() {
        let mut table = CompressTable::large();
        let mut work = vec![0xEE; WORK];
        let cases: [(&str, Vec<u8>, bool); 7] = [
            ("constant", pages(512, |_, i| (i % 16) as u8), true),
            ("one odd byte", pages(512, |p, i| if p == 300 && i == 77 { 1 } else { 0 }), true),
            ("halves", pages(512, |p, i| if p < 256 { 0 } else { (i % 32) as u8 }), true),
            ("alternating", pages(512, |p, i| (p % 2 * (i % 64)) as u8), true),
            ("many", pages(512, |p, _| (p % 50) as u8), true),
            ("too many", pages(512, |p, i| (p * 7 + i) as u8 ^ (p >> 8) as u8), true),
            ("small chunk", pages(16, |p, i| (p / 4 + i % 8) as u8), true),
        ];
        for (name, chunk, _) in cases {
            let mut out = vec![1; chunk.len()];
            match encode(&mut table, &chunk, &mut work) {
                Some(Encoded::Pattern(period)) => pattern::repeat(&chunk[..period], &mut out),
                Some(Encoded::Blob { at, len }) => {
                    let blob = work[at..at + len].to_vec();
                    assert!(decode(&blob, &mut out, &mut work), "{name}");
                    assert!(!decode(&blob[..len - 1], &mut vec![0; chunk.len()], &mut work), "{name} cut");
                    assert!(!decode(&blob, &mut vec![0; chunk.len() + PAGE], &mut work), "{name} long");
                }
                None => {
                    assert_eq!(name, "too many");
                    continue;
                }
            }
            assert!(out == chunk, "{name}");
        }
    }

    #[test]
    fn damage_never_escapes() {
        let mut table = CompressTable::large();
        let mut work = vec![0; WORK];
        let chunk = pages(512, |p, i| (p / 40 * (i % 128)) as u8);
        let Some(Encoded::Blob { at, len }) = encode(&mut table, &chunk, &mut work) else { panic!("a dictionary") };
        let blob = work[at..at + len].to_vec();
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let mut bad = blob.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let i = (seed >> 33) as usize % len;
                bad[i] ^= (seed >> 20) as u8;
            }
            let _ = decode(&bad, &mut vec![0; chunk.len()], &mut work);
        }
    }
}
