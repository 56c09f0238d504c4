//! Writing checkpoints and reading them back. A checkpoint is crash-consistent (a state counts when its header is on the disk, after
//! all that it leads to), incremental (chunks that the file's last state has already are not written again), compressed and
//! checksummed. Called by the face, on the program's threads. What other threads write meanwhile is in it or not, chunk by chunk.

use super::Element;
use super::arena::Frame;
use super::image::{self, Buffer, Entry, FIRST_RECORD, Form, Header, Image};
use super::lossy;
use super::pager::{Pager, Scratch};
use super::region::{Chunk, ChunkId, Region};
use super::slot::{Kind, SlotId};
use super::state::{State, Word};
use crate::codec::dictionary::{self, Encoded};
use crate::codec::{hash, lz4, pattern};
use crate::ds::{MappedArray, Text};
use crate::error::Error;
use crate::fail;
use crate::os::document::{self, Document};
use crate::os::vm::{HUGE, PAGE, round_up};
use crate::os::worker;
use crate::sync::Mutex;
use core::ffi::CStr;
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

/// Bytes of earlier states that a file may carry, beyond as many as the newest needs, before it is written anew.
const SLACK: u64 = 64 << 20;

type Path = Text<4096>;

/// Where the last checkpoint of this process went: damaged chunks are restored from it.
static LAST: Mutex<Path> = Mutex::new(Path::new());

/// What a chunk's bytes are and where they were read from.
enum Bytes {
    Zero,
    /// In `data`, with this XXH3-128.
    Read(u128),
    /// Not read: they have this XXH3-128, which is all that was asked.
    Known(u128),
}

/// A file that is being written, and room to work in.
struct Writer<'a> {
    file: &'a Document,
    end: u64,
    live: u64,
    scratch: Scratch,
    data: MappedArray<u8>,
}

/// Writes a checkpoint of one region, or of all, to `path`.
pub fn write(pager: &'static Pager, only: Option<&Region>, path: &CStr) -> Result<(), Error> {
    let (mut count, mut chunks) = (0usize, 0usize);
    for region in regions(pager, only) {
        count += 1;
        chunks += region.chunks().len();
    }
    if count == 0 {
        return Err(fail!(NotFound, "there is no paged buffer to write a checkpoint of"));
    }
    if count > image::MAX_BUFFERS {
        return Err(fail!(Limit, "{count} paged buffers are more than the {} that one checkpoint holds", image::MAX_BUFFERS));
    }
    let old = Image::open(path, true)?;
    let worn = |i: &Image| i.header.end.saturating_sub(i.header.live) > i.header.live.saturating_add(SLACK);
    let index = MappedArray::<u8>::new(round_up(image::index_bytes(count, chunks), PAGE))?;
    match old.filter(|image| !worn(image)) {
        Some(old) => {
            let file = &old.file;
            file.cut(old.header.end); // what a writer left that died is of no use
            append(pager, only, file, Some(&old), index, (count, chunks))?;
        }
        None => {
            let (fresh, directory) = beside(path)?;
            let made = Document::create(fresh_path(&fresh)?)
                .and_then(|file| append(pager, only, &file, None, index, (count, chunks)))
                .and_then(|()| document::rename(fresh_path(&fresh)?, path, fresh_path(&directory)?));
            if made.is_err() {
                document::remove(fresh_path(&fresh)?);
            }
            made?;
        }
    }
    let mut last = LAST.lock();
    *last = Path::new();
    let _ = last.write_str(path.to_str().unwrap_or("")); // longer ones were refused by the kernel
    Ok(())
}

fn regions<'a>(pager: &'a Pager, only: Option<&'a Region>) -> impl Iterator<Item = &'a Region> {
    let all = pager.regions.live().map(|(_, region)| region).filter(move |_| only.is_none());
    only.into_iter().chain(all)
}

/// The path of the new file beside the one it replaces, and their directory's; both with their ends.
fn beside(path: &CStr) -> Result<(Path, Path), Error> {
    let text = path.to_str().map_err(|_| fail!(InvalidArgument, "a checkpoint's path must be UTF-8"))?;
    let (mut fresh, mut directory) = (Path::new(), Path::new());
    let _ = write!(fresh, "{text}.new\0");
    let _ = match text.rsplit_once('/') {
        None => write!(directory, ".\0"),
        Some(("", _)) => write!(directory, "/\0"),
        Some((parent, _)) => write!(directory, "{parent}\0"),
    };
    if !fresh.as_str().ends_with('\0') {
        return Err(fail!(InvalidArgument, "the checkpoint's path has {} bytes, which is too long", text.len()));
    }
    Ok((fresh, directory))
}

fn fresh_path(text: &Path) -> Result<&CStr, Error> {
    CStr::from_bytes_until_nul(text.as_str().as_bytes()).map_err(|_| fail!(Internal, "a path without its end"))
}

fn failed(error: i32) -> Error {
    let space = if error == libc::ENOSPC { ", no space" } else { "" };
    fail!(
        Io,
        "the checkpoint cannot be written (errno {error}{space}); the one before it is intact: make room or choose another path"
    )
}

/// Appends a state to a file and makes it the newest.
fn append(
    pager: &'static Pager,
    only: Option<&Region>,
    file: &Document,
    old: Option<&Image>,
    mut index: MappedArray<u8>,
    (count, chunks): (usize, usize),
) -> Result<(), Error> {
    let end = old.map_or(FIRST_RECORD, |old| round_up(old.header.end as usize, PAGE) as u64);
    let mut writer = Writer { file, end, live: 0, scratch: Scratch::new()?, data: MappedArray::new(HUGE)? };
    image::write_index_head(&mut index, count, chunks);
    let (mut first, mut written) = (0u64, 0usize);
    for region in regions(pager, only) {
        let len = region.chunks().len() as u64;
        if written == count || first + len > chunks as u64 {
            return Err(fail!(Busy, "paged buffers were allocated while a checkpoint of all was written: try again"));
        }
        let buffer = describe(pager, region, first);
        image::write_buffer(&mut index, written, &buffer);
        let before = old.and_then(|old| {
            let before = old.find(Some(buffer.name.as_str())).ok()?;
            (before.shift == buffer.shift).then_some((old, before))
        });
        for (at, id) in region.chunks().enumerate() {
            let before = before.and_then(|(old, b)| old.entry(&b, at as u64).filter(|_| (at as u64) < b.chunks()));
            let entry = writer.put(pager, id, region, before)?;
            image::write_entry(&mut index, count, first + at as u64, &entry);
        }
        first += len;
        written += 1;
    }
    if written != count || first != chunks as u64 {
        return Err(fail!(Busy, "paged buffers were freed while a checkpoint of all was written: try again"));
    }
    writer.finish(&index, image::index_bytes(count, chunks), old.map_or(0, |old| old.header.generation))
}

fn describe(pager: &Pager, region: &Region, first: u64) -> Buffer {
    Buffer {
        name: pager.name_of(region),
        size: region.size.load(Relaxed) as u64,
        shift: region.shift.load(Relaxed),
        element: region.element.load(Relaxed),
        tolerance: f64::from_bits(region.tolerance.load(Relaxed)),
        first,
        lost: {
            let _pass = pager.gate.enter();
            lossy::carried(region)
        },
    }
}

impl Writer<'_> {
    /// A chunk's entry: the one that it has already, if its bytes are the same, or that of a new record.
    fn put(&mut self, pager: &'static Pager, id: ChunkId, region: &Region, before: Option<Entry>) -> Result<Entry, Error> {
        let size = region.chunk_bytes();
        let known = before.filter(|entry| entry.form != Form::Zero).map(|entry| entry.identity);
        let Some(data) = self.data.get_mut(..size) else { return Err(fail!(Internal, "a chunk of {size} bytes")) };
        let identity = match bytes_of(pager, id, region, data, known, &mut self.scratch)? {
            Bytes::Zero => return Ok(Entry { offset: 0, len: 0, form: Form::Zero, sum: 0, identity: 0 }),
            Bytes::Read(identity) | Bytes::Known(identity) => identity,
        };
        if let Some(entry) = before.filter(|entry| entry.form != Form::Zero && entry.identity == identity) {
            self.live += round_up(entry.len as usize, PAGE) as u64;
            return Ok(entry);
        }
        self.record(size, identity, region.element())
    }

    /// Writes the first `size` bytes of `data` in the shortest form that is quick to find.
    fn record(&mut self, size: usize, identity: u128, element: Option<Element>) -> Result<Entry, Error> {
        let Some(data) = self.data.get(..size) else { return Err(fail!(Internal, "a chunk of {size} bytes")) };
        if pattern::is_zero(data) {
            return Ok(Entry { offset: 0, len: 0, form: Form::Zero, sum: 0, identity: 0 });
        }
        let (room, context) = self.scratch.parts();
        let (form, from, len) = match dictionary::encode(&mut context.table, data, room) {
            Some(Encoded::Pattern(period)) => {
                if let (Some(to), Some(from)) = (room.get_mut(..period), data.get(..period)) {
                    to.copy_from_slice(from);
                }
                (Form::Pattern, 0, period)
            }
            Some(Encoded::Blob { at, len }) if len <= size / 4 * 3 => (Form::Dictionary, at, len),
            _ => match element.and_then(|element| lossy::encode_exactly(element, data, room, context)) {
                Some(len) if len <= size / 2 => (Form::Amplitude, 0, len),
                _ => match lz4::compress(context, data, room, size / 16 * 15) {
                    Some(len) => (Form::Lz4, 0, len),
                    None => (Form::Raw, 0, size),
                },
            },
        };
        let whole = round_up(len, PAGE);
        if form != Form::Raw
            && let Some(rest) = room.get_mut(from + len..from + whole)
        {
            rest.fill(0);
        }
        let source: &[u8] = if form == Form::Raw { data } else { room };
        let (Some(record), Some(pages)) = (source.get(from..from + len), source.get(from..from + whole)) else {
            return Err(fail!(Internal, "a record of {len} bytes from {from}"));
        };
        let entry = Entry { offset: self.end, len: len as u32, form, sum: hash::sum64(record), identity };
        self.file.write(pages, self.end).map_err(failed)?;
        self.end += whole as u64;
        self.live += whole as u64;
        Ok(entry)
    }

    /// Makes what was written the newest state: first all of it to the disk, then the header, then the header's twin.
    fn finish(&mut self, index: &[u8], len: usize, before: u64) -> Result<(), Error> {
        let Some((bytes, pages)) = index.get(..len).zip(index.get(..round_up(len, PAGE))) else {
            return Err(fail!(Internal, "an index of {len} bytes"));
        };
        let header = Header {
            generation: before + 1,
            index_offset: self.end,
            index_len: len as u64,
            index_sum: hash::sum128(bytes),
            end: self.end + pages.len() as u64,
            live: self.live + pages.len() as u64,
        };
        self.file.write(pages, self.end).and_then(|()| self.file.sync()).map_err(failed)?;
        // In a new file all four places are written, so that none is ever seen half-made with nothing beside it.
        let places = if before == 0 { 0..4 } else { header.generation % 2 * 2..header.generation % 2 * 2 + 2 };
        let Some(page) = self.data.get_mut(..PAGE) else { return Err(fail!(Internal, "no room for a header")) };
        header.write(page);
        for place in places {
            self.file.write(page, place * PAGE as u64).and_then(|()| self.file.sync()).map_err(failed)?;
        }
        Ok(())
    }
}

/// The bytes of a chunk as they are now, wherever they are, without mapping it if it is not; not read if they are `known`.
fn bytes_of(
    pager: &'static Pager,
    id: ChunkId,
    region: &Region,
    data: &mut [u8],
    known: Option<u128>,
    scratch: &mut Scratch,
) -> Result<Bytes, Error> {
    let Some(chunk) = pager.regions.chunk(id) else { return Ok(Bytes::Zero) };
    loop {
        match Word::load(&chunk.word).state() {
            State::Zero => return Ok(Bytes::Zero),
            State::Stored => {
                if let Some(bytes) = stored(pager, id, chunk, region, data, known, scratch)? {
                    return Ok(bytes);
                }
            }
            State::Resident | State::Staged => {
                // Like any read of the program: should the chunk leave meanwhile, it comes back.
                // SAFETY: an address of a live region; both are as long as a chunk and do not overlap.
                unsafe { core::ptr::copy_nonoverlapping(region.address(id) as *const u8, data.as_mut_ptr(), data.len()) };
                return Ok(Bytes::Read(hash::sum128(data)));
            }
            State::Filling | State::Evicting => worker::pause(20),
            State::Poisoned => {
                let at = id - region.first.load(Relaxed);
                return Err(fail!(
                    Corrupt,
                    "chunk {at} of the buffer is lost, so no checkpoint of it can be made: restore it first"
                ));
            }
            State::Gone => return Err(fail!(NotFound, "the buffer was freed while a checkpoint of it was written")),
        }
    }
}

/// As [`bytes_of`], for a chunk that is in its slot. None: it no longer is.
fn stored(
    pager: &'static Pager,
    id: ChunkId,
    chunk: &Chunk,
    region: &Region,
    data: &mut [u8],
    known: Option<u128>,
    scratch: &mut Scratch,
) -> Result<Option<Bytes>, Error> {
    let _pass = pager.gate.enter();
    if Word::step(&chunk.word, Word::hold_stored).is_none() {
        return Ok(None);
    }
    let slot = SlotId(chunk.slot.load(Relaxed));
    let identity = pager.slots.get(slot).map_or(0, |s| s.identity);
    let bytes = if identity != 0 && known == Some(identity) {
        Ok(Bytes::Known(identity))
    } else {
        pager.load_chunk(chunk, Frame { bay: 0, fresh: false }, data, scratch).map(|()| Bytes::Read(hash::sum128(data)))
    };
    if let Ok(Bytes::Read(sum)) = bytes
        && pager.slots.get(slot).is_some_and(|s| s.kind == Kind::Compressed)
    {
        pager.note_identity(slot, sum);
    }
    let (address, size) = (region.address(id), region.chunk_bytes());
    Word::step(&chunk.word, |w| Some(w.unfilled(State::Stored)));
    pager.backend.wake(address, size);
    bytes.map(Some).map_err(|why| pager.unreadable(id, region, why))
}

/// Reads a whole buffer of a checkpoint to `start`, a fresh region of its size.
///
/// # Safety
/// `buffer.size` bytes from `start` are writable, zero, and nobody else's.
pub unsafe fn read(image: &Image, buffer: &Buffer, start: *mut u8) -> Result<(), Error> {
    let (mut scratch, mut room) = (Scratch::new()?, MappedArray::<u8>::new(buffer.chunk_bytes())?);
    for at in 0..buffer.chunks() {
        if image.entry(buffer, at).is_some_and(|entry| entry.form == Form::Zero) {
            continue;
        }
        image.read(buffer, at, &mut room, &mut scratch)?;
        let from = at as usize * buffer.chunk_bytes();
        let len = room.len().min(buffer.size as usize - from);
        // SAFETY: inside the caller's buffer; the room is as long as a chunk.
        unsafe { core::ptr::copy_nonoverlapping(room.as_ptr(), start.add(from), len) };
    }
    Ok(())
}

impl Pager {
    /// The bytes that a chunk had in the last checkpoint of this process, into its frame. Err: why there are none.
    pub fn read_from_checkpoint(
        &self,
        id: ChunkId,
        region: &Region,
        data: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let last = *LAST.lock();
        let mut path = Path::new();
        let _ = write!(path, "{last}\0");
        if last.as_str().is_empty() {
            return Err(fail!(NotFound, "no checkpoint has been made in this process, so nothing can be restored from one"));
        }
        let image = Image::open(fresh_path(&path)?, false)?.ok_or_else(|| fail!(NotFound, "checkpoint {last} is gone"))?;
        let name = self.name_of(region);
        let buffer = image.find(Some(name.as_str()))?;
        let at = u64::from(id - region.first.load(Relaxed));
        if buffer.shift != region.shift.load(Relaxed) || at >= buffer.chunks() {
            return Err(fail!(NotFound, "the buffer had {} bytes in checkpoint {last}: it has no chunk {at}", buffer.size));
        }
        image.read(&buffer, at, data, scratch)
    }
}
