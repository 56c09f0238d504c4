//! The checkpoint file: its layout, and reading it. Called by checkpoint and restore. A file is input from outside: every number in
//! it is checked before it is used, and what does not check out is an error that names the place.
//!
//! | pages | what |
//! |---|---|
//! | 0–3 | headers: generation g in pages 2·(g mod 2) and the one after, the same twice |
//! | from 4 | records (the stored form of a chunk, from a page's start) and indexes, appended |
//!
//! A state is complete when its header is written, after everything that it leads to has reached the disk. The header before it
//! stays until the one after it, so that there is always one to go back to. All numbers are little-endian.

use super::pager::Scratch;
use super::region::MAX_CHUNKS;
use crate::codec::{amplitude, dictionary, hash, lz4, pattern};
use crate::ds::{MappedArray, Text};
use crate::error::Error;
use crate::fail;
use crate::os::document::Document;
use crate::os::vm::{HUGE, PAGE, round_up};
use core::ffi::CStr;
use core::fmt::Write;

/// Bytes of a name, without its end.
pub const NAME: usize = 63;
/// Where records begin.
pub const FIRST_RECORD: u64 = 4 * PAGE as u64;
/// Buffers in one file at most.
pub const MAX_BUFFERS: usize = 1 << 16;
const MAGIC: &[u8; 8] = b"QMEM\r\n\x1ac";
const VERSION: u32 = 1;
const HEADER: usize = 80;
const BUFFER: usize = 128;
const ENTRY: usize = 40;
const INDEX_HEAD: usize = 16;
/// Element types beside bytes.
const ELEMENTS: u32 = 4;

/// What leads to one state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Header {
    /// Counts checkpoints in this file, from 1.
    pub generation: u64,
    /// Where the index is.
    pub index_offset: u64,
    /// Its bytes.
    pub index_len: u64,
    /// Its XXH3-128.
    pub index_sum: u128,
    /// Everything of this state lies below.
    pub end: u64,
    /// Bytes that this state needs; what else lies below `end` is of earlier ones.
    pub live: u64,
}

/// How a record holds a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Form {
    /// No record: all zeros.
    Zero = 0,
    /// A period.
    Pattern = 1,
    /// `codec::lz4`
    Lz4 = 2,
    /// `codec::dictionary`
    Dictionary = 3,
    /// The bytes themselves.
    Raw = 4,
    /// `codec::amplitude`, with nothing lost: what had been rounded before.
    Amplitude = 5,
}

/// One chunk in the index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Where its record is.
    pub offset: u64,
    /// The record's bytes.
    pub len: u32,
    /// What they are.
    pub form: Form,
    /// XXH3-64 of the record.
    pub sum: u64,
    /// XXH3-128 of the chunk.
    pub identity: u128,
}

/// One buffer in the index.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// As given by `qmem_set_name`.
    pub name: Text<64>,
    /// Logical bytes.
    pub size: u64,
    /// log2 of the chunk's bytes.
    pub shift: u32,
    /// Its element type.
    pub element: u32,
    /// Its tolerance.
    pub tolerance: f64,
    /// Its first entry; one for each chunk follow.
    pub first: u64,
    /// The relative L2 error that its contents have come to by compression, and in how many passes.
    pub lost: (f64, u32),
}

impl Buffer {
    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> usize {
        1 << self.shift
    }

    /// How many chunks.
    pub fn chunks(&self) -> u64 {
        self.size.div_ceil(1 << self.shift)
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(number(bytes, at))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, number: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..at + N) {
        place.copy_from_slice(&number);
    }
}

impl Header {
    /// One page of the file.
    pub fn write(&self, page: &mut [u8]) {
        page.fill(0);
        put(page, 0, *MAGIC);
        put(page, 8, VERSION.to_le_bytes());
        put(page, 16, self.generation.to_le_bytes());
        put(page, 24, self.index_offset.to_le_bytes());
        put(page, 32, self.index_len.to_le_bytes());
        put(page, 40, self.index_sum.to_le_bytes());
        put(page, 56, self.end.to_le_bytes());
        put(page, 64, self.live.to_le_bytes());
        let sum = hash::sum64(page.get(..HEADER - 8).unwrap_or(&[]));
        put(page, HEADER - 8, sum.to_le_bytes());
    }

    /// The header of a page; None if the page holds none that is whole.
    pub fn read(page: &[u8]) -> Option<Self> {
        let whole = page.get(..8)? == MAGIC && u32_at(page, 8) == VERSION;
        let header = Self {
            generation: u64_at(page, 16),
            index_offset: u64_at(page, 24),
            index_len: u64_at(page, 32),
            index_sum: u128_at(page, 40),
            end: u64_at(page, 56),
            live: u64_at(page, 64),
        };
        (whole && hash::sum64(page.get(..HEADER - 8)?) == u64_at(page, HEADER - 8)).then_some(header)
    }
}

/// Bytes of an index.
pub fn index_bytes(buffers: usize, entries: usize) -> usize {
    INDEX_HEAD + buffers * BUFFER + entries * ENTRY
}

/// Begins an index.
pub fn write_index_head(index: &mut [u8], buffers: usize, entries: usize) {
    put(index, 0, (buffers as u64).to_le_bytes());
    put(index, 8, (entries as u64).to_le_bytes());
}

/// Writes the `at`th buffer of an index.
pub fn write_buffer(index: &mut [u8], at: usize, buffer: &Buffer) {
    let from = INDEX_HEAD + at * BUFFER;
    let name = buffer.name.as_str().as_bytes();
    if let Some(place) = index.get_mut(from..from + name.len().min(NAME)) {
        place.copy_from_slice(name.get(..place.len()).unwrap_or(&[]));
    }
    put(index, from + 64, buffer.size.to_le_bytes());
    put(index, from + 72, buffer.shift.to_le_bytes());
    put(index, from + 76, buffer.element.to_le_bytes());
    put(index, from + 80, buffer.tolerance.to_bits().to_le_bytes());
    put(index, from + 88, buffer.first.to_le_bytes());
    put(index, from + 96, buffer.lost.0.to_bits().to_le_bytes());
    put(index, from + 104, buffer.lost.1.to_le_bytes());
}

/// Writes the `at`th entry of an index with so many buffers.
pub fn write_entry(index: &mut [u8], buffers: usize, at: u64, entry: &Entry) {
    let from = INDEX_HEAD + buffers * BUFFER + at as usize * ENTRY;
    put(index, from, entry.offset.to_le_bytes());
    put(index, from + 8, entry.len.to_le_bytes());
    put(index, from + 12, (entry.form as u32).to_le_bytes());
    put(index, from + 16, entry.sum.to_le_bytes());
    put(index, from + 24, entry.identity.to_le_bytes());
}

/// A checkpoint file with a complete state.
pub struct Image {
    /// The file.
    pub file: Document,
    /// The state.
    pub header: Header,
    index: MappedArray<u8>,
    buffers: usize,
    entries: u64,
    path: Text<512>,
}

impl Image {
    /// Opens a file and its newest complete state. None if there is no file of this name.
    pub fn open(path: &CStr, writing: bool) -> Result<Option<Self>, Error> {
        let Some(file) = Document::open(path, writing)? else { return Ok(None) };
        let mut shown = Text::new();
        let _ = shown.write_str(path.to_str().unwrap_or("(not UTF-8)")); // cut where it is too long
        let header = newest(&file, &shown)?;
        let len = file.bytes();
        let fits = header.index_offset.is_multiple_of(PAGE as u64)
            && header.index_offset >= FIRST_RECORD
            && header.index_offset.checked_add(header.index_len).is_some_and(|end| end <= len);
        if !fits || header.index_len < INDEX_HEAD as u64 {
            return Err(fail!(
                Corrupt,
                "checkpoint {shown} is cut off: its index is {} bytes from {}, the file has {len}",
                header.index_len,
                header.index_offset
            ));
        }
        let mut index = MappedArray::<u8>::new(round_up(header.index_len as usize, PAGE))?;
        let read = file.read(&mut index, header.index_offset);
        let bytes = index.get(..header.index_len as usize).unwrap_or(&[]);
        match read {
            Err(error) => return Err(fail!(Io, "the index of checkpoint {shown} cannot be read (errno {error})")),
            Ok(n) if n < bytes.len() || hash::sum128(bytes) != header.index_sum => {
                return Err(fail!(Corrupt, "the index of checkpoint {shown} fails its checksum: the file is damaged"));
            }
            Ok(_) => {}
        }
        let (buffers, entries) = (u64_at(bytes, 0), u64_at(bytes, 8));
        let in_bounds = buffers <= MAX_BUFFERS as u64 && entries <= MAX_CHUNKS as u64;
        if !in_bounds || index_bytes(buffers as usize, entries as usize) as u64 != header.index_len {
            return Err(fail!(Corrupt, "the index of checkpoint {shown} does not have the length that it tells"));
        }
        Ok(Some(Self { file, header, index, buffers: buffers as usize, entries, path: shown }))
    }

    /// One of its buffers, if that makes sense.
    pub fn buffer(&self, at: usize) -> Result<Buffer, Error> {
        let from = INDEX_HEAD + at * BUFFER;
        let bytes = self.index.get(from..from + BUFFER).unwrap_or(&[]);
        let raw = bytes.get(..64).unwrap_or(&[]);
        let raw = raw.split(|b| *b == 0).next().unwrap_or(&[]);
        let mut name = Text::new();
        let _ = name.write_str(core::str::from_utf8(raw).unwrap_or("?")); // 64 bytes fit
        let buffer = Buffer {
            name,
            size: u64_at(bytes, 64),
            shift: u32_at(bytes, 72),
            element: u32_at(bytes, 76),
            tolerance: f64::from_bits(u64_at(bytes, 80)),
            first: u64_at(bytes, 88),
            lost: (f64::from_bits(u64_at(bytes, 96)), u32_at(bytes, 104)),
        };
        let sound = (16..=21).contains(&buffer.shift)
            && (1..=isize::MAX as u64 / 2).contains(&buffer.size)
            && (0.0..1.0).contains(&buffer.tolerance)
            && (0.0..f64::MAX).contains(&buffer.lost.0)
            && buffer.element <= ELEMENTS
            && buffer.first.checked_add(buffer.chunks()).is_some_and(|end| end <= self.entries);
        if sound {
            Ok(buffer)
        } else {
            Err(fail!(Corrupt, "buffer {at} of checkpoint {} is described with impossible numbers", self.path))
        }
    }

    /// The buffer of this name; without a name the only one.
    pub fn find(&self, name: Option<&str>) -> Result<Buffer, Error> {
        let Some(name) = name else {
            return match self.buffers {
                1 => self.buffer(0),
                n => Err(fail!(InvalidArgument, "checkpoint {} holds {n} buffers: name the one to restore", self.path)),
            };
        };
        for at in 0..self.buffers {
            let buffer = self.buffer(at)?;
            if buffer.name.as_str() == name {
                return Ok(buffer);
            }
        }
        Err(fail!(NotFound, "checkpoint {} holds no buffer \"{name}\" among its {}", self.path, self.buffers))
    }

    /// A chunk's entry; None if it is damaged.
    pub fn entry(&self, buffer: &Buffer, chunk: u64) -> Option<Entry> {
        let from = INDEX_HEAD + self.buffers * BUFFER + (buffer.first + chunk) as usize * ENTRY;
        let bytes = self.index.get(from..from + ENTRY)?;
        let form = [Form::Zero, Form::Pattern, Form::Lz4, Form::Dictionary, Form::Raw, Form::Amplitude].into_iter();
        Some(Entry {
            offset: u64_at(bytes, 0),
            len: u32_at(bytes, 8),
            form: { form }.find(|form| *form as u32 == u32_at(bytes, 12))?,
            sum: u64_at(bytes, 16),
            identity: u128_at(bytes, 24),
        })
    }

    /// Reads a chunk into `data`, which is as long as it.
    pub fn read(&self, buffer: &Buffer, chunk: u64, data: &mut [u8], scratch: &mut Scratch) -> Result<(), Error> {
        let damaged = |why: &str| {
            fail!(
                Corrupt,
                "chunk {chunk} of buffer \"{}\" in checkpoint {} is damaged: {why}; nothing was restored",
                buffer.name,
                self.path
            )
        };
        let entry = self.entry(buffer, chunk).ok_or_else(|| damaged("its index entry is of no known form"))?;
        if entry.form == Form::Zero {
            data.fill(0);
            return Ok(());
        }
        let (room, _) = scratch.parts();
        let whole = round_up(entry.len as usize, PAGE);
        let end = entry.offset.checked_add(u64::from(entry.len));
        if entry.len == 0 || entry.len as usize > HUGE || !entry.offset.is_multiple_of(PAGE as u64) || end.is_none() {
            return Err(damaged("its record is nowhere"));
        }
        if end > Some(self.file.bytes()) {
            return Err(damaged("the file is cut off before it"));
        }
        let Some((record, work)) = room.split_at_mut_checked(whole) else { return Err(damaged("its record is too long")) };
        match self.file.read(record, entry.offset) {
            Err(error) => return Err(fail!(Io, "chunk {chunk} of checkpoint {} cannot be read (errno {error})", self.path)),
            Ok(n) if n < entry.len as usize => return Err(damaged("the file is cut off inside it")),
            Ok(_) => {}
        }
        let Some(record) = record.get(..entry.len as usize) else { return Err(damaged("its record is too long")) };
        if hash::sum64(record) != entry.sum {
            return Err(damaged("its record fails its checksum"));
        }
        let good = match entry.form {
            Form::Zero => true,
            Form::Pattern => {
                pattern::repeat(record, data);
                true
            }
            Form::Lz4 => lz4::decompress(record, data),
            Form::Dictionary => dictionary::decode(record, data, work),
            Form::Amplitude => amplitude::decode(record, data, work),
            Form::Raw => {
                let fits = record.len() == data.len();
                if fits {
                    data.copy_from_slice(record);
                }
                fits
            }
        };
        if good && hash::sum128(data) == entry.identity { Ok(()) } else { Err(damaged("its record holds something else")) }
    }
}

/// The newest complete state of a file. A state whose header was being written when the writer died is passed over: the copy
/// beside it still holds the one before. Where both copies of one are damaged, that is no crash, and nothing is guessed.
fn newest(file: &Document, shown: &Text<512>) -> Result<Header, Error> {
    let mut pages = MappedArray::<u8>::new(4 * PAGE)?;
    let read = file.read(&mut pages, 0).map_err(|error| fail!(Io, "checkpoint {shown} cannot be read (errno {error})"))?;
    let found: [Option<Header>; 4] = core::array::from_fn(|i| Header::read(pages.get(i * PAGE..(i + 1) * PAGE)?));
    let used = |i: usize| pages.get(i * PAGE..(i + 1) * PAGE).is_some_and(|page| page.iter().any(|b| *b != 0));
    if read < 4 * PAGE || found.iter().all(Option::is_none) && !pages.windows(MAGIC.len()).any(|w| w == MAGIC) {
        return Err(fail!(Corrupt, "{shown} is no qmem checkpoint: {read} bytes were read of its headers and none is one"));
    }
    for (one, two) in [(0, 1), (2, 3)] {
        let lost = found.get(one).is_some_and(Option::is_none) && found.get(two).is_some_and(Option::is_none);
        if lost && (used(one) || used(two)) {
            return Err(fail!(
                Corrupt,
                "both copies of a header of checkpoint {shown} are damaged, and with them a state that may be the newest"
            ));
        }
    }
    let newest = found.into_iter().flatten().max_by_key(|header| header.generation);
    newest.ok_or_else(|| fail!(Corrupt, "checkpoint {shown} holds no complete state"))
}
