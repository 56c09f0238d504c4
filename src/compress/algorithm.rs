//! The algorithms: their names, what settings they take, and how a worker compresses and decompresses one chunk with them. Called by
//! the compressor only. A chunk that an algorithm does not shrink is kept as it is; one that the lossy codec refuses goes through
//! shuffle-lz4: which it was stands in the frame.

use super::Settings;
use super::buffer::Buffer;
use super::foreign::{self, Foreign};
use super::shuffle::Order;
use crate::codec::amplitude::{self, Element, Mode, Request, Width};
use crate::codec::lz4;
use crate::error::Error;
use crate::fail;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How chunks are compressed.
#[derive(Clone, Debug)]
pub enum Algorithm {
    /// Not at all: checksums only.
    None,
    /// LZ4; from level 3 on its HC variant.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Snappy.
    Snappy,
    /// Bytes or bits of numbers reordered, then LZ4.
    ShuffleLz4,
    /// Pcodec, for numbers.
    Pco,
    /// The lossy codec for amplitudes.
    Amplitude,
    /// A program's own.
    Registered(Arc<str>, Foreign),
}

const NAMES: [(&str, Algorithm); 7] = [
    ("none", Algorithm::None),
    ("lz4", Algorithm::Lz4),
    ("zstd", Algorithm::Zstd),
    ("snappy", Algorithm::Snappy),
    ("shuffle-lz4", Algorithm::ShuffleLz4),
    ("pco", Algorithm::Pco),
    ("amplitude", Algorithm::Amplitude),
];
const REGISTERED: u8 = 200;
const IMAGE: &str = "jpeg2000";

impl Algorithm {
    /// Of a name, registered ones included.
    pub fn named(name: &str) -> Result<Self, Error> {
        if let Some((_, algorithm)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(algorithm.clone());
        }
        if name == IMAGE {
            return Err(fail!(
                Unsupported,
                "algorithm 'jpeg2000' is not in this build of qmem: it has no JPEG 2000 encoder; register one with qmem_compressor_register under another name"
            ));
        }
        match foreign::find(name) {
            Some((name, codec)) => Ok(Algorithm::Registered(name, codec)),
            None => Err(fail!(
                Unsupported,
                "algorithm '{name}' is unknown: none, lz4, zstd, snappy, shuffle-lz4, pco, amplitude, or one given to qmem_compressor_register"
            )),
        }
    }

    /// Is it qmem's own?
    pub fn is_built_in(name: &str) -> bool {
        name == IMAGE || NAMES.iter().any(|(known, _)| *known == name)
    }

    /// Of what stands in a compressed buffer.
    pub(super) fn of(tag: u8, name: &[u8]) -> Result<Self, Error> {
        if tag != REGISTERED {
            let known = NAMES.get(usize::from(tag)).filter(|_| name.is_empty());
            return known
                .map(|(_, algorithm)| algorithm.clone())
                .ok_or_else(|| fail!(Corrupt, "the compressed buffer names algorithm {tag}, which no version wrote"));
        }
        let name = core::str::from_utf8(name).map_err(|_| fail!(Corrupt, "the name of the registered codec is no text"))?;
        let Some((name, codec)) = foreign::find(name) else {
            return Err(fail!(
                Unsupported,
                "the buffer was compressed by '{name}': give that codec to qmem_compressor_register first"
            ));
        };
        Ok(Algorithm::Registered(name, codec))
    }

    pub(super) fn tag(&self) -> u8 {
        let same = |known: &Algorithm| core::mem::discriminant(known) == core::mem::discriminant(self);
        NAMES.iter().position(|(_, known)| same(known)).map_or(REGISTERED, |at| at as u8)
    }

    pub(super) fn name_to_store(&self) -> &[u8] {
        if let Algorithm::Registered(name, _) = self { name.as_bytes() } else { &[] }
    }

    /// Does it lose anything?
    pub(super) fn is_lossy(&self) -> bool {
        matches!(self, Algorithm::Amplitude)
    }

    fn name(&self) -> &str {
        match self {
            Algorithm::Registered(name, _) => name,
            known => NAMES.get(usize::from(known.tag())).map_or("", |(name, _)| name),
        }
    }

    /// Are level, tolerance and element ones that it can use?
    pub(super) fn check(&self, settings: &Settings) -> Result<(), Error> {
        let name = self.name();
        let levels = match self {
            Algorithm::None | Algorithm::Snappy | Algorithm::Registered(..) => 0..=0,
            Algorithm::Lz4 => -64..=12,
            Algorithm::Zstd => -7..=22,
            Algorithm::ShuffleLz4 | Algorithm::Pco => 0..=12,
            Algorithm::Amplitude => 0..=2,
        };
        if !levels.contains(&settings.level) {
            let (first, last) = (levels.start(), levels.end());
            return Err(fail!(InvalidArgument, "level = {} is outside {first} to {last}, which '{name}' has", settings.level));
        }
        if !self.is_lossy() {
            if settings.tolerance != 0.0 {
                let tolerance = settings.tolerance;
                return Err(fail!(
                    InvalidArgument,
                    "tolerance = {tolerance} has no meaning for '{name}', which loses nothing; set it to 0"
                ));
            }
        } else if !(settings.tolerance > 0.0 && settings.tolerance < 1.0) {
            let tolerance = settings.tolerance;
            return Err(fail!(
                InvalidArgument,
                "tolerance = {tolerance} is outside (0, 1): '{name}' needs the relative L2 error that it may make"
            ));
        } else if settings.element.is_none() {
            return Err(fail!(
                Unsupported,
                "algorithm '{name}' is for numbers: set element to QMEM_ELEMENT_C64, C128, F32 or F64 instead of QMEM_ELEMENT_BYTES"
            ));
        }
        Ok(())
    }
}

/// How one chunk was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As it is.
    Raw,
    /// By the buffer's algorithm.
    Own,
    /// By shuffle-lz4, because the lossy codec refused it.
    Lossless,
}

impl Method {
    /// Its number in a frame.
    pub fn tag(self) -> u8 {
        self as u8
    }

    /// Of a number.
    pub fn of(tag: u32) -> Option<Self> {
        [Method::Raw, Method::Own, Method::Lossless].into_iter().find(|method| u32::from(method.tag()) == tag)
    }
}

/// LZ4's own bound on one call's input.
const LZ4_MOST: usize = 0x7E00_0000;
/// Bytes that orders of shuffling are tried on.
const SAMPLE: usize = 64 << 10;

/// What one thread compresses and decompresses with.
pub struct Worker {
    algorithm: Algorithm,
    lz4: lz4::Context,
    zstd: Option<(zstd::bulk::Compressor<'static>, zstd::bulk::Decompressor<'static>)>,
    snappy: snap::raw::Encoder,
    /// What was made, by codecs that are given room for it.
    out: Buffer,
    work: Buffer,
    /// What was made by the others.
    given: Vec<u8>,
}

fn failed(name: &str, why: &dyn core::fmt::Display) -> Error {
    fail!(Internal, "{name} failed: {why}")
}

impl Worker {
    /// For compressing.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        Self::with_level(settings.algorithm.clone(), settings.level)
    }

    /// For decompressing.
    pub fn for_reading(algorithm: Algorithm) -> Result<Self, Error> {
        Self::with_level(algorithm, 0)
    }

    fn with_level(algorithm: Algorithm, level: i32) -> Result<Self, Error> {
        let zstd = match algorithm {
            Algorithm::Zstd => {
                let compressor = zstd::bulk::Compressor::new(level).map_err(|e| failed("zstd", &e))?;
                Some((compressor, zstd::bulk::Decompressor::new().map_err(|e| failed("zstd", &e))?))
            }
            _ => None,
        };
        let (lz4, snappy) = (lz4::Context::new(), snap::raw::Encoder::new());
        Ok(Self { algorithm, lz4, zstd, snappy, out: Buffer::new(), work: Buffer::new(), given: Vec::new() })
    }

    /// Compresses a chunk: how, and to how many bytes ([`Self::made`] gives them). `budget`: the squared error that it may make.
    pub fn compress(&mut self, settings: &Settings, chunk: &[u8], budget: f64) -> Result<(Method, usize), Error> {
        let level = settings.level;
        let made = match self.algorithm.clone() {
            Algorithm::None => None,
            Algorithm::Lz4 => {
                let out = self.out.room(lz4_bound(chunk.len()))?;
                lz4_compress(chunk, out, level)
            }
            Algorithm::Zstd => {
                let out = self.out.room(zstd::zstd_safe::compress_bound(chunk.len()))?;
                let Some((zstd, _)) = &mut self.zstd else { return Err(failed("zstd", &"no context")) };
                Some(zstd.compress_to_buffer(chunk, out).map_err(|e| failed("zstd", &e))?)
            }
            Algorithm::Snappy => {
                let out = self.out.room(snap::raw::max_compress_len(chunk.len()))?;
                Some(self.snappy.compress(chunk, out).map_err(|e| failed("snappy", &e))?)
            }
            Algorithm::ShuffleLz4 => self.shuffled(chunk, settings.element, level)?,
            Algorithm::Pco => Some(self.pco(chunk, settings.element, level)?),
            Algorithm::Amplitude => match self.amplitudes(chunk, settings, budget)? {
                None => {
                    let made = self.shuffled(chunk, settings.element, 0)?;
                    return Ok(made
                        .filter(|len| *len < chunk.len())
                        .map_or((Method::Raw, chunk.len()), |len| (Method::Lossless, len)));
                }
                made => made,
            },
            Algorithm::Registered(name, codec) => {
                let made = codec.compress(chunk, &mut self.given);
                Some(made.ok_or_else(|| {
                    fail!(Aborted, "the registered codec '{name}' did not compress a chunk of {} bytes", chunk.len())
                })?)
            }
        };
        Ok(made.filter(|len| *len < chunk.len()).map_or((Method::Raw, chunk.len()), |len| (Method::Own, len)))
    }

    /// The bytes that [`Self::compress`] just made.
    pub fn made<'a>(&'a self, method: Method, chunk: &'a [u8], len: usize) -> &'a [u8] {
        match (method, &self.algorithm) {
            (Method::Raw, _) => chunk,
            (_, Algorithm::Pco | Algorithm::Registered(..)) => &self.given[..len],
            _ => &self.out.bytes()[..len],
        }
    }

    fn amplitudes(&mut self, chunk: &[u8], settings: &Settings, budget: f64) -> Result<Option<usize>, Error> {
        let Some(element) = settings.element else { return Ok(None) };
        // What is no whole element at the end follows the blob as it is.
        let (whole, tail) = chunk.split_at(chunk.len() / element.bytes() * element.bytes());
        let mode = if settings.level == 1 { Mode::Fast } else { Mode::Dense };
        let request = Request { element, max_error: budget.sqrt(), mode };
        let work = self.work.room(amplitude::work_bytes(whole.len(), element))?;
        let out = self.out.room(amplitude::bound(whole.len(), element) + tail.len())?;
        let Ok(done) = amplitude::encode(request, &mut self.lz4, whole, work, out) else { return Ok(None) };
        out[done.len..done.len + tail.len()].copy_from_slice(tail);
        Ok(Some(done.len + tail.len()))
    }

    /// The order that suits the chunk, in one byte, then LZ4.
    fn shuffled(&mut self, chunk: &[u8], element: Option<Element>, level: i32) -> Result<Option<usize>, Error> {
        let fits = |order: &Order| match (order, element.map(Element::width)) {
            (Order::Plain, _) | (_, None) => true,
            (Order::Bytes(width) | Order::Bits(width), Some(own)) => *width == own.bytes(),
        };
        let middle = (chunk.len().saturating_sub(SAMPLE) / 2) & !63;
        let sample = &chunk[middle..(middle + SAMPLE).min(chunk.len())];
        let work = self.work.room(chunk.len())?;
        let out = self.out.room(1 + lz4_bound(chunk.len()))?;
        let mut cost = |order: &Order| {
            order.shuffle(sample, &mut work[..sample.len()]);
            lz4_compress(&work[..sample.len()], &mut out[1..], 0).unwrap_or(usize::MAX)
        };
        let Some(order) = Order::ALL.into_iter().filter(fits).min_by_key(&mut cost) else { return Ok(None) };
        let tag = Order::ALL.iter().position(|known| *known == order).unwrap_or_default();
        order.shuffle(chunk, work);
        out[0] = tag as u8;
        Ok(lz4_compress(work, &mut out[1..], level).map(|len| 1 + len))
    }

    fn pco(&mut self, chunk: &[u8], element: Option<Element>, level: i32) -> Result<usize, Error> {
        fn make<const N: usize, T: pco::data_types::Number>(
            bytes: &[u8],
            read: fn([u8; N]) -> T,
            level: i32,
        ) -> Result<Vec<u8>, Error> {
            let level = if level == 0 { pco::DEFAULT_COMPRESSION_LEVEL } else { level as usize };
            let config = pco::ChunkConfig::default().with_compression_level(level).with_enable_8_bit(true);
            let numbers: Vec<T> = bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect();
            pco::standalone::simple_compress(&numbers, &config).map_err(|e| failed("pco", &e))
        }
        let width = element.map(Element::width);
        let tail = chunk.len() % width.map_or(1, Width::bytes);
        let (numbers, rest) = chunk.split_at(chunk.len() - tail);
        let mut made = match width {
            None => make(numbers, u8::from_le_bytes, level)?,
            Some(Width::Single) => make(numbers, f32::from_le_bytes, level)?,
            Some(Width::Double) => make(numbers, f64::from_le_bytes, level)?,
        };
        made.extend_from_slice(rest);
        self.given = made;
        Ok(self.given.len())
    }

    /// Decompresses a chunk to exactly `to.len()` bytes; false if the body is none of as many.
    pub fn decompress(&mut self, element: Option<Element>, method: Method, body: &[u8], to: &mut [u8]) -> bool {
        match (method, self.algorithm.clone()) {
            (Method::Raw, _) => {
                let whole = body.len() == to.len();
                if whole {
                    to.copy_from_slice(body);
                }
                whole
            }
            (Method::Own, Algorithm::None) => false,
            (Method::Own, Algorithm::Lz4) => un_lz4(body, to),
            (Method::Own, Algorithm::Zstd) => {
                let len = to.len();
                self.zstd.as_mut().is_some_and(|(_, zstd)| zstd.decompress_to_buffer(body, to).is_ok_and(|n| n == len))
            }
            (Method::Own, Algorithm::Snappy) => {
                let right = snap::raw::decompress_len(body).is_ok_and(|n| n == to.len());
                right && snap::raw::Decoder::new().decompress(body, to).is_ok()
            }
            (Method::Own, Algorithm::Pco) => un_pco(element, body, to),
            (Method::Own, Algorithm::Amplitude) => self.un_amplitudes(element, body, to),
            (Method::Own, Algorithm::Registered(_, codec)) => codec.decompress(body, to),
            (Method::Own, Algorithm::ShuffleLz4) | (Method::Lossless, Algorithm::Amplitude) => self.unshuffle(body, to),
            (Method::Lossless, _) => false,
        }
    }

    fn unshuffle(&mut self, body: &[u8], to: &mut [u8]) -> bool {
        let Some((order, body)) = body.split_first().and_then(|(tag, body)| Some((Order::ALL.get(usize::from(*tag))?, body)))
        else {
            return false;
        };
        let Ok(work) = self.work.room(to.len()) else { return false };
        if !un_lz4(body, work) {
            return false;
        }
        order.unshuffle(work, to);
        true
    }

    fn un_amplitudes(&mut self, element: Option<Element>, body: &[u8], to: &mut [u8]) -> bool {
        let Some(element) = element else { return false };
        let (whole, tail) = to.split_at_mut(to.len() / element.bytes() * element.bytes());
        let Some((blob, rest)) = body.len().checked_sub(tail.len()).and_then(|at| body.split_at_checked(at)) else {
            return false;
        };
        tail.copy_from_slice(rest);
        let same = amplitude::describe(blob) == Some((element, whole.len()));
        let Ok(work) = self.work.room(amplitude::work_bytes(whole.len(), element)) else { return false };
        same && amplitude::decode(blob, whole, work)
    }
}

fn un_pco(element: Option<Element>, body: &[u8], to: &mut [u8]) -> bool {
    fn take<const N: usize, T: pco::data_types::Number>(body: &[u8], to: &mut [u8], write: fn(T) -> [u8; N]) -> bool {
        let to = to.as_chunks_mut::<N>().0;
        let mut numbers = vec![T::default(); to.len()];
        // The checksum was right, so this is either whole or made on purpose: then the library may give up in its own way.
        let done = catch_unwind(AssertUnwindSafe(|| pco::standalone::simple_decompress_into(body, &mut numbers)));
        let whole = matches!(done, Ok(Ok(progress)) if progress.n_processed == numbers.len() && progress.finished);
        for (to, number) in to.iter_mut().zip(numbers) {
            *to = write(number);
        }
        whole
    }
    let width = element.map(Element::width);
    let tail = to.len() % width.map_or(1, Width::bytes);
    let (numbers, rest) = to.split_at_mut(to.len() - tail);
    let Some((body, last)) = body.len().checked_sub(tail).and_then(|at| body.split_at_checked(at)) else { return false };
    rest.copy_from_slice(last);
    match width {
        None => take(body, numbers, u8::to_le_bytes),
        Some(Width::Single) => take(body, numbers, f32::to_le_bytes),
        Some(Width::Double) => take(body, numbers, f64::to_le_bytes),
    }
}

fn un_lz4(body: &[u8], to: &mut [u8]) -> bool {
    lz4_flex::block::decompress_into(body, to).is_ok_and(|n| n == to.len())
}

fn lz4_bound(size: usize) -> usize {
    size + size / 255 + 16
}

/// One LZ4 block; None if it does not fit or there is too much of it.
fn lz4_compress(input: &[u8], out: &mut [u8], level: i32) -> Option<usize> {
    if input.len() > LZ4_MOST {
        return None;
    }
    let room = out.len().min(i32::MAX as usize) as i32;
    let (from, to, size) = (input.as_ptr().cast(), out.as_mut_ptr().cast(), input.len() as i32);
    // SAFETY: both slices are live and as long as said.
    let made = unsafe {
        match level {
            3.. => lz4_sys::LZ4_compress_HC(from, to, size, room, level),
            // Levels 0, 1 and 2 are 1, the usual acceleration; below, faster.
            _ => lz4_sys::LZ4_compress_fast(from, to, size, room, (1 - level).max(1)),
        }
    };
    usize::try_from(made).ok().filter(|n| *n > 0)
}
