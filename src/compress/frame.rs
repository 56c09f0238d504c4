//! The bytes around compressed chunks: an opening that says what follows, and before each chunk a head with its checksum. Every byte
//! of a compressed buffer is covered by one. Called by the compressor only.
//!
//! Opening, little-endian: "QMEMCMP1"; u8 algorithm; u8 element (255: bytes); u8 length of the name; five zeros; u64 size; u64 chunk
//! size; the name of a registered codec; u64 XXH3 of all before. Frame: u32 method; u32 zero; u64 length; u64 XXH3 of the body, seeded
//! with the XXH3 of the sixteen bytes before and the frame's number; the body.
#![forbid(unsafe_code)]

use super::algorithm::{Algorithm, Method};
use super::{Settings, foreign};
use crate::codec::amplitude::Element;
use crate::codec::hash::{sum64, sum64_from};
use crate::config::COMPRESS_CHUNK;
use crate::error::Error;
use crate::fail;

const MAGIC: &[u8; 8] = b"QMEMCMP1";
const FIXED: usize = 32;
const BYTES: u8 = 255;

/// What a compressed buffer begins with.
pub struct Opening<'a> {
    tag: u8,
    name: &'a [u8],
    /// What the bytes are.
    pub element: Option<Element>,
    /// Bytes of all chunks.
    pub size: usize,
    /// Bytes of each but the last.
    pub chunk_size: usize,
}

impl<'a> Opening<'a> {
    /// Bytes of the longest.
    pub const MOST: usize = FIXED + foreign::MAX_NAME + 8;

    /// Of a buffer to be.
    pub fn of(settings: &'a Settings, size: usize) -> Self {
        let name = settings.algorithm.name_to_store();
        Self { tag: settings.algorithm.tag(), name, element: settings.element, size, chunk_size: settings.chunk_size }
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        FIXED + self.name.len() + 8
    }

    /// Writes it to exactly as many bytes.
    pub fn write(&self, to: &mut [u8]) {
        let (text, sum) = to.split_at_mut(FIXED + self.name.len());
        let (fixed, name) = text.split_at_mut(FIXED);
        fixed.fill(0);
        fixed[..8].copy_from_slice(MAGIC);
        fixed[8..11].copy_from_slice(&[self.tag, self.element.map_or(BYTES, Element::tag), self.name.len() as u8]);
        fixed[16..24].copy_from_slice(&(self.size as u64).to_le_bytes());
        fixed[24..].copy_from_slice(&(self.chunk_size as u64).to_le_bytes());
        name.copy_from_slice(self.name);
        sum.copy_from_slice(&sum64(text).to_le_bytes());
    }

    /// Reads it, and gives what follows.
    pub fn read(input: &'a [u8]) -> Result<(Self, &'a [u8]), Error> {
        let cut = || fail!(Corrupt, "{} bytes are too few for what a compressed buffer begins with", input.len());
        let fixed: &[u8; FIXED] = input.first_chunk().ok_or_else(cut)?;
        if !fixed.starts_with(MAGIC) {
            return Err(fail!(Corrupt, "this is no buffer that qmem_compress made: it does not begin with QMEMCMP1"));
        }
        let [_, _, _, _, _, _, _, _, tag, element, length, zeros @ ..] = *fixed;
        let zeros: [u8; 5] = *zeros.first_chunk().ok_or_else(cut)?;
        let (text, rest) = input.split_at_checked(FIXED + usize::from(length)).ok_or_else(cut)?;
        let (sum, frames) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        if u64::from_le_bytes(*sum) != sum64(text) {
            return Err(fail!(Corrupt, "the opening of the compressed buffer is damaged: its checksum is wrong"));
        }
        let word =
            |at: usize| text[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).and_then(|w| usize::try_from(w).ok());
        let known = if element == BYTES { Some(None) } else { Element::of(element).map(Some) };
        let (Some(size), Some(chunk_size), Some(element), [0, 0, 0, 0, 0]) = (word(16), word(24), known, zeros) else {
            return Err(fail!(Corrupt, "the opening of the compressed buffer holds a number that no version wrote"));
        };
        if !(COMPRESS_CHUNK.0..=COMPRESS_CHUNK.1).contains(&chunk_size) {
            return Err(fail!(Corrupt, "chunks of {chunk_size} bytes are outside {} to {}", COMPRESS_CHUNK.0, COMPRESS_CHUNK.1));
        }
        Ok((Self { tag, name: &text[FIXED..], element, size, chunk_size }, frames))
    }

    /// How its chunks were compressed.
    pub fn algorithm(&self) -> Result<Algorithm, Error> {
        Algorithm::of(self.tag, self.name)
    }
}

/// What is before a compressed chunk.
pub struct Head;

impl Head {
    /// Its length.
    pub const BYTES: usize = 24;
}

/// A compressed chunk as it lies in a buffer.
pub struct Frame<'a> {
    /// How this chunk was compressed.
    pub method: Method,
    /// The compressed bytes.
    pub body: &'a [u8],
    head: [u8; 16],
    sum: u64,
}

fn sum(head: &[u8; 16], index: usize, body: &[u8]) -> u64 {
    sum64_from(sum64_from(index as u64, head), body)
}

/// Writes a frame to exactly its bytes.
pub fn write(to: &mut [u8], index: usize, method: Method, body: &[u8]) {
    let (head, place) = to.split_at_mut(Head::BYTES);
    let mut first = [0u8; 16];
    first[..4].copy_from_slice(&u32::from(method.tag()).to_le_bytes());
    first[8..].copy_from_slice(&(body.len() as u64).to_le_bytes());
    head[..16].copy_from_slice(&first);
    head[16..].copy_from_slice(&sum(&first, index, body).to_le_bytes());
    place.copy_from_slice(body);
}

/// Takes the next frame off the front; it is still to be checked.
pub fn take<'a>(rest: &mut &'a [u8], index: usize) -> Result<Frame<'a>, Error> {
    let cut = || fail!(Corrupt, "the compressed buffer ends inside frame {index}");
    let (head, body) = rest.split_first_chunk::<{ Head::BYTES }>().ok_or_else(cut)?;
    let (Some(first), Some(sum)) = (head.first_chunk::<16>(), head.last_chunk::<8>()) else { return Err(cut()) };
    let [m0, m1, m2, m3, 0, 0, 0, 0, length @ ..] = *first else {
        return Err(fail!(Corrupt, "the head of frame {index} is damaged"));
    };
    let method =
        Method::of(u32::from_le_bytes([m0, m1, m2, m3])).ok_or_else(|| fail!(Corrupt, "the head of frame {index} is damaged"))?;
    let length = usize::try_from(u64::from_le_bytes(length)).map_err(|_| cut())?;
    let (body, after) = body.split_at_checked(length).ok_or_else(cut)?;
    *rest = after;
    Ok(Frame { method, body, head: *first, sum: u64::from_le_bytes(*sum) })
}

impl Frame<'_> {
    /// Is it what was written as this frame?
    pub fn check(&self, index: usize) -> Result<(), Error> {
        if sum(&self.head, index, self.body) == self.sum {
            Ok(())
        } else {
            Err(fail!(Corrupt, "frame {index} is damaged: its checksum is wrong"))
        }
    }
}
