//! Unpredictable bits for what an attacker or a stray write should not guess. Called by `heap` for the key of its links.

/// 64 random bits; where the kernel refuses, bits that differ from run to run by address-space randomisation alone.
pub fn bits() -> u64 {
    let mut bits = 0u64;
    // SAFETY: the kernel writes at most eight bytes into `bits`.
    let got = unsafe { libc::syscall(libc::SYS_getrandom, &raw mut bits, size_of::<u64>(), libc::GRND_NONBLOCK) };
    if got == size_of::<u64>() as i64 {
        return bits;
    }
    (&raw const bits as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
