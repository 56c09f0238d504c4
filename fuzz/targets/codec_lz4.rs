//! LZ4 blocks: what is compressed comes back, and no blob of any bytes makes the decoder leave its slices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmem::codec::lz4::{BLOCK, Context, bound, compress, decompress};
use qmem_fuzz::{Input, chunk};
use std::cell::RefCell;

thread_local! {
    /// Used again and again, as a worker's is: nothing of an earlier chunk may show.
    static CONTEXT: RefCell<Context> = const { RefCell::new(Context::new()) };
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    if kind & 1 == 0 {
        let size = match kind >> 1 & 15 {
            0..=7 => 1 + input.below(5000),
            8..=13 => 4096 * (1 + input.below(16)),
            14 => BLOCK - 2 + input.below(5),
            _ => BLOCK * (1 + input.below(3)) + 4096 * input.below(3),
        };
        let limit = size / 64 * (1 + input.below(80)) + input.below(64);
        round_trip(&chunk(&mut input, size), limit);
    } else {
        let size = if kind & 2 == 0 { 1 + input.word() } else { BLOCK + input.word() };
        decode(input.rest(), size);
    }
});

fn round_trip(data: &[u8], limit: usize) {
    let mut out = vec![0xEE; bound(data.len())];
    let Some(n) = CONTEXT.with_borrow_mut(|context| compress(context, data, &mut out, limit)) else {
        assert!(limit < out.len(), "refused although the limit of {limit} is the bound");
        return;
    };
    assert!(n <= limit && n <= out.len());
    let mut back = vec![0x55; data.len()];
    assert!(decompress(&out[..n], &mut back) && back == data, "{} bytes through {n}", data.len());
    let mut more = vec![0; data.len() + 1];
    assert!(!decompress(&out[..n], &mut more) && !decompress(&out[..n], &mut more[..data.len() - 1]), "another length");
    assert!(!decompress(&out[..n - 1], &mut back), "a blob cut short");
    // Less room than the bound is no room, never a write beyond it.
    let mut tight = vec![0; n - 1];
    let fits = CONTEXT.with_borrow_mut(|context| compress(context, data, &mut tight, limit));
    assert!(fits.is_none_or(|m| m < n));
}

fn decode(blob: &[u8], size: usize) {
    // As it is, and with a header that makes its first block plausible; exact allocations, so that one byte too far is seen.
    let mut out = vec![0u8; size].into_boxed_slice();
    let _ = decompress(blob, &mut out);
    let one = size.min(BLOCK);
    let mut plausible = (blob.len() as u32).to_le_bytes().to_vec();
    plausible.extend_from_slice(blob);
    let mut out = vec![0u8; one].into_boxed_slice();
    let _ = decompress(&plausible.into_boxed_slice(), &mut out);
}
