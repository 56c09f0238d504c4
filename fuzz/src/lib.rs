//! What the fuzz targets share: reading decisions from a fuzzer's bytes, and chunks whose size is not bound by how many
//! bytes the fuzzer sends. Called by the targets only.

/// Decisions read from the front of the fuzzer's bytes; zeros when they are used up.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// From the start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Nothing is left.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Two bytes.
    pub fn word(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    /// Below `n`, from two bytes; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.word() % n.max(1)
    }

    /// Up to `n` bytes as they are.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }
}

/// A well mixed number of two.
pub fn mix(i: u64, salt: u64) -> u64 {
    let x = (i ^ salt.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 32)
}

/// `n` bytes built from runs, repetitions, noise and literals, as the input says; the last kind fills what is left.
pub fn chunk(input: &mut Input, n: usize) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(n);
    while out.len() < n {
        let room = n - out.len();
        let over = input.is_over();
        let kind = input.byte();
        let long = 1usize << (kind >> 3 & 15); // up to 32 KiB at a time
        let len = if over { room } else { (long + input.below(long)).min(room) };
        match kind & 7 {
            0 => out.extend(std::iter::repeat_n(input.byte(), len)),
            1 => {
                let salt = input.word() as u64;
                let words = (0..len.div_ceil(8) as u64).flat_map(|i| mix(i, salt).to_le_bytes());
                out.extend(words.take(len));
            }
            2 | 3 => {
                // Once more what came before, from any distance.
                let back = 1 + input.word() * if kind & 1 == 0 { 1 } else { 64 };
                let (from, end) = (out.len().saturating_sub(back), out.len() + len);
                while out.len() < end && from < out.len() {
                    out.extend_from_within(from..(from + end - out.len()).min(out.len()));
                }
                out.resize(end, 0);
            }
            4 => {
                let page = out.len().next_multiple_of(4096).min(n);
                out.resize(page, 0);
            }
            5 => {
                // Whole pages of one short pattern.
                let period = 1 << (input.byte() & 7);
                let pattern = input.bytes(period);
                let pages = (1 + input.byte() as usize) * 4096;
                let end = (out.len() + pages).min(n);
                while out.len() < end && !pattern.is_empty() {
                    out.extend_from_slice(pattern);
                }
                out.resize(end, 0);
            }
            _ => {
                let literal = input.bytes(len.min(256));
                out.extend_from_slice(literal);
                if literal.is_empty() {
                    out.push(0);
                }
            }
        }
    }
    out.truncate(n);
    out
}
