//! Checksums of stored bytes: XXH3 (Collet), 64 bits for integrity, 128 where equality is concluded from it.
#![forbid(unsafe_code)]

use xxhash_rust::xxh3;

/// For detecting damage.
pub fn sum64(bytes: &[u8]) -> u64 {
    xxh3::xxh3_64(bytes)
}

/// The same from a seed, for sums over several pieces.
pub fn sum64_from(seed: u64, bytes: &[u8]) -> u64 {
    xxh3::xxh3_64_with_seed(bytes, seed)
}

/// For "these bytes have not changed".
pub fn sum128(bytes: &[u8]) -> u128 {
    xxh3::xxh3_128(bytes)
}
