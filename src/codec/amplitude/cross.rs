//! Chunks whose amplitudes, as a matrix of upper by lower index bits, have low rank: products of qubits (a basis state, its Fourier
//! transform, every phase that is linear in the index), few plane waves, states of little entanglement. A cross of as many rows and
//! columns as the rank determines the rest (cross approximation with partial pivoting: Tyrtyshnikov, Bebendorf). Called by the face.
//!
//! Rows and columns of the cross come back as they were; where to look for the next one is decided by what lies on the cross alone.
//! So encoding what came back finds the same cross, and adds no error.
//!
//! The first few crosses each lead to the next. If they are not enough, it starts anew with a few more rows beside, the probes: what
//! a cross leaves of them shows where the next one should be. They too come back as they were.
//!
//! Blob, little-endian: kind, element, rank, flags (1: the body is LZ4; 2: with probes; one byte each); u32 numbers; for each rank u32
//! row, u32 column; the body: probes, rows, columns.

use super::{Element, Encoded, Mode, Request, Width, carve, passes};
use crate::codec::lz4::Context;
use lz4_flex::block::{compress_into_with_table, decompress_into, get_maximum_output_size};

/// First byte of a blob.
pub const KIND: u8 = 2;
const HEAD: usize = 8;
const PACKED: u8 = 1;
const PROBED: u8 = 2;
const MAX_RANK: usize = 24;
/// Crosses without probes at most; probes.
const LED_RANK: usize = 4;
const PROBES: usize = 3;
/// Amplitudes below which a cross is not tried.
const MIN_AMPLITUDES: usize = 1 << 12;
/// Entries that tell whether a cross may be enough, before all of them are computed; and how often that may be wrong.
const ENTRIES: u64 = 96;
const CHECKS: usize = 5;
/// Rows and columns of the small matrix that is tried first, and the rank that it should nearly have.
const SMALL: usize = 8;
const SMALL_RANK: usize = 4;

/// A complex number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Complex(f64, f64);

impl Complex {
    fn minus_product(self, a: Self, b: Self) -> Self {
        Self(self.0 - (a.0 * b.0 - a.1 * b.1), self.1 - (a.0 * b.1 + a.1 * b.0))
    }

    fn over(self, d: Self) -> Self {
        let square = d.square();
        Self((self.0 * d.0 + self.1 * d.1) / square, (self.1 * d.0 - self.0 * d.1) / square)
    }

    fn square(self) -> f64 {
        self.0 * self.0 + self.1 * self.1
    }
}

/// Reads an amplitude.
fn amplitude(width: Width, bytes: &[u8], index: usize) -> Complex {
    let read = |at| super::kernel::number(width, bytes, at).unwrap_or_default();
    Complex(read(2 * index), read(2 * index + 1))
}

/// The matrix that a chunk is taken for.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    columns: usize,
    width: Width,
}

impl Shape {
    fn of(element: Element, bytes: usize) -> Option<Self> {
        let amplitudes = bytes / element.bytes();
        let complex = element.numbers() == 2 && bytes.is_multiple_of(element.bytes());
        if !complex || !amplitudes.is_power_of_two() || amplitudes < MIN_AMPLITUDES {
            return None;
        }
        let columns = 1usize << (amplitudes.trailing_zeros() / 2);
        Some(Self { rows: amplitudes / columns, columns, width: element.width() })
    }

    fn amplitude(&self) -> usize {
        2 * self.width.bytes()
    }

    /// What is left of a square of 1 where there is nothing more to be found. In singles rounding leaves more than may be missed.
    fn noise(&self) -> f64 {
        match self.width {
            Width::Double => 1e-30,
            Width::Single => 0.0,
        }
    }

    /// The row of a probe.
    fn probe(&self, number: usize) -> usize {
        mix(300 + number as u64) % self.rows
    }

    fn at(&self, chunk: &[u8], row: usize, column: usize) -> Complex {
        amplitude(self.width, chunk, row * self.columns + column)
    }
}

/// What a cross leaves of a row, a column, or some rows.
struct Largest {
    /// Where it is largest, among those not taken.
    at: usize,
    /// The square there.
    square: f64,
    /// The sum of squares.
    energy: f64,
}

impl Largest {
    const NONE: Self = Self { at: 0, square: 0.0, energy: 0.0 };

    fn see(&mut self, at: usize, square: f64, taken: &[u32]) {
        self.energy += square;
        if square > self.square && !taken.contains(&(at as u32)) {
            (self.at, self.square) = (at, square);
        }
    }

    /// Is there nothing to divide by?
    fn is_nothing(&self) -> bool {
        self.square.is_nan() || self.square < 1e-280
    }
}

/// The factors of a cross: for each rank a column u and a row v, real and imaginary parts apart.
struct Factors<'a> {
    shape: Shape,
    rank: usize,
    u: &'a mut [f64],
    v: &'a mut [f64],
    rows: [u32; MAX_RANK],
    columns: [u32; MAX_RANK],
    /// Rows beside the cross that come back as they were: 0 or [`PROBES`].
    probes: usize,
}

/// What the products of numbers and vectors leave of a row or column.
fn leave<'v>(
    known: impl Iterator<Item = (Complex, &'v [f64])>,
    to: &mut [f64],
    entry: impl Fn(usize) -> Complex,
    taken: &[u32],
) -> Largest {
    let n = to.len() / 2;
    let (re, im) = to.split_at_mut(n);
    for (at, (re, im)) in re.iter_mut().zip(im.iter_mut()).enumerate() {
        Complex(*re, *im) = entry(at);
    }
    for (factor, vector) in known {
        passes::subtract_product((factor.0, factor.1), vector.split_at(n), (re, im));
    }
    let mut made = Largest::NONE;
    for (at, (re, im)) in re.iter().zip(im.iter()).enumerate() {
        made.see(at, Complex(*re, *im).square(), taken);
    }
    made
}

impl<'a> Factors<'a> {
    fn new(shape: Shape, work: &mut &'a mut [u8]) -> Option<Self> {
        let u = carve::<f64>(work, 2 * MAX_RANK * shape.rows)?;
        let v = carve::<f64>(work, 2 * (MAX_RANK + 1) * shape.columns)?;
        Some(Self { shape, rank: 0, u, v, rows: [0; MAX_RANK], columns: [0; MAX_RANK], probes: 0 })
    }

    fn u(&self, rank: usize, row: usize) -> Complex {
        let at = 2 * rank * self.shape.rows + row;
        Complex(self.u[at], self.u[at + self.shape.rows])
    }

    fn v(&self, rank: usize, column: usize) -> Complex {
        let at = 2 * rank * self.shape.columns + column;
        Complex(self.v[at], self.v[at + self.shape.columns])
    }

    /// Makes the next v of a row of the matrix.
    fn add_row(&mut self, row: usize, entry: impl Fn(usize) -> Complex) -> Largest {
        let n = self.shape.columns;
        let (before, next) = self.v.split_at_mut(2 * self.rank * n);
        let known = (before.chunks_exact(2 * n)).zip(self.u.chunks_exact(2 * self.shape.rows));
        let known = known.map(|(v, u)| (Complex(u[row], u[row + self.shape.rows]), v));
        leave(known, &mut next[..2 * n], entry, &self.columns[..self.rank])
    }

    /// Makes the next u of a column of the matrix, but for the pivot that it is still to be divided by.
    fn add_column(&mut self, column: usize, entry: impl Fn(usize) -> Complex) -> Largest {
        let n = self.shape.rows;
        let (before, next) = self.u.split_at_mut(2 * self.rank * n);
        let known = (before.chunks_exact(2 * n)).zip(self.v.chunks_exact(2 * self.shape.columns));
        let known = known.map(|(u, v)| (Complex(v[column], v[column + self.shape.columns]), u));
        leave(known, &mut next[..2 * n], entry, &self.rows[..self.rank])
    }

    /// Completes a cross whose row and column were added: divides by the pivot.
    fn complete(&mut self, row: usize, column: usize) {
        let pivot = self.v(self.rank, column);
        (self.rows[self.rank], self.columns[self.rank]) = (row as u32, column as u32);
        for row in 0..self.shape.rows {
            let part = self.u(self.rank, row).over(pivot);
            let at = 2 * self.rank * self.shape.rows + row;
            (self.u[at], self.u[at + self.shape.rows]) = (part.0, part.1);
        }
        self.rank += 1;
    }

    fn are_finite(&self) -> bool {
        let (u, v) = (2 * self.rank * self.shape.rows, 2 * self.rank * self.shape.columns);
        self.u[..u].iter().chain(&self.v[..v]).all(|x| x.is_finite())
    }

    /// Which probe a row is.
    fn probe(&self, row: usize) -> Option<usize> {
        (0..self.probes).find(|p| self.shape.probe(*p) == row)
    }

    /// One row of the matrix as bytes, from the factors and `cross`: real and imaginary parts of as many columns are worked in `sums`.
    fn row(&self, row: usize, cross: &impl Cross, sums: &mut [f64], to: &mut [u8]) {
        if let Some(p) = self.probe(row) {
            return cross.copy_row(p, row, to);
        }
        if let Some(l) = self.rows[..self.rank].iter().position(|r| *r as usize == row) {
            return cross.copy_row(self.probes + l, row, to);
        }
        let n = self.shape.columns;
        let (re, im) = sums.split_at_mut(n);
        re.fill(0.0);
        im.fill(0.0);
        for l in 0..self.rank {
            let (v_re, v_im) = self.v[2 * l * n..2 * (l + 1) * n].split_at(n);
            let Complex(u_re, u_im) = self.u(l, row);
            passes::add_product((u_re, u_im), (v_re, v_im), (re, im));
        }
        match self.shape.width {
            Width::Double => passes::interleave_doubles(re, im, to),
            Width::Single => passes::interleave_singles(re, im, to),
        }
        let size = self.shape.amplitude();
        for (l, column) in self.columns[..self.rank].iter().enumerate() {
            cross.copy_entry(l, row, *column as usize, &mut to[*column as usize * size..][..size]);
        }
    }
}

/// Where the rows and columns of a cross are found: in the chunk when encoding, in a blob's body when decoding.
trait Cross {
    /// A row that is a probe or, after these, of the cross.
    fn copy_row(&self, number: usize, row: usize, to: &mut [u8]);
    /// An entry of a column of the cross.
    fn copy_entry(&self, rank: usize, row: usize, column: usize, to: &mut [u8]);
}

struct InChunk<'a>(Shape, &'a [u8]);

impl Cross for InChunk<'_> {
    fn copy_row(&self, _: usize, row: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.1[row * to.len()..][..to.len()]);
    }

    fn copy_entry(&self, _: usize, row: usize, column: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.1[(row * self.0.columns + column) * to.len()..][..to.len()]);
    }
}

struct InBody<'a> {
    shape: Shape,
    /// Probes and rows of the cross.
    rows: usize,
    body: &'a [u8],
}

impl InBody<'_> {
    fn column(&self, rank: usize) -> usize {
        self.rows * self.shape.columns + rank * self.shape.rows
    }
}

impl Cross for InBody<'_> {
    fn copy_row(&self, number: usize, _: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.body[number * to.len()..][..to.len()]);
    }

    fn copy_entry(&self, rank: usize, row: usize, _: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.body[(self.column(rank) + row) * to.len()..][..to.len()]);
    }
}

fn mix(i: u64) -> usize {
    let x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x >> 33) as usize
}

/// Does a small part of the matrix look like low rank?
fn promising(shape: Shape, chunk: &[u8]) -> bool {
    let mut small = [[Complex::default(); SMALL]; SMALL];
    for (i, row) in small.iter_mut().enumerate() {
        for (j, entry) in row.iter_mut().enumerate() {
            *entry = shape.at(chunk, mix(i as u64) % shape.rows, mix(64 + j as u64) % shape.columns);
        }
    }
    let energy = |m: &[[Complex; SMALL]; SMALL]| m.iter().flatten().map(|x| x.square()).sum::<f64>();
    let all = energy(&small);
    for _ in 0..SMALL_RANK {
        let (mut pivot, mut largest) = ((0, 0), 0.0);
        for (i, row) in small.iter().enumerate() {
            for (j, entry) in row.iter().enumerate() {
                if entry.square() > largest {
                    (pivot, largest) = ((i, j), entry.square());
                }
            }
        }
        if largest == 0.0 {
            return all.is_finite();
        }
        let pivot_row = small[pivot.0];
        for row in &mut small {
            let factor = row[pivot.1].over(pivot_row[pivot.1]);
            for (entry, over) in row.iter_mut().zip(pivot_row) {
                *entry = entry.minus_product(factor, over);
            }
        }
    }
    energy(&small) <= all * 0.02
}

/// Encodes a chunk that is a matrix of low rank within the error allowed; None if it is not, or `codes` would not be larger.
pub fn encode(request: Request, context: &mut Context, chunk: &[u8], mut work: &mut [u8], out: &mut [u8]) -> Option<Encoded> {
    let shape = Shape::of(request.element, chunk.len())?;
    if !promising(shape, chunk) {
        return None;
    }
    let mut factors = Factors::new(shape, &mut work)?;
    let row_bytes = shape.columns * shape.amplitude();
    let sums = carve::<f64>(&mut work, 2 * shape.columns * (PROBES + 1))?;
    let buffer = carve::<u8>(&mut work, row_bytes)?;
    // Beyond this a cross is no smaller than codes are likely to be.
    let share = if request.mode == Mode::Fast { 10 } else { 14 };
    let most = (chunk.len() / share / ((shape.rows + shape.columns) * shape.amplitude())).min(MAX_RANK);
    let allowed = request.max_error * request.max_error;
    let mut search = Search { chunk, allowed, sums, buffer, checks: 0, good: None };
    search.led(&mut factors, most.min(LED_RANK));
    let led = search.good;
    if led.is_none_or(|(_, error)| error > 0.0) {
        // With probes; also where it is enough without, since only what was decoded with probes is found again without error.
        (factors.rank, factors.probes) = (0, PROBES);
        search.checks = 0;
        search.probed(&mut factors, most.saturating_sub(2));
    }
    let (rank, error) = search.good?;
    if search.good == led {
        (factors.rank, factors.probes) = (0, 0);
        search.good = None;
        search.repeat(&mut factors, rank);
    }
    factors.rank = rank;
    if !factors.are_finite() {
        return None; // other machines may make other NaNs of them
    }
    let len = write(&factors, request.element, context, chunk, work, out)?;
    Some(Encoded { len, error: if error == 0.0 { 0.0 } else { error.sqrt().next_up().min(request.max_error) } })
}

/// The search for a cross that is enough.
struct Search<'a> {
    chunk: &'a [u8],
    allowed: f64,
    /// Two vectors of a row's length to work in, and as many again for each probe.
    sums: &'a mut [f64],
    buffer: &'a mut [u8],
    checks: usize,
    /// The rank that was enough, and its squared error.
    good: Option<(usize, f64)>,
}

impl Search<'_> {
    /// Makes the crosses of `led` again, as many as were enough.
    fn repeat(&mut self, factors: &mut Factors, rank: usize) {
        self.checks = CHECKS - 1;
        self.allowed = -1.0;
        self.led(factors, rank);
    }

    /// Each cross's column leads to the next one's row.
    fn led(&mut self, factors: &mut Factors, most: usize) {
        let (shape, chunk) = (factors.shape, self.chunk);
        let starts = [0, shape.rows / 2, shape.rows - 1];
        let filled = |row: &usize| (0..shape.columns).any(|column| shape.at(chunk, *row, column) != Complex::default());
        let Some(mut row) = starts.into_iter().find(filled) else { return };
        loop {
            // The row that the next cross would have tells whether this one may be enough: it is where most is left.
            let next = factors.add_row(row, |column| shape.at(chunk, row, column));
            if self.is_over(factors, next.energy) || factors.rank >= most || next.is_nothing() {
                return;
            }
            let column = factors.add_column(next.at, |row| shape.at(chunk, row, next.at));
            factors.complete(row, next.at);
            // Among the rows that are not taken: this one is, now.
            row = if column.at == row { self.second(factors) } else { column.at };
        }
    }

    /// The row in which the last u is largest, among those not taken.
    fn second(&self, factors: &Factors) -> usize {
        let mut largest = Largest::NONE;
        for row in 0..factors.shape.rows {
            largest.see(row, factors.u(factors.rank - 1, row).square(), &factors.rows[..factors.rank]);
        }
        largest.at
    }

    /// Each cross is where most is left of the probes.
    fn probed(&mut self, factors: &mut Factors, most: usize) {
        let (shape, chunk) = (factors.shape, self.chunk);
        loop {
            let mut next = Largest::NONE;
            for p in 0..PROBES {
                let row = shape.probe(p);
                let rests = &mut self.sums[2 * (p + 1) * shape.columns..][..2 * shape.columns];
                for column in 0..shape.columns {
                    let rest = match factors.rank.checked_sub(1) {
                        None => shape.at(chunk, row, column),
                        Some(l) => Complex(rests[2 * column], rests[2 * column + 1])
                            .minus_product(factors.u(l, row), factors.v(l, column)),
                    };
                    (rests[2 * column], rests[2 * column + 1]) = (rest.0, rest.1);
                    next.see(column, rest.square(), &factors.columns[..factors.rank]);
                }
            }
            let rows = shape.rows as f64 / PROBES as f64;
            if self.is_over(factors, next.energy * rows) || factors.rank >= most || next.is_nothing() {
                return;
            }
            let column = factors.add_column(next.at, |row| shape.at(chunk, row, next.at));
            if column.is_nothing() {
                return;
            }
            factors.add_row(column.at, |c| shape.at(chunk, column.at, c));
            factors.complete(column.at, next.at);
        }
    }

    /// Looks whether the cross is enough, if a sample and what else is known to be left of it, about, let it hope; true if there is no
    /// more to be looked for.
    fn is_over(&mut self, factors: &Factors, about: f64) -> bool {
        if factors.rank == 0 {
            return false;
        }
        let (energy, left) = sampled(factors, self.chunk);
        if !left.is_finite() || factors.rank >= 8 && left > energy * 0.3 {
            return true;
        }
        // What was decoded from a cross is one of its own rank exactly. That is looked for beyond what is enough, as long as more than
        // rounding may be missing.
        let enough = if self.good.is_some() { left == 0.0 } else { left <= self.allowed * 2.0 && about <= self.allowed * 4.0 };
        if enough {
            self.checks += 1;
            let columns = 2 * factors.shape.columns;
            let error = squared_error(factors, self.chunk, &mut self.sums[..columns], self.buffer);
            if error <= self.allowed && (self.good.is_none() || error == 0.0) {
                self.good = Some((factors.rank, error));
            }
        }
        let missing = |error: f64| left.max(about).max(error) > energy * factors.shape.noise();
        self.good.is_some_and(|(_, error)| error == 0.0 || !missing(error)) || self.checks >= CHECKS
    }
}

/// Squares of some entries, and of what the cross leaves of them, for the whole matrix. 0 is left only if all are the same bits.
fn sampled(factors: &Factors, chunk: &[u8]) -> (f64, f64) {
    let shape = factors.shape;
    let (mut energy, mut left) = (0.0, 0.0);
    for i in 0..ENTRIES {
        let (row, column) = (mix(1000 + 2 * i) % shape.rows, mix(1001 + 2 * i) % shape.columns);
        let entry = shape.at(chunk, row, column);
        energy += entry.square();
        let on_row = factors.probe(row).is_some() || factors.rows[..factors.rank].contains(&(row as u32));
        if on_row || factors.columns[..factors.rank].contains(&(column as u32)) {
            continue;
        }
        let mut made = (0..factors.rank).fold(Complex::default(), |sum, l| {
            let (u, v) = (factors.u(l, row), factors.v(l, column));
            Complex(sum.0 + (u.0 * v.0 - u.1 * v.1), sum.1 + (u.0 * v.1 + u.1 * v.0))
        });
        if shape.width == Width::Single {
            made = Complex(f64::from(made.0 as f32), f64::from(made.1 as f32));
        }
        left += Complex(entry.0 - made.0, entry.1 - made.1).square();
    }
    let weight = (shape.rows * shape.columns) as f64 / ENTRIES as f64;
    (energy * weight, left * weight)
}

/// The squared error of the whole matrix, rounded up; 0 only if there is none.
fn squared_error(factors: &Factors, chunk: &[u8], sums: &mut [f64], buffer: &mut [u8]) -> f64 {
    let shape = factors.shape;
    let cross = InChunk(shape, chunk);
    let (mut total, mut differs) = (0.0, false);
    for (row, bytes) in chunk.chunks_exact(buffer.len()).enumerate() {
        factors.row(row, &cross, sums, buffer);
        if buffer == bytes {
            continue;
        }
        differs = true;
        total += match shape.width {
            Width::Double => passes::distance_doubles(bytes, buffer),
            Width::Single => passes::distance_singles(bytes, buffer),
        };
    }
    if differs { total * (1.0 + 1e-9) + (shape.rows * shape.columns) as f64 * f64::MIN_POSITIVE } else { 0.0 }
}

/// Writes the blob; its length.
fn write(
    factors: &Factors,
    element: Element,
    context: &mut Context,
    chunk: &[u8],
    mut work: &mut [u8],
    out: &mut [u8],
) -> Option<usize> {
    let (shape, rank) = (factors.shape, factors.rank);
    let (size, n) = (shape.amplitude(), chunk.len() / shape.width.bytes());
    let (head, rest) = out.split_at_mut_checked(HEAD + rank * 8)?;
    let length = ((factors.probes + rank) * shape.columns + rank * shape.rows) * size;
    let body = carve::<u8>(&mut work, length)?;
    let (rows, columns) = body.split_at_mut((factors.probes + rank) * shape.columns * size);
    let cross = InChunk(shape, chunk);
    let numbers = (0..factors.probes).map(|p| shape.probe(p)).chain(factors.rows[..rank].iter().map(|row| *row as usize));
    for (row, to) in numbers.zip(rows.chunks_exact_mut(shape.columns * size)) {
        cross.copy_row(0, row, to);
    }
    for (l, to) in columns.chunks_exact_mut(shape.rows * size).enumerate() {
        for (row, to) in to.chunks_exact_mut(size).enumerate() {
            cross.copy_entry(l, row, factors.columns[l] as usize, to);
        }
    }
    let room = rest.get_mut(..get_maximum_output_size(length))?;
    let packed = compress_into_with_table(body, room, &mut context.table).ok().filter(|len| *len < length - length / 16);
    if packed.is_none() {
        rest.get_mut(..length)?.copy_from_slice(body);
    }
    let (first, pivots) = head.split_at_mut(HEAD);
    let flags = if packed.is_some() { PACKED } else { 0 } | if factors.probes > 0 { PROBED } else { 0 };
    first.get_mut(..4)?.copy_from_slice(&[KIND, element.tag(), rank as u8, flags]);
    first.get_mut(4..)?.copy_from_slice(&u32::try_from(n).ok()?.to_le_bytes());
    for (l, to) in pivots.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        to.as_chunks_mut::<4>().0.copy_from_slice(&[factors.rows[l].to_le_bytes(), factors.columns[l].to_le_bytes()]);
    }
    Some(HEAD + rank * 8 + packed.unwrap_or(length))
}

/// Decodes a blob; None if it is not one of `out.len()` bytes.
pub fn decode(blob: &[u8], out: &mut [u8], mut work: &mut [u8]) -> Option<()> {
    let (head, rest) = blob.split_first_chunk::<HEAD>()?;
    let [_, element, rank, flags, numbers @ ..] = *head;
    let shape = Shape::of(Element::of(element)?, out.len())?;
    let rank = usize::from(rank);
    let whole = u32::from_le_bytes(numbers) as usize * shape.width.bytes() == out.len();
    let (pivots, stored) = rest.split_at_checked(rank * 8)?;
    if !whole || !(1..=MAX_RANK).contains(&rank) || flags > PACKED | PROBED {
        return None;
    }
    let mut factors = Factors::new(shape, &mut work)?;
    factors.probes = if flags & PROBED != 0 { PROBES } else { 0 };
    let sums = carve::<f64>(&mut work, 2 * shape.columns)?;
    let rows = factors.probes + rank;
    let length = (rows * shape.columns + rank * shape.rows) * shape.amplitude();
    let body = if flags & PACKED != 0 {
        let room = carve::<u8>(&mut work, length)?;
        let len = decompress_into(stored, room).ok()?;
        room.get(..len)?
    } else {
        stored
    };
    (body.len() == length).then_some(())?;
    let cross = InBody { shape, rows, body };
    for (l, pivot) in pivots.as_chunks::<8>().0.iter().enumerate() {
        let [row, column] = pivot.as_chunks::<4>().0 else { return None };
        let (row, column) = (u32::from_le_bytes(*row) as usize, u32::from_le_bytes(*column) as usize);
        if row >= shape.rows || column >= shape.columns {
            return None;
        }
        factors.add_row(row, |column| amplitude(shape.width, body, (rows - rank + l) * shape.columns + column));
        factors.add_column(column, |row| amplitude(shape.width, body, cross.column(l) + row));
        factors.complete(row, column);
    }
    for (row, to) in out.chunks_exact_mut(shape.columns * shape.amplitude()).enumerate() {
        factors.row(row, &cross, sums, to);
    }
    Some(())
}
