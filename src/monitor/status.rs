//! The status page: a process's numbers in one shared page, for `qmem run` and whoever else watches. Written by
//! `system::status`, read by other processes, possibly of another version: fields are only ever added at the end, and `version`
//! grows when one changes its meaning. All numbers are little-endian 64-bit words.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};

/// First word of a page: "qmemstat".
pub const MAGIC: u64 = u64::from_le_bytes(*b"qmemstat");
/// Of the layout below.
pub const VERSION: u64 = 1;
/// Bytes of a command's name, NUL-padded.
pub const COMMAND: usize = 64;

macro_rules! words {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// The words of a page after the head, in their order.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Numbers {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        const COUNT: usize = [$(stringify!($name)),*].len();

        impl Numbers {
            fn words(&self) -> [u64; COUNT] {
                [$(self.$name),*]
            }

            fn from_words(words: [u64; COUNT]) -> Self {
                let [$($name),*] = words;
                Self { $($name),* }
            }

            /// Numbers by their names, as [`Self::named`] gives them.
            pub fn from_named(number: impl Fn(&str) -> u64) -> Self {
                Self { $($name: number(stringify!($name)),)* }
            }

            /// Every number with its name, for reports.
            pub fn named(&self) -> [(&'static str, u64); COUNT] {
                [$((stringify!($name), self.$name)),*]
            }
        }
    };
}

words! {
    /// The process.
    pid,
    /// Nanoseconds since 1970 when the page was made.
    started,
    /// Nanoseconds since 1970 when it was last written.
    updated,
    /// 1 = the process has ended in order, and these are its last numbers.
    ended,
    /// Bytes that may be resident by the budget.
    budget,
    /// Bytes resident of those: frames and compressed chunks, and the heap unless the program is preloaded.
    resident,
    /// The most of that.
    peak_resident,
    /// The heap's bytes; in a preloaded program they come beside the budget.
    heap,
    /// The most of that, as far as seen.
    peak_heap,
    /// Bytes of paged buffers, as the program sees them.
    logical,
    /// The most of that, as far as seen.
    peak_logical,
    /// Bytes that evicted chunks take in RAM.
    compressed,
    /// The most of that, as far as seen.
    peak_compressed,
    /// Bytes that evicted chunks take in the swap file.
    swapped,
    /// The most of that, as far as seen.
    peak_swapped,
    /// Bytes saved by sharing equal chunks.
    deduplicated,
    /// The most of that, as far as seen.
    peak_deduplicated,
    /// Page faults served.
    faults,
    /// Chunks evicted.
    evictions,
    /// Nanoseconds in which faults were served: what the program's threads waited for, added up.
    fault_nanos,
    /// Faults on chunks that had been evicted: those that a larger budget spares.
    refaults,
    /// Nanoseconds in which those were served.
    refault_nanos,
    /// Blocks that were refused.
    refused,
    /// Bytes that the swap file may reach; 0 = there is none.
    swap_capacity,
    /// Faults whose chunk had been read ahead.
    ahead_hits,
    /// Infidelity that lossy compression has spent, in 10^-15, rounded up.
    error_spent,
    /// Infidelity that it may spend, in 10^-15; 0 = no bound.
    error_budget,
    /// Bytes of chunks, as the program sees them, that the lossy codec holds.
    lossy,
}

/// Buffers that a page shows: the largest.
pub const BUFFERS: usize = 16;
/// Byte at which they begin.
const BUFFERS_AT: usize = 2048;

/// One paged buffer. All zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Its address.
    pub start: u64,
    /// Its bytes.
    pub logical: u64,
    /// Of these, resident; compressed in memory; in the swap file.
    pub resident: u64,
    /// As above.
    pub compressed: u64,
    /// As above.
    pub swapped: u64,
    /// Faults served in it.
    pub faults: u64,
}

const BUFFER_WORDS: usize = 6;

impl Buffer {
    fn words(&self) -> [u64; BUFFER_WORDS] {
        [self.start, self.logical, self.resident, self.compressed, self.swapped, self.faults]
    }
}

/// The page as it lies in memory.
#[repr(C)]
pub struct Page {
    magic: AtomicU64,
    version: AtomicU64,
    /// Odd while the words are written: whoever reads tries again.
    sequence: AtomicU64,
    /// How many words follow the command.
    count: AtomicU64,
    command: [AtomicU64; COMMAND / 8],
    words: [AtomicU64; COUNT],
    room: [AtomicU64; BUFFERS_AT / 8 - 4 - COMMAND / 8 - COUNT],
    buffers: [[AtomicU64; BUFFER_WORDS]; BUFFERS],
}

const _: () = assert!(size_of::<Page>() <= crate::os::vm::PAGE);
const _: () = assert!(core::mem::offset_of!(Page, buffers) == BUFFERS_AT);

impl Page {
    /// Makes a zero page a status page.
    pub fn begin(&self, command: &[u8]) {
        for (word, text) in self.command.iter().zip(command.chunks(8)) {
            let mut bytes = [0; 8];
            for (to, from) in bytes.iter_mut().zip(text) {
                *to = *from;
            }
            word.store(u64::from_le_bytes(bytes), Relaxed);
        }
        self.version.store(VERSION, Relaxed);
        self.count.store(COUNT as u64, Relaxed);
        self.magic.store(MAGIC, SeqCst);
    }

    /// Writes new numbers. One thread at a time.
    pub fn write(&self, numbers: &Numbers, buffers: &[Buffer; BUFFERS]) {
        let sequence = self.sequence.load(Relaxed) | 1;
        self.sequence.store(sequence, SeqCst);
        fence(SeqCst);
        for (word, value) in self.words.iter().zip(numbers.words()) {
            word.store(value, Relaxed);
        }
        for (place, buffer) in self.buffers.iter().zip(buffers) {
            for (word, value) in place.iter().zip(buffer.words()) {
                word.store(value, Relaxed);
            }
        }
        self.sequence.store(sequence.wrapping_add(1), SeqCst);
    }
}

/// What a page's bytes say: the command's name and the numbers. None if they are no status page, one of another version, or one
/// that was being written: read it again then.
pub fn read(bytes: &[u8]) -> Option<([u8; COMMAND], Numbers)> {
    let word = |index: usize| {
        let at = bytes.get(index * 8..index * 8 + 8)?;
        Some(u64::from_le_bytes(at.try_into().ok()?))
    };
    if word(0)? != MAGIC || word(1)? != VERSION || word(2)? % 2 == 1 {
        return None;
    }
    let there = usize::try_from(word(3)?).ok()?;
    let mut command = [0; COMMAND];
    command.copy_from_slice(bytes.get(32..32 + COMMAND)?);
    let mut words = [0; COUNT];
    for (index, value) in words.iter_mut().enumerate().take(there) {
        *value = word(4 + COMMAND / 8 + index)?;
    }
    Some((command, Numbers::from_words(words)))
}

/// The buffers of a page that [`read`] found good, the largest first; all zero: no more.
pub fn read_buffers(bytes: &[u8]) -> [Buffer; BUFFERS] {
    let word = |index: usize| {
        let at = bytes.get(BUFFERS_AT + index * 8..BUFFERS_AT + index * 8 + 8);
        at.and_then(|at| at.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let mut buffers = [Buffer::default(); BUFFERS];
    for (n, buffer) in buffers.iter_mut().enumerate() {
        let field = |k: usize| word(n * BUFFER_WORDS + k);
        *buffer = Buffer {
            start: field(0),
            logical: field(1),
            resident: field(2),
            compressed: field(3),
            swapped: field(4),
            faults: field(5),
        };
    }
    buffers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_back() {
        // SAFETY: zero is a valid value of every field.
        let page: Page = unsafe { core::mem::zeroed() };
        let bytes = |page: &Page| {
            // SAFETY: the page is plain memory of this size.
            unsafe { core::slice::from_raw_parts((page as *const Page).cast::<u8>(), size_of::<Page>()) }.to_vec()
        };
        assert_eq!(read(&bytes(&page)), None);
        page.begin(b"simulator");
        let numbers = Numbers { pid: 7, refaults: 9, swap_capacity: u64::MAX, ..Numbers::default() };
        let mut buffers = [Buffer::default(); BUFFERS];
        buffers[0] = Buffer { start: 4096, logical: 5, resident: 4, compressed: 3, swapped: 2, faults: 1 };
        buffers[15].faults = 77;
        page.write(&numbers, &buffers);
        assert_eq!(read_buffers(&bytes(&page)), buffers);
        let (command, found) = read(&bytes(&page)).unwrap();
        assert_eq!((command.starts_with(b"simulator\0"), found), (true, numbers));
        assert_eq!(read(&bytes(&page)[..40]), None);
        page.sequence.store(5, SeqCst);
        assert_eq!(read(&bytes(&page)), None, "it was being written");
    }
}
