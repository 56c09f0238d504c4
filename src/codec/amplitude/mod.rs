//! The lossy codec for amplitudes: chunks of real or complex numbers, little-endian, in single or double precision. Given the L2
//! error that a chunk may take, it finds a form that keeps to it and says exactly what error it made, or refuses. Pure, without
//! allocation: the caller lends the workspace. Called by the pager and by the compressors.
//!
//! Two forms of a chunk: `codes` (multiples of a step, packed or entropy-coded) and `cross` (a matrix of low rank from a few of its
//! rows and columns, which states of little entanglement are). What a blob gives back is encoded again without any error: codes lie
//! on a grid that is recognised, and a cross is copied as it is.
//!
//! A blob carries no checksum: the caller keeps one beside it. Any bytes may be decoded: damage is an answer, never a fault.

mod codes;
mod cross;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod passes;
mod rans;
#[cfg(target_arch = "x86_64")]
mod rans_x86;
mod segments;
mod step;
mod survey;
mod varint;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use survey::{Survey, survey};

use super::lz4::Context;

/// What a chunk's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Two singles.
    C64,
    /// Two doubles.
    C128,
    /// Singles.
    F32,
    /// Doubles.
    F64,
}

/// Bytes of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Four.
    Single,
    /// Eight.
    Double,
}

impl Width {
    /// 4 or 8.
    pub const fn bytes(self) -> usize {
        match self {
            Width::Single => 4,
            Width::Double => 8,
        }
    }
}

impl Element {
    /// Of its numbers.
    pub const fn width(self) -> Width {
        match self {
            Element::C64 | Element::F32 => Width::Single,
            Element::C128 | Element::F64 => Width::Double,
        }
    }

    /// Numbers in one.
    pub const fn numbers(self) -> usize {
        match self {
            Element::C64 | Element::C128 => 2,
            Element::F32 | Element::F64 => 1,
        }
    }

    /// Bytes of one.
    pub const fn bytes(self) -> usize {
        self.width().bytes() * self.numbers()
    }

    const ALL: [Self; 4] = [Self::C64, Self::C128, Self::F32, Self::F64];

    /// Its number in stored bytes.
    pub fn tag(self) -> u8 {
        Self::ALL.iter().position(|e| *e == self).unwrap_or_default() as u8
    }

    /// The element of a number.
    pub fn of(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag)).copied()
    }
}

/// Speed or size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Codes of whole bytes: near the speed of copying.
    Fast,
    /// Codes through the entropy coder.
    Dense,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What the chunk's bytes are.
    pub element: Element,
    /// The L2 norm that the difference between the chunk and what comes back may have.
    pub max_error: f64,
    /// Speed or size.
    pub mode: Mode,
}

/// A chunk that was encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// Bytes of the blob.
    pub len: usize,
    /// The L2 norm of what was lost: measured, rounded up, never more than was allowed; 0 if nothing was.
    pub error: f64,
}

/// Why a chunk is better left to a lossless codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not whole elements, more than [`MAX_NUMBERS`], or too little workspace or room for the blob.
    Size,
    /// A number is NaN or infinite.
    NotFinite,
    /// The error allowed is too small for the numbers, or so small or large that products could leave the range of normal numbers.
    Tolerance,
}

/// Numbers in a chunk at most (1 GiB of singles).
pub const MAX_NUMBERS: usize = 1 << 28;

/// Bytes of workspace that encoding and decoding of a chunk want.
pub const fn work_bytes(chunk: usize, element: Element) -> usize {
    let numbers = chunk / element.width().bytes();
    numbers * 4 + segments::count(numbers) * 16 + (128 << 10)
}

/// Room that a blob may take.
pub const fn bound(chunk: usize, element: Element) -> usize {
    let numbers = chunk / element.width().bytes();
    numbers * 5 / 2 + numbers / 8 + segments::count(numbers) * 4 + rans::OVERHEAD + (8 << 10)
}

/// The square of the L2 norm of a chunk; NaN or infinite if one of its numbers is, or it does not fit.
pub fn norm_squared(element: Element, chunk: &[u8]) -> f64 {
    survey(element, chunk).norm_squared
}

/// Encodes a chunk into `out` (at least [`bound`] bytes), working in `work` (at least [`work_bytes`]).
pub fn encode(
    request: Request,
    context: &mut Context,
    chunk: &[u8],
    work: &mut [u8],
    out: &mut [u8],
) -> Result<Encoded, Refusal> {
    let element = request.element;
    let numbers = chunk.len() / element.width().bytes();
    let roomy = work.len() >= work_bytes(chunk.len(), element) && out.len() >= bound(chunk.len(), element);
    if !chunk.len().is_multiple_of(element.bytes()) || numbers > MAX_NUMBERS || !roomy {
        return Err(Refusal::Size);
    }
    if request.max_error.is_nan() || request.max_error < 0.0 {
        return Err(Refusal::Tolerance);
    }
    match cross::encode(request, context, chunk, work, out) {
        // What codes gave back may be nearly of low rank.
        Some(encoded) if encoded.error == 0.0 || !codes::are_exact(request, chunk, work) => Ok(encoded),
        _ => codes::encode(request, context, chunk, work, out),
    }
}

/// Rebuilds a chunk of exactly `out.len()` bytes, working in `work` (at least [`work_bytes`]); false if the blob is not one of as many.
pub fn decode(blob: &[u8], out: &mut [u8], work: &mut [u8]) -> bool {
    let done = match blob.first() {
        Some(&codes::KIND) => codes::decode(blob, out, work),
        Some(&cross::KIND) => cross::decode(blob, out, work),
        _ => None,
    };
    done.is_some()
}

/// What a blob holds: its element and bytes, if its head is one's.
pub fn describe(blob: &[u8]) -> Option<(Element, usize)> {
    let [_, element, _, _, n @ ..] = blob.first_chunk::<8>()?;
    let element = Element::of(*element)?;
    Some((element, u32::from_le_bytes(*n) as usize * element.width().bytes()))
}

/// Numbers without padding that any bytes are a value of.
trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f64 {}

/// Cuts `count` values off the front of a workspace. What they are is whatever was there.
fn carve<'a, T: Plain>(work: &mut &'a mut [u8], count: usize) -> Option<&'a mut [T]> {
    let (skipped, bytes) = (work.as_ptr().align_offset(align_of::<T>()), count.checked_mul(size_of::<T>())?);
    let (taken, rest) = core::mem::take(work).get_mut(skipped..)?.split_at_mut_checked(bytes)?;
    *work = rest;
    // SAFETY: any bytes are a value of a Plain type; align_to_mut gives only aligned ones.
    let (_, values, _) = unsafe { taken.align_to_mut::<T>() };
    values.get_mut(..count)
}
