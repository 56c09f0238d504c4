//! Writing what is not read soon by whoever writes it: on x86-64 by stores that pass the caches, so that no line is read from memory
//! before it is overwritten, and none is driven out. A filler writes its chunk two to three times as fast. Called by `pattern`,
//! `dictionary` and the pager's fill.

/// Bytes that are written at once, at multiples of as many.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;
/// Below this the caches are the better place.
const LEAST: usize = 256 << 10;

/// Fills `out` with repetitions of `page`; the last one may be cut.
pub fn repeat(page: &[u8], out: &mut [u8]) {
    if page.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if page.len().is_multiple_of(LINE) && out.len() >= LEAST && std::is_x86_feature_detected!("avx") {
        let lines = out.as_ptr().align_offset(LINE) == 0 && out.len().is_multiple_of(LINE);
        if lines {
            // SAFETY: the machine has AVX; `out` is whole lines, and so is the page.
            return unsafe { repeat_lines(page, out) };
        }
    }
    for part in out.chunks_mut(page.len()) {
        if let Some(from) = page.get(..part.len()) {
            part.copy_from_slice(from);
        }
    }
}

/// Fills `out` with zeros.
pub fn zero(out: &mut [u8]) {
    if out.len() >= LEAST { repeat(&[0; 4096], out) } else { out.fill(0) }
}

/// # Safety
/// `out` starts at a multiple of [`LINE`], and both are multiples of it long.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn repeat_lines(page: &[u8], out: &mut [u8]) {
    use core::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};
    for part in out.chunks_mut(page.len()) {
        for (to, from) in part.chunks_exact_mut(LINE).zip(page.chunks_exact(LINE)) {
            // SAFETY: both are as long as a line, and `to` is aligned to one.
            unsafe {
                let (low, high) = (_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast()));
                _mm256_stream_si256(to.as_mut_ptr().cast::<__m256i>(), low);
                _mm256_stream_si256(to.as_mut_ptr().add(32).cast::<__m256i>(), high);
            }
        }
    }
    _mm_sfence(); // such stores are in no order with others, by which it is said that they are there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_as_copying_does() {
        let source: Vec<u8> = (0..9000usize).map(|i| (i * 7 + i / 256) as u8).collect();
        for length in [0, 1, 64, 4096, LEAST - 1, LEAST, LEAST + 32, LEAST + 64, 3 * LEAST + 4160] {
            for page in [1, 16, 64, 100, 4096, 8192] {
                for offset in [0, 1, 32, 64] {
                    let mut room = vec![0xAAu8; length + 200];
                    let start = room.as_ptr().align_offset(64) + offset;
                    repeat(&source[..page], &mut room[start..start + length]);
                    let wanted = |i: usize| source[i % page];
                    assert!((0..length).all(|i| room[start + i] == wanted(i)), "{length} of {page} at {offset}");
                    assert!(
                        room[..start].iter().chain(&room[start + length..]).all(|b| *b == 0xAA),
                        "{length} of {page} at {offset}"
                    );
                    zero(&mut room[start..start + length]);
                    assert!(room[start..start + length].iter().all(|b| *b == 0));
                }
            }
        }
    }
}
