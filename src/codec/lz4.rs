//! LZ4 in independent blocks of 256 KiB: a chunk that does not shrink is given up after its first blocks, and a table per
//! context is reused so that nothing allocates. Blob: for each block a little-endian u32 length (top bit: stored as it is),
//! then the block.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// Uncompressed bytes of one block.
pub const BLOCK: usize = 256 << 10;
const RAW: u32 = 1 << 31;
const HEADER: usize = 4;

/// A worker's hash table (16 KiB).
pub struct Context {
    /// For [`compress`] and for `dictionary::encode`.
    pub table: CompressTable,
}

impl Context {
    /// A fresh table.
    pub const fn new() -> Self {
        Self { table: CompressTable::large() }
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

/// Room that [`compress`] wants for `size` bytes.
pub const fn bound(size: usize) -> usize {
    size + size.div_ceil(BLOCK) * HEADER + (get_maximum_output_size(BLOCK) - BLOCK)
}

/// Compresses `input` into `output` (at least [`bound`] bytes). None as soon as it is clear that the blob would be larger
/// than `limit` bytes.
pub fn compress(context: &mut Context, input: &[u8], output: &mut [u8], limit: usize) -> Option<usize> {
    let mut at = 0;
    for (index, block) in input.chunks(BLOCK).enumerate() {
        let body = output.get_mut(at + HEADER..)?;
        let room = body.len().min(get_maximum_output_size(block.len()));
        let compressed =
            compress_into_with_table(block, body.get_mut(..room)?, &mut context.table).ok().filter(|n| *n < block.len());
        let (len, flag) = match compressed {
            Some(n) => (n, 0),
            None => {
                body.get_mut(..block.len())?.copy_from_slice(block);
                (block.len(), RAW)
            }
        };
        output.get_mut(at..at + HEADER)?.copy_from_slice(&(len as u32 | flag).to_le_bytes());
        at += HEADER + len;
        // Judge early: a first block that did not shrink speaks for the chunk; later ones by what they have used up.
        let hopeless = index == 0 && len as u64 * input.len() as u64 / block.len() as u64 > (limit + limit / 4) as u64;
        if hopeless || at > limit {
            return None;
        }
    }
    Some(at)
}

/// Rebuilds exactly `output.len()` bytes; false if the blob is not one that [`compress`] made of as many.
pub fn decompress(blob: &[u8], output: &mut [u8]) -> bool {
    let mut rest = blob;
    for block in output.chunks_mut(BLOCK) {
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else { return false };
        let word = u32::from_le_bytes(*header);
        let Some((data, tail)) = body.split_at_checked((word & !RAW) as usize) else { return false };
        let whole = if word & RAW != 0 {
            data.len() == block.len() && {
                block.copy_from_slice(data);
                true
            }
        } else {
            let wanted = block.len();
            decompress_into(data, block).is_ok_and(|n| n == wanted)
        };
        if !whole {
            return false;
        }
        rest = tail;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, mut seed: u64) -> Vec<u8> {
        (0..n)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (seed >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn round_trips_and_refuses() {
        let mut context = Context::new();
        for size in [65536, BLOCK, BLOCK + 4096, 2 << 20] {
            let mut out = vec![0; bound(size)];
            for kind in 0..4 {
                let input: Vec<u8> = match kind {
                    0 => vec![7; size],
                    1 => noise(size, 3),
                    2 => (0..size).map(|i| (i / 1000) as u8).collect(),
                    _ => noise(size, 5).iter().enumerate().map(|(i, b)| if i < size / 2 { 0 } else { *b }).collect(),
                };
                let limit = size + size / 64;
                let n = compress(&mut context, &input, &mut out, limit).expect("within the bound");
                let mut back = vec![1; size];
                assert!(decompress(&out[..n], &mut back) && back == input, "size {size} kind {kind}");
                assert!(!decompress(&out[..n - 1], &mut back) && !decompress(&out[..n], &mut back[..size - 1]));
                if kind == 1 {
                    assert!(compress(&mut context, &input, &mut out, size / 2).is_none());
                }
            }
        }
    }

    #[test]
    fn damage_never_escapes_the_buffer() {
        let mut context = Context::new();
        let input: Vec<u8> = (0..BLOCK * 2).map(|i| (i * i / 977) as u8).collect();
        let mut out = vec![0; bound(input.len())];
        let n = compress(&mut context, &input, &mut out, input.len() * 2).unwrap();
        let mut back = vec![0; input.len()];
        for (i, r) in noise(2000, 11).into_iter().enumerate() {
            let mut bad = out[..n].to_vec();
            let at = (i * 7919 + r as usize * 131) % n;
            bad[at] ^= r | 1;
            let _ = decompress(&bad, &mut back); // may be wrong (the checksum's work), must return
        }
    }
}
