//! One heap: what a thread owns, in a window of address space of its own. In the window's first slice lies this record, then arrays
//! that have an entry per slice; its slices follow, in units of 2 MiB that are mapped as they are needed. So "is it mine, and which
//! slice" is one subtraction, one comparison and one shift. Called by the rest of the heap; knows the places, not what is done.

use super::aside::Aside;
use super::atomics::AtomicUsize;
use super::block::Block;
use super::classes::{COUNT, Class, RUNS, SLICE, SMALL};
use super::magazines::Magazines;
use super::outbox::Outbox;
use super::remote::Inbox;
use super::slices::Slices;
use super::span::Span;
use super::way::Way;
use crate::config;
use crate::ds::Zeroed;
use crate::os::vm;
use core::cell::{Cell, UnsafeCell};
use core::ptr::null;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Slices of a window: 16 GiB.
pub const SLICES: usize = 1 << 18;
/// Slices whose entries are mapped at first: 512 MiB. Windows of heaps after [`config::HEAP_WIDE`] end there.
pub const SLICES_AT_FIRST: usize = 1 << 13;
/// Bytes of a window.
pub const WINDOW: usize = SLICES * SLICE;
/// Bytes of the windows that end early.
pub const NARROW: usize = SLICES_AT_FIRST * SLICE;
/// Offset of the record: its address, and so the mark of free blocks, has in its second byte what few data have. That byte alone is
/// what `free` reads of a block first: a whole word would have to wait for the parts of it that the program has just written.
pub const RECORD: usize = 0xa600;
/// Offsets of the arrays from the window's start: list heads, checks, ways, spans, units.
pub const HEADS: usize = SLICE;
/// See [`HEADS`].
pub const CHECKS: usize = HEADS + SLICES * size_of::<*mut Block>();
/// See [`HEADS`].
pub const WAYS: usize = CHECKS + SLICES * size_of::<Check>();
/// See [`HEADS`].
pub const SPANS: usize = WAYS + SLICES * size_of::<Way>();
/// See [`HEADS`].
pub const UNITS: usize = SPANS + SLICES * size_of::<Span>();
/// Slices of a unit.
pub const UNIT_SLICES: usize = vm::HUGE / SLICE;
/// The first unit that has blocks: those before it are the record and the arrays.
pub const FIRST_UNIT: usize = (UNITS + WINDOW / vm::HUGE * size_of::<super::slices::Unit>()).div_ceil(vm::HUGE);

/// Bins: one per 16 bytes up to [`SMALL`], then one for runs of each length.
pub const BINS: usize = SMALL / 16 + 1 + RUNS;

/// The free blocks of one size that are given next: a list. As wide as a step of sizes, so that its place is a sum, and addressed by
/// one register: processors pass what was stored there on to the next load at once only where both are.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Bin(pub *mut Block);

/// What `free` asks of a slice.
#[repr(C)]
pub struct Check {
    /// The class's magic where a free block only has to be put into the slice's list; 0 sends it the long way.
    pub magic: AtomicU32,
    /// Blocks that were ever given and are not in the slice's list, and one more while the slice is its class's current one; while it
    /// has too few to give, how many must come back before it is looked at again. At 0 the long way looks which of both it was.
    pub out: Cell<u32>,
}

/// The slices of one class, by number; 0 = none.
pub struct List {
    /// Where blocks come from now.
    pub current: Cell<u32>,
    /// Others with free blocks, longest waiting last.
    pub first: Cell<u32>,
    /// The last of them.
    pub last: Cell<u32>,
}

impl List {
    /// No slices.
    const fn none() -> Self {
        Self { current: Cell::new(0), first: Cell::new(0), last: Cell::new(0) }
    }
}

/// A mapping of a large block kept for the next one. All zero: none.
#[derive(Clone, Copy)]
pub struct Kept {
    /// Its record's number plus one, or 0.
    pub number: u32,
    /// It was not needed since the last look.
    pub idle: bool,
    /// First byte.
    pub start: usize,
    /// Bytes mapped.
    pub mapped: usize,
}

impl Kept {
    /// No mapping.
    pub const NONE: Self = Self { number: 0, idle: false, start: 0, mapped: 0 };
}

/// A thread's heap. All zero is valid but for `bins`, whose lists end with the heap itself, and `magazines`.
#[repr(C)]
pub struct Heap {
    /// Always 0, which is no mark: lists end here.
    zero: usize,
    /// Blocks lie below this offset from the window's start.
    pub limit: Cell<usize>,
    /// Free blocks to be given next, by size, and runs kept for reuse.
    pub bins: UnsafeCell<[Bin; BINS]>,
    /// Free blocks of more than [`SMALL`] bytes to be given next.
    pub magazines: Magazines,
    /// Slices that were ever put into the bins of runs, and that were ever taken from them: two counts, so that a run that is freed and
    /// given in turn does not wait for one.
    pub runs_kept: Cell<usize>,
    /// See `runs_kept`.
    pub runs_reused: Cell<usize>,
    /// Large blocks kept for reuse.
    pub kept_large: UnsafeCell<[Kept; config::HEAP_KEPT_LARGE]>,
    /// Slices by class, plain and described.
    lists: [[List; COUNT]; 2],
    /// Free address space.
    pub slices: Slices,
    /// Slices of blocks that have none to give, or too few.
    pub full: Cell<usize>,
    /// Some magazine may have blocks.
    pub has_magazines: Cell<bool>,
    /// Visits until the clock is looked at.
    pub until_look: Cell<u32>,
    /// Bytes charged ahead for the next slices.
    pub prepaid: Cell<usize>,
    /// When idle memory was last looked for, in milliseconds.
    pub looked: Cell<u64>,
    /// Freed blocks that were not looked at yet.
    pub aside: Aside,
    /// Which heap it is, from 0.
    pub number: Cell<u32>,
    /// Memory node that it was last used on, while nobody runs it.
    pub node: Cell<i32>,
    /// Looks around that are left until its thread no longer counts as new.
    pub young: Cell<u32>,
    /// An idle heap whose blocks the thread frees while it is new.
    pub wanted: Cell<*const Heap>,
    /// The next idle heap, under the depot's lock.
    pub next_idle: Cell<*const Heap>,
    /// What this thread frees of others' blocks.
    pub outbox: UnsafeCell<Outbox>,
    /// What others free of this heap's blocks.
    pub inbox: Remote,
}

/// Apart from the owner's own lines.
#[repr(align(128))]
pub struct Remote(pub Inbox);

const _: () = assert!(RECORD + size_of::<Heap>() <= SLICE && RECORD.is_multiple_of(align_of::<Heap>()));

// SAFETY: the owning thread alone touches the cells (or the depot's lock holder while there is none); the inbox is atomic.
unsafe impl Sync for Heap {}
// SAFETY: zero is a valid value of every field.
unsafe impl Zeroed for Heap {}

/// How far behind the start of a heap's window an address lies; more than any limit for what lies before it.
#[inline(always)]
pub fn offset(heap: *const Heap, address: usize) -> usize {
    // The compiler makes a third instruction of it.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: calculates.
    unsafe {
        let offset: usize;
        core::arch::asm!(
            "lea {offset}, [{address} + {record}]",
            "sub {offset}, {heap}",
            offset = out(reg) offset,
            address = in(reg) address,
            heap = in(reg) heap as usize,
            record = const RECORD,
            options(nomem, nostack, pure),
        );
        offset
    }
    #[cfg(not(target_arch = "x86_64"))]
    address.wrapping_add(RECORD).wrapping_sub(heap as usize)
}

/// See [`Heap::bin`].
#[inline(always)]
pub fn bin_of(heap: *const Heap, size: usize) -> *mut *mut Block {
    const STEP: usize = size_of::<Bin>();
    let end: usize;
    #[cfg(target_arch = "x86_64")] // as above
    // SAFETY: calculates.
    unsafe {
        core::arch::asm!(
            "lea {end}, [{heap} + {size} + {most}]",
            end = out(reg) end,
            heap = in(reg) heap as usize,
            size = in(reg) size,
            most = const STEP - 1,
            options(nomem, nostack, pure, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        end = (heap as usize).wrapping_add(size).wrapping_add(STEP - 1);
    }
    ((end & !(STEP - 1)) + core::mem::offset_of!(Heap, bins)) as *mut *mut Block
}

impl Heap {
    /// A heap without memory, whose every request takes the long way. `own` is its address.
    pub const fn without_memory(own: *const Heap) -> Self {
        let end = own.cast::<Block>().cast_mut();
        Self {
            zero: 0,
            limit: Cell::new(0),
            bins: UnsafeCell::new([Bin(end); BINS]),
            magazines: Magazines::none(own.cast::<*mut Block>().cast_mut()),
            runs_kept: Cell::new(0),
            runs_reused: Cell::new(0),
            kept_large: UnsafeCell::new([Kept::NONE; config::HEAP_KEPT_LARGE]),
            lists: [const { [const { List::none() }; COUNT] }; 2],
            slices: Slices::none(),
            full: Cell::new(0),
            has_magazines: Cell::new(false),
            until_look: Cell::new(0),
            prepaid: Cell::new(0),
            looked: Cell::new(0),
            aside: Aside::new(),
            number: Cell::new(0),
            node: Cell::new(0),
            young: Cell::new(0),
            wanted: Cell::new(null()),
            next_idle: Cell::new(null()),
            outbox: UnsafeCell::new(Outbox::new()),
            inbox: Remote(Inbox::new(AtomicUsize::new(0))),
        }
    }

    /// The address of the heap, which is also its mark.
    #[inline(always)]
    pub fn mark(&self) -> usize {
        self as *const Self as usize
    }

    /// Where its window starts.
    #[inline(always)]
    pub fn window(&self) -> usize {
        self.mark() - RECORD
    }

    /// What ends its lists.
    #[inline(always)]
    pub fn end(&self) -> *mut Block {
        self.mark() as *mut Block
    }

    /// The number of the slice around an address in the window.
    #[inline(always)]
    pub fn slice_of(&self, address: usize) -> u32 {
        (offset(self, address) / SLICE) as u32
    }

    /// The first byte of a slice.
    #[inline(always)]
    pub fn start_of(&self, slice: u32) -> usize {
        self.window() + slice as usize * SLICE
    }

    /// Where the list of a slice's free blocks starts.
    ///
    /// # Safety
    /// The slice is below `limit`.
    #[inline(always)]
    pub unsafe fn head(&self, slice: usize) -> *mut *mut Block {
        (self.window() + HEADS + slice * size_of::<*mut Block>()) as *mut *mut Block
    }

    /// Which blocks of a slice of plain ones above [`SMALL`] bytes are live, in place of a list: a bit for each KiB, in which no more than one
    /// block starts. Its owner alone writes them.
    ///
    /// # Safety
    /// The slice is below `limit`.
    #[inline(always)]
    pub unsafe fn live(&self, slice: usize) -> &'static AtomicU64 {
        // SAFETY: as for checks.
        unsafe { &*((self.window() + HEADS + slice * size_of::<u64>()) as *const AtomicU64) }
    }

    /// What `free` asks.
    ///
    /// # Safety
    /// The slice is below `limit`.
    #[inline(always)]
    pub unsafe fn check(&self, slice: usize) -> &'static Check {
        // SAFETY: entries of slices below the limit are mapped for ever, and zero is valid.
        unsafe { &*((self.window() + CHECKS + slice * size_of::<Check>()) as *const Check) }
    }

    /// What `free` asks where the check says 0.
    ///
    /// # Safety
    /// The slice is below `limit`.
    #[inline(always)]
    pub unsafe fn way(&self, slice: usize) -> &'static Way {
        // SAFETY: as for checks.
        unsafe { &*((self.window() + WAYS + slice * size_of::<Way>()) as *const Way) }
    }

    /// What is known of a slice.
    ///
    /// # Safety
    /// The slice is in a unit that was mapped, or among the record's own.
    #[inline(always)]
    pub unsafe fn span(&self, slice: u32) -> &'static Span {
        // SAFETY: entries of mapped units are mapped for ever, and zero is valid.
        unsafe { &*((self.window() + SPANS + slice as usize * size_of::<Span>()) as *const Span) }
    }

    /// The slices of a class.
    #[inline]
    pub fn list(&self, class: Class, described: bool) -> &List {
        let [plain, others] = &self.lists;
        let lists = if described { others } else { plain };
        match lists.get(class.number() as usize) {
            Some(list) => list,
            None => super::corrupt::report("a size class is none,", class.number() as usize),
        }
    }

    /// The bin of requests of `size` bytes, at most [`SMALL`], all of one class.
    #[inline(always)]
    pub fn bin(&self, size: usize) -> *mut *mut Block {
        debug_assert!(size <= SMALL);
        bin_of(self, size)
    }

    /// Number of the slice that plain blocks of a class come from now; 0 = none.
    #[inline(always)]
    pub fn current(&self, class: Class) -> &Cell<u32> {
        // SAFETY: a class's number is below COUNT.
        unsafe { &(*self.lists.as_ptr().cast::<List>().add(class.number() as usize)).current }
    }

    /// The bin of runs of so many slices, 1 to [`RUNS`].
    #[inline(always)]
    pub fn run_bin(&self, slices: u32) -> *mut *mut Block {
        debug_assert!((1..=RUNS).contains(&(slices as usize)));
        // SAFETY: there are RUNS of them after those of sizes.
        unsafe { self.bins.get().cast::<Bin>().add(SMALL / 16 + slices as usize).cast() }
    }

    /// Takes the first block of a list, if there is one; clears its mark.
    ///
    /// # Safety
    /// `list` is a list of this heap, which the caller owns.
    #[inline]
    pub unsafe fn pop(&self, list: *mut *mut Block) -> Option<*mut Block> {
        // SAFETY: the list holds marked blocks and ends with the heap, whose first word is no mark.
        unsafe {
            let block = *list;
            if (*block).mark != self.mark() {
                if block != self.end() {
                    super::corrupt::report("a freed block was written to,", block as usize);
                }
                return None;
            }
            *list = (*block).next;
            (*block).mark = 0;
            Some(block)
        }
    }

    /// Puts a block in front of a list.
    ///
    /// # Safety
    /// As for [`pop`](Self::pop); the block is the heap's and nobody uses it.
    #[inline]
    pub unsafe fn push(&self, list: *mut *mut Block, block: *mut Block) {
        // SAFETY: the caller's promise.
        unsafe {
            *block = Block { mark: self.mark(), next: *list };
            *list = block;
        }
    }
}

/// Thread heaps whose threads run.
pub static RUNNING: AtomicU32 = AtomicU32::new(0);
