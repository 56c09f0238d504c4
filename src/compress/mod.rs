//! Compressors for whole buffers: frames of independent chunks, checksummed and self-describing, several chunks at a time; and a
//! deduplicating store. Called by the C API and the floors above; never by heap or pager, since everything here may allocate. What
//! shrinks the bytes is in `codec` or in crates; this floor frames it.

mod algorithm;
mod buffer;
mod crew;
pub mod dedup;
mod foreign;
mod frame;
mod shuffle;

pub use algorithm::Algorithm;
pub use foreign::{Foreign, register};

use crate::codec::amplitude::{self, Element};
use crate::config::{COMPRESS_CHUNK, COMPRESS_CHUNK_DEFAULT, COMPRESS_THREADS};
use crate::error::Error;
use crate::fail;
use algorithm::Worker;
use crew::Turn;
use frame::{Head, Opening};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a compressor is made of. Zero is the default of every field.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How chunks are compressed.
    pub algorithm: Algorithm,
    /// Effort; what it means and its bounds are the algorithm's.
    pub level: i32,
    /// Bytes that are compressed on their own.
    pub chunk_size: usize,
    /// Chunks at a time.
    pub threads: usize,
    /// What the bytes are; None is any bytes.
    pub element: Option<Element>,
    /// Of lossy algorithms: the L2 norm of the error, relative to that of the whole input.
    pub tolerance: f64,
}

/// A compressor: its settings, and what one of the last call's threads worked with. Any number of threads may use one.
#[derive(Clone)]
pub struct Compressor {
    settings: Settings,
    /// For the next call, which need not get contexts and the kernel's zero pages again.
    kept: Arc<Mutex<Option<Worker>>>,
}

impl core::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.settings.fmt(f)
    }
}

impl Compressor {
    /// Checks the settings.
    pub fn new(mut settings: Settings) -> Result<Self, Error> {
        settings.algorithm.check(&settings)?;
        let (least, most) = COMPRESS_CHUNK;
        if settings.chunk_size == 0 {
            settings.chunk_size = COMPRESS_CHUNK_DEFAULT;
        }
        if !(least..=most).contains(&settings.chunk_size) {
            return Err(fail!(InvalidArgument, "chunk_size = {} is outside {least} to {most} bytes", settings.chunk_size));
        }
        let element = settings.element.map_or(1, Element::bytes);
        if !settings.chunk_size.is_multiple_of(element) {
            let size = settings.chunk_size;
            return Err(fail!(InvalidArgument, "chunk_size = {size} is no multiple of the element's {element} bytes"));
        }
        if settings.threads > COMPRESS_THREADS {
            return Err(fail!(InvalidArgument, "threads = {} is outside 0 to {COMPRESS_THREADS}", settings.threads));
        }
        if settings.threads == 0 {
            settings.threads = std::thread::available_parallelism().map_or(1, usize::from).min(COMPRESS_THREADS);
        }
        Ok(Self { settings, kept: Arc::default() })
    }

    fn kept(&self) -> MutexGuard<'_, Option<Worker>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner) // nothing panics while it is held
    }

    /// Room that is always enough for `size` bytes; usize::MAX if there is no such number.
    pub fn bound(&self, size: usize) -> usize {
        let chunks = size.div_ceil(self.settings.chunk_size);
        let heads = chunks.checked_mul(Head::BYTES).and_then(|n| n.checked_add(Opening::MOST));
        heads.and_then(|n| n.checked_add(size)).unwrap_or(usize::MAX)
    }

    /// Compresses `input` into `out`; how many bytes that gave.
    pub fn compress(&self, input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let (room, bound) = (out.len(), self.bound(input.len()));
        let full =
            || fail!(Limit, "the output does not fit into {room} bytes; {bound} are enough for any {} of input", input.len());
        let settings = &self.settings;
        let opening = Opening::of(settings, input.len());
        let (head, rest) = out.split_at_mut_checked(opening.len()).ok_or_else(full)?;
        opening.write(head);
        let budget = self.error_budget(input);
        let chunks = Turn::new((input.chunks(settings.chunk_size).enumerate(), ()));
        let places = Turn::new((rest, head.len()));
        let count = input.len().div_ceil(settings.chunk_size);
        crew::run(settings.threads.min(count), || {
            // However this thread ends: nobody waits for a turn that does not come.
            let leaving = places.leaving();
            let kept = self.kept().take();
            let mut worker = kept.map_or_else(|| Worker::new(settings), Ok)?;
            loop {
                let Some((index, chunk)) = chunks.with(|(chunks, ())| chunks.next()) else {
                    *self.kept() = Some(worker);
                    leaving.in_order();
                    return Ok(());
                };
                let (method, len) = worker.compress(settings, chunk, budget * chunk.len() as f64)?;
                // Places are given in the order of the chunks; what is written there is written by all at once.
                let place = places.in_order(index, |(rest, written)| {
                    let (place, after) = core::mem::take(rest).split_at_mut_checked(Head::BYTES + len).ok_or_else(full)?;
                    (*rest, *written) = (after, *written + place.len());
                    Ok(place)
                })?;
                frame::write(place, index, method, worker.made(method, chunk, len));
            }
        })?;
        Ok(places.into_inner().1)
    }

    /// The squared error that each byte may bring, of a lossy algorithm: it is the same everywhere, which costs least.
    fn error_budget(&self, input: &[u8]) -> f64 {
        let Some(element) = self.settings.element.filter(|_| self.settings.algorithm.is_lossy() && !input.is_empty()) else {
            return 0.0;
        };
        let chunks = Turn::new((input.chunks(self.settings.chunk_size), 0.0));
        let count = input.len().div_ceil(self.settings.chunk_size);
        let done = crew::run(self.settings.threads.min(count), || {
            while let Some(chunk) = chunks.with(|(chunks, _)| chunks.next()) {
                let norm = amplitude::norm_squared(element, chunk);
                chunks.with(|(_, sum)| *sum += norm);
            }
            Ok(())
        });
        // A norm that is no number gives no budget: such chunks go lossless.
        let norm = if done.is_ok() { chunks.into_inner().1 } else { 0.0 };
        // Less a little, for what summing lost.
        let budget = self.settings.tolerance * self.settings.tolerance * norm / input.len() as f64 * (1.0 - 1e-9);
        if budget.is_finite() { budget } else { 0.0 }
    }

    /// Decompresses what any compressor made; how many bytes that gave.
    pub fn decompress(&self, input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        decompress(input, out, self.settings.threads)
    }
}

/// Bytes that decompressing will give.
pub fn decompressed_size(input: &[u8]) -> Result<usize, Error> {
    Ok(Opening::read(input)?.0.size)
}

/// Decompresses with so many threads.
pub fn decompress(input: &[u8], out: &mut [u8], threads: usize) -> Result<usize, Error> {
    let (opening, frames) = Opening::read(input)?;
    let size = opening.size;
    let room = out.len();
    let out = out.get_mut(..size).ok_or_else(|| fail!(Limit, "{size} bytes do not fit into the {room} of dst"))?;
    let algorithm = opening.algorithm()?;
    let count = size.div_ceil(opening.chunk_size);
    let work = Turn::new((out.chunks_mut(opening.chunk_size).enumerate(), frames));
    crew::run(threads.min(count), || {
        let mut worker = Worker::for_reading(algorithm.clone())?;
        loop {
            let next = work.with(|(chunks, rest)| {
                let Some((index, to)) = chunks.next() else { return Ok(None) };
                let frame = frame::take(rest, index)?;
                Ok::<_, Error>(Some((index, to, frame)))
            })?;
            let Some((index, to, frame)) = next else { return Ok(()) };
            frame.check(index)?;
            if !worker.decompress(opening.element, frame.method, frame.body, to) {
                return Err(fail!(Corrupt, "frame {index} of {count} cannot be decoded, although its checksum is right"));
            }
        }
    })?;
    let (_, rest) = work.into_inner();
    if !rest.is_empty() {
        return Err(fail!(Corrupt, "{} bytes follow the last of {count} frames", rest.len()));
    }
    Ok(size)
}
