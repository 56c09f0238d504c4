//! Chunks as multiples of a step. The step comes from `step`, the codes from `kernel`; segments that repeat others are left out
//! (`segments`); of the rest, the upper eight bits of each code make the plane, which is stored as it is, through LZ4 or through
//! `rans`, and the lower ones (none, two, four or eight) follow as they are. Few codes do not fit: they are listed. Called by the face.
//!
//! Blob, little-endian: kind, element, plane's form with flag 4 for a table, lower bits of a code (one byte each); u32 numbers; f64
//! step; u32 bytes of the list; u32 bytes of the plane; then the table of segments (u32 each), the list (numbers from one to the
//! next, code; both as `varint` writes them), the lower bits, the plane.
#![forbid(unsafe_code)]

use super::kernel::{self, Tally, dequantise, quantise};
use super::passes;
use super::rans::{self, Decoder};
use super::segments::{self, SEGMENT};
use super::step::{self, Grid, SAMPLE, Sample};
use super::{Element, Encoded, Mode, Refusal, Request, Width, carve, varint};
use crate::codec::lz4::Context;
use lz4_flex::block::{compress_into_with_table, decompress_into, get_maximum_output_size};

/// First byte of a blob.
pub const KIND: u8 = 1;
const HEAD: usize = 24;
const TABLE: u8 = 4;
/// Times that a grid is made finer, or a step, before the chunk is given up.
const TRIES: usize = 8;
/// Symbols that LZ4 is tried on.
const PROBE: usize = 4096;
/// One code in so many may be listed instead of widening all of them.
const RARE: usize = 64;
/// Codes that are looked at together for one to list.
const PART: usize = 128;
/// Bits that a listed code costs, about; bytes at most.
const LISTED_BITS: f64 = 28.0;
const LISTED_BYTES: usize = 10;

/// Forms of the plane.
const RAW: u8 = 0;
const RANS: u8 = 1;
const LZ4: u8 = 2;
const CONSTANT: u8 = 3;

/// Encodes a chunk.
pub fn encode(
    request: Request,
    context: &mut Context,
    chunk: &[u8],
    mut work: &mut [u8],
    out: &mut [u8],
) -> Result<Encoded, Refusal> {
    let width = request.element.width();
    let n = chunk.len() / width.bytes();
    let codes = carve::<i16>(&mut work, n.max(SAMPLE)).ok_or(Refusal::Size)?;
    let (step, tally) = codes_within(request, chunk, codes, work)?;
    let error = upper_bound(width, tally, n, step).sqrt();
    let codes = codes.get(..n).ok_or(Refusal::Size)?;
    let len = write(request, context, Chunk { bytes: chunk, codes, step, tally }, work, out).ok_or(Refusal::Tolerance)?;
    Ok(Encoded { len, error: error.next_up().min(request.max_error) * f64::from(u8::from(tally.inexact)) })
}

/// The squared error with what summing it may have lost, and what squares lose that are no normal numbers.
fn upper_bound(width: Width, tally: Tally, numbers: usize, step: f64) -> f64 {
    let slack = match width {
        Width::Double => 1e-9,
        Width::Single => 1e-4,
    };
    if tally.inexact { (tally.sum + numbers as f64 * 1e-30) * (1.0 + slack) * step * step + f64::MIN_POSITIVE } else { 0.0 }
}

/// The grid that the numbers lie on, if they do and it is not much finer than it need be; leaves the codes at it.
fn on_grid(width: Width, chunk: &[u8], sample: &Sample, smooth: f64, codes: &mut [i16]) -> Option<(f64, Tally)> {
    let codes = codes.get_mut(..chunk.len() / width.bytes())?;
    let mut grid = Grid::of(width, sample, step::largest_code(width));
    for _ in 0..TRIES {
        let found = grid.filter(|g| step::may_be_found(width, g.step()) && (g.step() * 8.0 >= smooth || g.is_coarse()))?;
        let tally = quantise(width, chunk, found.step(), codes);
        let exact = !tally.inexact && tally.sum == 0.0;
        let clipped = tally.min == i16::MIN || tally.max == i16::MAX;
        let off = if exact && !clipped { None } else { found.first_off(width, chunk, codes) };
        if exact && off.is_none() {
            return Some((found.step(), tally));
        }
        grid = found.and(off?);
    }
    None
}

/// Are the numbers encoded without any error?
pub fn are_exact(request: Request, chunk: &[u8], mut work: &mut [u8]) -> bool {
    let width = request.element.width();
    let n = chunk.len() / width.bytes();
    let mut look = || {
        let codes = carve::<i16>(&mut work, n.max(SAMPLE))?;
        let room = carve::<u8>(&mut work, SAMPLE * 8)?;
        let sample = step::sample(request.element, chunk, room)?;
        on_grid(width, chunk, &sample, step::smooth(n.max(1), request.max_error * request.max_error), codes)
    };
    look().is_some()
}

/// Finds a step whose error is allowed and leaves the codes at it.
fn codes_within(request: Request, chunk: &[u8], codes: &mut [i16], mut work: &mut [u8]) -> Result<(f64, Tally), Refusal> {
    let width = request.element.width();
    let n = chunk.len() / width.bytes();
    let room = carve::<u8>(&mut work, SAMPLE * 8).ok_or(Refusal::Size)?;
    let sample = step::sample(request.element, chunk, room).ok_or(Refusal::Size)?;
    let allowed = request.max_error * request.max_error;
    let smooth = step::smooth(n.max(1), allowed);
    if let Some(exact) = on_grid(width, chunk, &sample, smooth, codes) {
        return Ok(exact);
    }
    let mut wanted = step::coarsen(width, &sample, smooth, allowed, codes);
    for attempt in 0..=TRIES {
        if attempt == TRIES {
            wanted = 1.999 * (allowed / n as f64).sqrt(); // no number is off by more than half a step: this one cannot fail
        }
        let step = step::shorten(wanted);
        if !step::may_be_chosen(width, step) {
            return Err(Refusal::Tolerance);
        }
        let tally = quantise(width, chunk, step, codes.get_mut(..n).ok_or(Refusal::Size)?);
        let made = upper_bound(width, tally, n, step);
        if !made.is_finite() {
            return Err(Refusal::NotFinite);
        }
        if made <= allowed {
            return Ok((step, tally));
        }
        wanted = step * (allowed / made).sqrt().max(0.25) * 0.995;
    }
    Err(Refusal::Tolerance)
}

/// A chunk and what became of it.
struct Chunk<'a> {
    bytes: &'a [u8],
    codes: &'a [i16],
    step: f64,
    tally: Tally,
}

/// Lower bits of a code that do not go through the plane: 0, 2, 4 or 8.
fn lower_bits(mode: Mode, codes: &[i16], tally: Tally) -> u32 {
    let fits = |shift: u32| i8::try_from(tally.min >> shift).is_ok() && i8::try_from(tally.max >> shift).is_ok();
    let outside = |shift: u32| if fits(shift) { 0 } else { passes::outside(codes, shift) };
    let without = outside(0);
    if without == 0 || mode == Mode::Fast {
        return [0, 2, 4].into_iter().find(|shift| outside(*shift) <= codes.len() / RARE).unwrap_or(8);
    }
    // Lower bits as they are cost more than their entropy; listed codes cost a few bytes each.
    let cost = |shift: u32| {
        let mut counts: rans::Counts = [0; 256];
        let mut sampled = 0;
        for part in codes.chunks(256).step_by(64) {
            sampled += part.len();
            for code in part {
                counts[usize::from((code >> shift).clamp(-128, 127) as u8)] += 1;
            }
        }
        let symbols = rans::estimate(&counts) as f64 * 8.0 / sampled as f64;
        let listed = outside(shift) as f64 / codes.len() as f64;
        if listed > 1.0 / RARE as f64 { f64::MAX } else { symbols + f64::from(shift) + listed * LISTED_BITS }
    };
    [0, 2, 4].into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).filter(|shift| cost(*shift) < f64::MAX).unwrap_or(8)
}

/// Writes the blob; its length. None if too many codes do not fit.
fn write(request: Request, context: &mut Context, chunk: Chunk, mut work: &mut [u8], out: &mut [u8]) -> Option<usize> {
    let (n, count) = (chunk.codes.len(), segments::count(chunk.codes.len()));
    let table = carve::<u32>(&mut work, count)?;
    let sums = carve::<u64>(&mut work, count)?;
    let own = segments::find(chunk.codes, request.element.numbers(), table, sums);
    let bits = lower_bits(request.mode, chunk.codes, chunk.tally);
    let plane = carve::<u8>(&mut work, n)?;
    let lower = carve::<u8>(&mut work, n * bits as usize / 8 + count)?;
    let mut at = HEAD;
    if own < count {
        for (to, entry) in out.get_mut(at..at + count * 4)?.as_chunks_mut::<4>().0.iter_mut().zip(table.iter()) {
            *to = entry.to_le_bytes();
        }
        at += count * 4;
    }
    let list = out.get_mut(at..)?;
    let split = split(request.element.width(), &chunk, table, bits, plane, lower, list)?;
    at += split.list;
    out.get_mut(at..at + split.lower)?.copy_from_slice(lower.get(..split.lower)?);
    at += split.lower;
    let (form, len) = write_plane(request.mode, context, plane.get(..split.plane)?, out.get_mut(at..)?)?;
    let head = out.get_mut(..HEAD)?;
    let flag = if own < count { TABLE } else { 0 };
    head.get_mut(..4)?.copy_from_slice(&[KIND, request.element.tag(), form | flag, bits as u8]);
    head.get_mut(4..8)?.copy_from_slice(&u32::try_from(n).ok()?.to_le_bytes());
    head.get_mut(8..16)?.copy_from_slice(&chunk.step.to_le_bytes());
    head.get_mut(16..20)?.copy_from_slice(&u32::try_from(split.list).ok()?.to_le_bytes());
    head.get_mut(20..24)?.copy_from_slice(&u32::try_from(len).ok()?.to_le_bytes());
    Some(at + len)
}

/// Bytes of what [`split`] wrote.
struct Split {
    list: usize,
    plane: usize,
    lower: usize,
}

/// Splits the codes of the segments that have their own into plane, lower bits and list.
fn split(
    width: Width,
    chunk: &Chunk,
    table: &[u32],
    bits: u32,
    plane: &mut [u8],
    lower: &mut [u8],
    list: &mut [u8],
) -> Option<Split> {
    let mut done = Split { list: 0, plane: 0, lower: 0 };
    let most = (chunk.codes.len() / RARE + 64) * LISTED_BYTES;
    let mut last = 0;
    for (s, codes) in chunk.codes.chunks(SEGMENT).enumerate() {
        if *table.get(s)? != 0 {
            continue;
        }
        let to = plane.get_mut(done.plane..done.plane + codes.len())?;
        done.plane += codes.len();
        if !passes::narrow(codes, bits, to) {
            // Few are off, so most parts have none.
            for (p, part) in codes.chunks(PART).enumerate().filter(|(_, part)| passes::any_off(part, bits)) {
                for (i, code) in part.iter().enumerate().filter(|(_, c)| listed(**c, bits)) {
                    let index = s * SEGMENT + p * PART + i;
                    let k = kernel::code(width, kernel::number(width, chunk.bytes, index)?, chunk.step)?;
                    if f64::from(k.abs()) > step::largest_code(width) || done.list + LISTED_BYTES > most {
                        return None;
                    }
                    debug_assert!(i16::try_from(k).map_or(*code == i16::MIN || *code == i16::MAX, |k| k == *code));
                    done.list = varint::write((index - last) as u32, list, done.list)?;
                    done.list = varint::write((k << 1 ^ k >> 31) as u32, list, done.list)?;
                    last = index;
                }
            }
        }
        let len = lower_bytes(codes.len(), bits);
        write_lower(codes, bits, lower.get_mut(done.lower..done.lower + len)?);
        done.lower += len;
    }
    Some(done)
}

/// Does a code not fit, so that it goes to the list?
fn listed(code: i16, bits: u32) -> bool {
    i8::try_from(code >> bits).is_err() || code == i16::MIN || code == i16::MAX
}

/// Bytes that the lower bits of so many codes take.
fn lower_bytes(codes: usize, bits: u32) -> usize {
    (codes * bits as usize).div_ceil(8)
}

fn write_lower(codes: &[i16], bits: u32, to: &mut [u8]) {
    match bits {
        0 => {}
        2 => passes::crumbs(codes, to),
        4 => passes::nibbles(codes, to),
        _ => passes::low_bytes(codes, to),
    }
}

/// Codes of their upper and lower bits.
fn join(upper: &[u8], bits: u32, lower: &[u8], codes: &mut [i16]) {
    match bits {
        0 => passes::widen(upper, codes),
        2 => passes::widen_crumbs(upper, lower, codes),
        4 => passes::widen_nibbles(upper, lower, codes),
        _ => passes::widen_bytes(upper, lower, codes),
    }
}

/// The plane in the form that suits it: which, and its length.
fn write_plane(mode: Mode, context: &mut Context, plane: &[u8], out: &mut [u8]) -> Option<(u8, usize)> {
    let counts = match (mode, plane) {
        (_, []) => return Some((RAW, 0)),
        (_, [first, rest @ ..]) if rest.iter().all(|s| s == first) => {
            *out.first_mut()? = *first;
            return Some((CONSTANT, 1));
        }
        (Mode::Fast, _) => None,
        (Mode::Dense, _) => Some(rans::count(plane)),
    };
    let coded = counts.as_ref().map_or(plane.len(), rans::estimate);
    // Repetitions show in any few thousand symbols, if there are many.
    let middle = plane.len() / 2;
    let probe = plane.get(middle..(middle + PROBE).min(plane.len()))?;
    let room = out.get_mut(..get_maximum_output_size(plane.len()))?;
    let repeats = |n: &usize| (*n as u64) * (plane.len() as u64) * 10 < (coded as u64) * (probe.len() as u64) * 9;
    if compress_into_with_table(probe, room, &mut context.table).ok().filter(repeats).is_some() {
        let len = compress_into_with_table(plane, room, &mut context.table).ok()?;
        if len < coded {
            return Some((LZ4, len));
        }
    }
    if let Some(len) = counts.and_then(|counts| rans::encode(plane, &counts, out)).filter(|len| *len < plane.len()) {
        return Some((RANS, len));
    }
    out.get_mut(..plane.len())?.copy_from_slice(plane);
    Some((RAW, plane.len()))
}

/// A blob taken apart.
struct Parts<'a> {
    element: Element,
    form: u8,
    bits: u32,
    numbers: usize,
    step: f64,
    table: Option<&'a [[u8; 4]]>,
    list: &'a [u8],
    lower: &'a [u8],
    plane: &'a [u8],
    /// Symbols that the plane must give.
    own: usize,
}

impl<'a> Parts<'a> {
    fn of(blob: &'a [u8]) -> Option<Self> {
        let (head, rest) = blob.split_first_chunk::<HEAD>()?;
        let word = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?) as usize);
        let (numbers, bits) = (word(4)?, u32::from(*head.get(3)?));
        let (element, form) = (Element::of(*head.get(1)?)?, *head.get(2)?);
        let step = f64::from_le_bytes(*head.get(8..)?.first_chunk()?);
        if !matches!(bits, 0 | 2 | 4 | 8) || form > (TABLE | CONSTANT) || !step::may_be_found(element.width(), step) {
            return None;
        }
        let count = segments::count(numbers);
        let (table, rest) = match form & TABLE {
            0 => (None, rest),
            _ => rest.split_at_checked(count * 4).map(|(table, rest)| (Some(table.as_chunks::<4>().0), rest))?,
        };
        let (list, rest) = rest.split_at_checked(word(16)?)?;
        let (mut own, mut lower) = (0, 0);
        for s in 0..count {
            if table.is_none_or(|table| table.get(s).is_some_and(|entry| *entry == [0; 4])) {
                let len = SEGMENT.min(numbers - s * SEGMENT);
                own += len;
                lower += lower_bytes(len, bits);
            }
        }
        let (lower, plane) = rest.split_at_checked(lower)?;
        let form = form & !TABLE;
        (plane.len() == word(20)?).then_some(())?;
        Some(Self { element, form, bits, numbers, step, table, list, lower, plane, own })
    }

    fn entry(&self, segment: usize) -> Option<u32> {
        self.table.map_or(Some(0), |table| table.get(segment).map(|bytes| u32::from_le_bytes(*bytes)))
    }
}

/// Where symbols come from.
enum Source<'a> {
    Constant(u8),
    Plain(&'a [u8]),
    Coded(Decoder<'a>),
}

impl Source<'_> {
    fn take(&mut self, to: &mut [u8]) -> Option<()> {
        match self {
            Source::Constant(symbol) => to.fill(*symbol),
            Source::Plain(symbols) => {
                let (taken, rest) = symbols.split_at_checked(to.len())?;
                to.copy_from_slice(taken);
                *symbols = rest;
            }
            Source::Coded(decoder) => decoder.decode(to)?,
        }
        Some(())
    }

    fn finished(&self) -> bool {
        match self {
            Source::Constant(_) => true,
            Source::Plain(symbols) => symbols.is_empty(),
            Source::Coded(decoder) => decoder.finished(),
        }
    }
}

/// Decodes a blob; None if it is not one of `out.len()` bytes.
pub fn decode(blob: &[u8], out: &mut [u8], mut work: &mut [u8]) -> Option<()> {
    let parts = Parts::of(blob)?;
    let size = parts.element.width().bytes();
    (out.len() == parts.numbers * size).then_some(())?;
    let table: &mut rans::Table = carve::<u32>(&mut work, size_of::<rans::Table>() / 4)?.first_chunk_mut()?;
    let symbols = carve::<u8>(&mut work, SEGMENT)?;
    let codes = carve::<i16>(&mut work, SEGMENT)?;
    let mut source = match parts.form {
        RAW => Source::Plain(parts.plane),
        RANS => Source::Coded(Decoder::new(parts.plane, table)?),
        LZ4 => {
            let room = carve::<u8>(&mut work, parts.own)?;
            (decompress_into(parts.plane, room).ok()? == parts.own).then_some(())?;
            Source::Plain(room)
        }
        _ => Source::Constant(*parts.plane.first().filter(|_| parts.plane.len() == 1)?),
    };
    let mut lower = parts.lower;
    for (s, to) in out.chunks_mut(SEGMENT * size).enumerate() {
        if parts.entry(s)? != 0 {
            continue;
        }
        let n = to.len() / size;
        let (symbols, codes) = (symbols.get_mut(..n)?, codes.get_mut(..n)?);
        source.take(symbols)?;
        let (these, rest) = lower.split_at_checked(lower_bytes(n, parts.bits))?;
        lower = rest;
        join(symbols, parts.bits, these, codes);
        dequantise(parts.element.width(), codes, parts.step, to);
    }
    source.finished().then_some(())?;
    put_listed(&parts, out)?;
    if parts.table.is_some() { rebuild(&parts, out) } else { Some(()) }
}

/// Puts the codes of the list in their places.
fn put_listed(parts: &Parts, out: &mut [u8]) -> Option<()> {
    let (mut rest, mut index) = (parts.list, 0usize);
    while !rest.is_empty() {
        let (apart, after) = varint::read(rest)?;
        let (code, after) = varint::read(after)?;
        (index, rest) = (index + apart as usize, after);
        kernel::put(parts.element.width(), out, index, (code >> 1) as i32 ^ -((code & 1) as i32), parts.step)?;
    }
    Some(())
}

/// Makes the segments that repeat others.
fn rebuild(parts: &Parts, out: &mut [u8]) -> Option<()> {
    let bytes = SEGMENT * parts.element.width().bytes();
    for s in 0..segments::count(parts.numbers) {
        let Some((earlier, relation)) = segments::read(parts.entry(s)?) else { continue };
        if earlier >= s || parts.entry(earlier)? != 0 {
            return None;
        }
        let (before, this) = out.split_at_mut_checked(s * bytes)?;
        let (earlier, this) = (before.get(earlier * bytes..(earlier + 1) * bytes)?, this.get_mut(..bytes)?);
        segments::rebuild(relation, earlier, parts.element.bytes(), parts.element.width().bytes(), this);
    }
    Some(())
}
