//! Which step to quantise with: the grid that the numbers already lie on, if there is one, so that what was quantised before is
//! taken as it is; else the coarsest step that the error allows, found on a sample. Called by `codes`.
#![forbid(unsafe_code)]

use super::kernel::{self, number};
use super::{Element, Width};

/// Numbers in a sample at most.
pub const SAMPLE: usize = 2048;
/// Neighbours that are sampled together: one cache line of doubles.
const RUN: usize = 8;
/// Bits of a step's significand: a code times a step is then exact, and numbers on a grid are recognised as such.
const SIGNIFICAND: u32 = 8;
/// A step is coarsened by this factor while the sample allows it; 24 times at most.
const COARSER: f64 = 1.125;
const COARSENINGS: usize = 24;

/// Largest code times a step that is exact, and that a grid is recognised by.
pub fn largest_code(width: Width) -> f64 {
    match width {
        Width::Double => f64::from(1 << 24),
        Width::Single => f64::from(1 << 16),
    }
}

/// Steps that may be chosen; beyond, chunks are left to lossless codecs: products could be subnormal or infinite.
pub fn may_be_chosen(width: Width, step: f64) -> bool {
    match width {
        Width::Double => (1e-290..1e290).contains(&step),
        Width::Single => (1e-30..1e30).contains(&step),
    }
}

/// Steps that may be found: the grid that codes at a chosen step lie on has one up to [`largest_code`] times as large.
pub fn may_be_found(width: Width, step: f64) -> bool {
    match width {
        Width::Double => (1e-290..1e298).contains(&step),
        Width::Single => (1e-30..1e35).contains(&step),
    }
}

/// The next step below whose significand is short.
pub fn shorten(step: f64) -> f64 {
    f64::from_bits(step.to_bits() >> (53 - SIGNIFICAND) << (53 - SIGNIFICAND))
}

/// A sample of a chunk's numbers, as bytes.
pub struct Sample<'a> {
    /// The numbers.
    pub bytes: &'a [u8],
    /// Numbers in the chunk for each in the sample.
    pub weight: f64,
}

/// Copies a sample to `room`, at least [`SAMPLE`] numbers long.
pub fn sample<'a>(element: Element, chunk: &[u8], room: &'a mut [u8]) -> Option<Sample<'a>> {
    let size = element.width().bytes();
    let numbers = chunk.len() / size;
    if numbers <= SAMPLE {
        let room = room.get_mut(..chunk.len())?;
        room.copy_from_slice(chunk);
        return Some(Sample { bytes: room, weight: 1.0 });
    }
    let room = room.get_mut(..SAMPLE * size)?;
    let runs = SAMPLE / RUN;
    let apart = numbers / runs;
    let mut mixed = 0x9E37_79B9_7F4A_7C15u64;
    for (i, to) in room.chunks_exact_mut(RUN * size).enumerate() {
        // Anywhere in its own stretch: a fixed distance would see one class of indices only.
        mixed = mixed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let within = ((mixed >> 33) as usize % (apart - RUN + 1)) & !1;
        let from = (i * apart + within) * size;
        to.copy_from_slice(chunk.get(from..from + RUN * size)?);
    }
    Some(Sample { bytes: room, weight: numbers as f64 / SAMPLE as f64 })
}

/// A number as odd integer times a power of two.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Dyadic {
    odd: u64,
    exponent: i32,
}

impl Dyadic {
    /// None for zero, and for what is not normal.
    fn of(x: f64) -> Option<Self> {
        if !x.is_normal() {
            return None;
        }
        let bits = x.to_bits();
        let significand = bits & ((1 << 52) - 1) | 1 << 52;
        let zeros = significand.trailing_zeros();
        Some(Self { odd: significand >> zeros, exponent: (bits >> 52 & 2047) as i32 - 1075 + zeros as i32 })
    }

    fn value(self) -> f64 {
        // Both factors are exact, and so is the product: it is a divisor of a normal number with no more bits.
        self.odd as f64 * f64::from_bits(((self.exponent + 1023).clamp(1, 2046) as u64) << 52)
    }

    /// The largest number that both are multiples of.
    fn divisor(self, other: Self) -> Self {
        let (mut a, mut b) = (self.odd, other.odd);
        while a != b {
            if a < b {
                core::mem::swap(&mut a, &mut b);
            }
            a -= b;
            a >>= a.trailing_zeros();
        }
        Self { odd: a, exponent: self.exponent.min(other.exponent) }
    }
}

/// The coarsest grid that some numbers lie on.
#[derive(Clone, Copy)]
pub struct Grid {
    divisor: Option<Dyadic>,
    largest: f64,
    limit: f64,
}

impl Grid {
    /// Of the sample's numbers. None if there is none whose codes are at most `limit`.
    pub fn of(width: Width, sample: &Sample, limit: f64) -> Option<Self> {
        let mut grid = Self { divisor: None, largest: 0.0, limit };
        for i in 0..sample.bytes.len() / width.bytes() {
            grid = grid.and(number(width, sample.bytes, i)?)?;
        }
        Some(grid)
    }

    /// With one more number on it.
    pub fn and(mut self, x: f64) -> Option<Self> {
        if x == 0.0 {
            return Some(self);
        }
        let x_as = Dyadic::of(x)?;
        self.largest = self.largest.max(x.abs());
        let divisor = self.divisor.map_or(x_as, |d| d.divisor(x_as));
        self.divisor = Some(divisor);
        (self.largest <= divisor.value() * self.limit).then_some(self)
    }

    /// The first number that is not its code times the step, or whose code is too large to be listed.
    pub fn first_off(&self, width: Width, chunk: &[u8], codes: &[i16]) -> Option<f64> {
        let step = self.step();
        let lies_on = |x: f64, code: i16| {
            let listed = |k: i32| f64::from(k.abs()) <= self.limit && f64::from(k) * step == x;
            let clipped = code == i16::MIN || code == i16::MAX;
            (!clipped && x == f64::from(code) * step) || kernel::code(width, x, step).is_some_and(listed)
        };
        (0..codes.len()).find_map(|i| number(width, chunk, i).filter(|x| !lies_on(*x, codes.get(i).copied().unwrap_or_default())))
    }

    /// Do its codes fit a byte or nearly so?
    pub fn is_coarse(&self) -> bool {
        self.largest <= self.step() * 256.0
    }

    /// Its step; 1 if all numbers are zero.
    pub fn step(&self) -> f64 {
        self.divisor.map_or(1.0, Dyadic::value)
    }
}

/// The step at which numbers that vary smoothly over many steps make a squared error of `allowed`, less what it scatters by.
pub fn smooth(numbers: usize, allowed: f64) -> f64 {
    let margin = (2.7 / (numbers as f64).sqrt()).min(0.3);
    (12.0 * allowed * (1.0 - margin) / numbers as f64).sqrt()
}

/// A coarser step than `step` if the sample says that much of the allowed squared error would be left over: numbers that are zero
/// or nearly so, or the same again and again, make less.
pub fn coarsen(width: Width, sample: &Sample, step: f64, allowed: f64, codes: &mut [i16]) -> f64 {
    let numbers = sample.bytes.len() / width.bytes();
    let Some(codes) = codes.get_mut(..numbers) else { return step };
    let mut error = |step: f64| kernel::quantise(width, sample.bytes, step, codes).sum * step * step * sample.weight;
    let mut best = step;
    let mut next = step;
    let mut over = 0;
    for _ in 0..COARSENINGS {
        let made = error(shorten(next));
        if made.is_nan() || made > allowed * 0.97 {
            over += 1; // a few values may fall badly on one step and well on the next
        } else {
            best = next;
        }
        if over > 2 {
            break;
        }
        next *= COARSER;
    }
    best
}
