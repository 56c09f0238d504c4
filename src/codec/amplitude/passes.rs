//! Simple passes over codes that the compiler turns into vectors by itself: each is compiled twice on x86-64, and the one for AVX2 is
//! taken where the machine has it. Called by `codes`, `segments`, `cross` and `survey`.

use super::Element;
use super::survey::{self, Survey};

/// For each function a second one, compiled for AVX2, and the choice between the two. They give the same bits: nothing here fuses
/// multiplications with additions or changes the order of a sum.
macro_rules! twice {
    ($($(#[doc = $doc:literal])* pub fn $name:ident / $plain:ident / $wide:ident ($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block)*) => {$(
        $(#[doc = $doc])*
        pub fn $name($($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            if std::is_x86_feature_detected!("avx2") {
                // SAFETY: the machine has what it is compiled for.
                return unsafe { $wide($($arg),*) };
            }
            $plain($($arg),*)
        }

        #[inline(always)]
        fn $plain($($arg: $type),*) $(-> $out)? $body

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2")]
        fn $wide($($arg: $type),*) $(-> $out)? {
            $plain($($arg),*)
        }
    )*};
}

twice! {
    /// See `survey.rs`.
    pub fn survey / survey_plain / survey_wide (element: Element, chunk: &[u8]) -> Survey {
        survey::look(element, chunk)
    }

    /// The sum of magnitudes, and whether a code is saturated.
    pub fn magnitude / magnitude_plain / magnitude_wide (codes: &[i16]) -> (u64, bool) {
        let (mut sum, mut saturated) = (0u64, false);
        for part in codes.chunks(1024) {
            let (mut some, mut extreme) = (0u32, 0u16);
            for code in part {
                // i16::MIN and i16::MAX alone give 0x7FFF here.
                let folded = (*code ^ (*code >> 15)) as u16;
                extreme = if folded > extreme { folded } else { extreme };
                some += code.unsigned_abs() as u32;
            }
            sum += some as u64;
            saturated |= extreme == 0x7FFF;
        }
        (sum, saturated)
    }

    /// How many codes do not fit eight bits without their lower ones.
    pub fn outside / outside_plain / outside_wide (codes: &[i16], bits: u32) -> usize {
        let mut count = 0;
        for part in codes.chunks(8192) {
            let mut some = 0u16;
            for code in part {
                let upper = *code >> bits;
                some += ((upper as i8) as i16 != upper) as u16;
            }
            count += some as usize;
        }
        count
    }

    /// The codes without their lower bits, saturated to bytes; false if one did not fit or was saturated before.
    pub fn narrow / narrow_plain / narrow_wide (codes: &[i16], bits: u32, to: &mut [u8]) -> bool {
        let mut off = 0i16;
        for (code, to) in codes.iter().zip(to) {
            let upper = *code >> bits;
            let fit = upper.clamp(-128, 127);
            let saturated = (*code ^ (*code >> 15)) == 0x7FFF;
            off |= (upper ^ fit) | -(saturated as i16);
            *to = fit as u8;
        }
        off == 0
    }

    /// Is there one that [`narrow`] would find off?
    pub fn any_off / any_off_plain / any_off_wide (codes: &[i16], bits: u32) -> bool {
        let mut off = 0i16;
        for code in codes {
            let upper = *code >> bits;
            let saturated = (*code ^ (*code >> 15)) == 0x7FFF;
            off |= ((upper as i8) as i16 ^ upper) | -(saturated as i16);
        }
        off != 0
    }

    /// Codes of bytes.
    pub fn widen / widen_plain / widen_wide (bytes: &[u8], codes: &mut [i16]) {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = *byte as i8 as i16;
        }
    }

    /// Codes of bytes and four lower bits each, two codes to a byte.
    pub fn widen_nibbles / widen_nibbles_plain / widen_nibbles_wide (bytes: &[u8], lower: &[u8], codes: &mut [i16]) {
        let (pairs, byte_pairs) = (codes.as_chunks_mut::<2>().0, bytes.as_chunks::<2>().0);
        for ((pair, bytes), lower) in pairs.iter_mut().zip(byte_pairs).zip(lower) {
            *pair = [(bytes[0] as i8 as i16) << 4 | (*lower & 15) as i16, (bytes[1] as i8 as i16) << 4 | (*lower >> 4) as i16];
        }
        if let (1, Some(code), Some(byte), Some(lower)) = (codes.len() % 2, codes.last_mut(), bytes.last(), lower.last()) {
            *code = (*byte as i8 as i16) << 4 | (*lower & 15) as i16;
        }
    }

    /// Codes of bytes and two lower bits each: byte i has those of the ith code of each quarter.
    pub fn widen_crumbs / widen_crumbs_plain / widen_crumbs_wide (bytes: &[u8], lower: &[u8], codes: &mut [i16]) {
        let quarter = lower.len().max(1);
        let mut shift = 0;
        for (codes, bytes) in codes.chunks_mut(quarter).zip(bytes.chunks(quarter)) {
            for ((code, byte), lower) in codes.iter_mut().zip(bytes).zip(lower) {
                *code = (*byte as i8 as i16) << 2 | (*lower >> shift & 3) as i16;
            }
            shift += 2;
        }
    }

    /// Codes of bytes and eight lower bits each.
    pub fn widen_bytes / widen_bytes_plain / widen_bytes_wide (bytes: &[u8], lower: &[u8], codes: &mut [i16]) {
        for ((code, byte), lower) in codes.iter_mut().zip(bytes).zip(lower) {
            *code = (*byte as i8 as i16) << 8 | *lower as i16;
        }
    }

    /// The lower four bits of codes, two to a byte.
    pub fn nibbles / nibbles_plain / nibbles_wide (codes: &[i16], to: &mut [u8]) {
        for (pair, to) in codes.as_chunks::<2>().0.iter().zip(to.iter_mut()) {
            *to = (pair[0] & 15) as u8 | (pair[1] << 4) as u8;
        }
        if let (1, Some(code), Some(to)) = (codes.len() % 2, codes.last(), to.last_mut()) {
            *to = (*code & 15) as u8;
        }
    }

    /// The lower two bits of codes, four to a byte; see [`widen_crumbs`].
    pub fn crumbs / crumbs_plain / crumbs_wide (codes: &[i16], to: &mut [u8]) {
        let mut shift = 0;
        to.fill(0);
        for codes in codes.chunks(to.len().max(1)) {
            for (code, to) in codes.iter().zip(to.iter_mut()) {
                *to |= ((*code & 3) as u8) << shift;
            }
            shift += 2;
        }
    }

    /// The lower eight bits of codes.
    pub fn low_bytes / low_bytes_plain / low_bytes_wide (codes: &[i16], to: &mut [u8]) {
        for (code, to) in codes.iter().zip(to) {
            *to = *code as u8;
        }
    }

    /// Adds the product of a complex number and a vector to a vector, real and imaginary parts apart.
    pub fn add_product / add_product_plain / add_product_wide (u: (f64, f64), v: (&[f64], &[f64]), sum: (&mut [f64], &mut [f64])) {
        for (((re, im), v_re), v_im) in sum.0.iter_mut().zip(sum.1.iter_mut()).zip(v.0).zip(v.1) {
            *re += u.0 * v_re - u.1 * v_im;
            *im += u.0 * v_im + u.1 * v_re;
        }
    }

    /// Subtracts the product of a complex number and a vector from a vector, real and imaginary parts apart.
    pub fn subtract_product / subtract_product_plain / subtract_product_wide (
        u: (f64, f64), v: (&[f64], &[f64]), rest: (&mut [f64], &mut [f64])
    ) {
        for (((re, im), v_re), v_im) in rest.0.iter_mut().zip(rest.1.iter_mut()).zip(v.0).zip(v.1) {
            *re -= u.0 * v_re - u.1 * v_im;
            *im -= u.0 * v_im + u.1 * v_re;
        }
    }

    /// Real and imaginary parts as complex doubles.
    pub fn interleave_doubles / interleave_doubles_plain / interleave_doubles_wide (re: &[f64], im: &[f64], to: &mut [u8]) {
        for ((re, im), to) in re.iter().zip(im).zip(to.as_chunks_mut::<16>().0) {
            *to = (re.to_bits() as u128 | (im.to_bits() as u128) << 64).to_le_bytes();
        }
    }

    /// Real and imaginary parts as complex singles.
    pub fn interleave_singles / interleave_singles_plain / interleave_singles_wide (re: &[f64], im: &[f64], to: &mut [u8]) {
        for ((re, im), to) in re.iter().zip(im).zip(to.as_chunks_mut::<8>().0) {
            *to = ((*re as f32).to_bits() as u64 | ((*im as f32).to_bits() as u64) << 32).to_le_bytes();
        }
    }

    /// The sum of the squared differences of doubles.
    pub fn distance_doubles / distance_doubles_plain / distance_doubles_wide (a: &[u8], b: &[u8]) -> f64 {
        let mut sums = [0.0f64; 8];
        for (a, b) in a.as_chunks::<64>().0.iter().zip(b.as_chunks::<64>().0) {
            for ((sum, a), b) in sums.iter_mut().zip(a.as_chunks::<8>().0).zip(b.as_chunks::<8>().0) {
                let difference = f64::from_le_bytes(*a) - f64::from_le_bytes(*b);
                *sum += difference * difference;
            }
        }
        sums.iter().sum()
    }

    /// The sum of the squared differences of singles.
    pub fn distance_singles / distance_singles_plain / distance_singles_wide (a: &[u8], b: &[u8]) -> f64 {
        let mut sums = [0.0f64; 8];
        for (a, b) in a.as_chunks::<32>().0.iter().zip(b.as_chunks::<32>().0) {
            for ((sum, a), b) in sums.iter_mut().zip(a.as_chunks::<4>().0).zip(b.as_chunks::<4>().0) {
                let difference = f64::from(f32::from_le_bytes(*a)) - f64::from(f32::from_le_bytes(*b));
                *sum += difference * difference;
            }
        }
        sums.iter().sum()
    }
}
