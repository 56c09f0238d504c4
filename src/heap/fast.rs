//! The paths that every block takes: `malloc` and `free` for plain blocks, a handful of instructions each (`medium.rs` has those of more
//! than 1 KiB), and the long ways behind them. Called by the face, which passes them on to be inlined into the program's entry points.
//!
//! `malloc`: the thread's heap, the bin of the size, its first block, whose mark says that it is free and its bin not empty; the
//! next block becomes the first. `free`: in my window? which slice? does a block start there? is it marked, so freed already?
//! Then mark it, put it into the slice's list, and count: at 0 the slice is empty.

use super::block::Block;
use super::classes::{Class, MAX_RUN, MAX_SMALL, SLICE, SMALL};
use super::local::{CHECKS, Check, Heap, RECORD, WAYS, bin_of, offset};
use super::outbox::Outbox;
use super::span::{self, Kind, PLAIN_TAG, Place};
use super::thread;
use super::way::{Hold, Way};
use super::{aside, large, medium, refill, runs};
use crate::ds::page_map::{self, Tag};
use core::mem::offset_of;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering::Relaxed;

/// A block of `size` bytes at a multiple of 16, uninitialised. Null: no memory.
#[inline(always)]
pub fn malloc(size: usize) -> *mut u8 {
    malloc_or(size, malloc_at_length, malloc_at_length)
}

/// [`malloc`], but what is above 1 KiB is left to `larger`, and what its bin does not have at hand to `empty`.
#[inline(always)]
pub fn malloc_or(size: usize, larger: impl FnOnce(usize) -> *mut u8, empty: impl FnOnce(usize) -> *mut u8) -> *mut u8 {
    let heap = thread::heap();
    if size > SMALL {
        return larger(size);
    }
    // SAFETY: the thread's heap is its own, and the index is below BINS; a list holds marked blocks and ends with a heap, whose
    // first word is no mark.
    unsafe {
        let bin = bin_of(heap, size);
        let block = *bin;
        if (*block).mark != heap as usize {
            return empty(size);
        }
        *bin = (*block).next;
        (*block).mark = 0;
        block.cast()
    }
}

/// [`malloc`] of more than 1 KiB, or where the bin is empty, the thread has no heap yet, or the block is mapped on its own.
#[inline(never)]
pub fn malloc_at_length(size: usize) -> *mut u8 {
    let block = filled(size);
    if block.is_null() { malloc_slow(size) } else { block }
}

/// [`refilled`] or [`at_hand`].
#[inline(always)]
fn filled(size: usize) -> *mut u8 {
    if size <= SMALL { refilled(size) } else { at_hand(size) }
}

/// A block of up to 1 KiB where its bin is empty. Null: the thread has no heap yet, or there is no memory.
#[inline(always)]
pub fn refilled(size: usize) -> *mut u8 {
    let heap = thread::heap();
    // SAFETY: the thread's heap is its own; what has room for blocks is no stand-in. There is a bin for the size.
    unsafe {
        if (*heap).limit.get() == 0 {
            return null_mut();
        }
        let bin = bin_of(heap, size.max(1)); // that of 0 bytes stays empty: a class has one
        if *bin != (*heap).end() {
            return null_mut(); // what is wrong with it is found by the long way
        }
        refill::fill(&*heap, bin, Class::of_small(size)).cast()
    }
}

/// A block of more than 1 KiB that lies ready: in its class's current slice, or a run or a mapping that was kept. Null: none does.
#[inline(always)]
pub fn at_hand(size: usize) -> *mut u8 {
    let heap = thread::heap();
    // SAFETY: the thread's heap is its own; a stand-in has no current slices, and its lists are empty.
    unsafe {
        if medium::is_medium(size) {
            return medium::at_hand_medium(size).map_or(null_mut(), NonNull::as_ptr);
        }
        if size <= MAX_RUN {
            let count = size.div_ceil(SLICE) as u32;
            let bin = (*heap).run_bin(count);
            if (**bin).mark == heap as usize {
                return runs::take_kept(&*heap, bin, count, size);
            }
        } else if let Some(heap) = thread::own() {
            return large::reuse(heap, size, 16, PLAIN_TAG).map_or(null_mut(), NonNull::as_ptr);
        }
    }
    null_mut()
}

/// A block at a multiple of `align`, a power of two, that lies ready. Null: none does.
#[inline(always)]
pub fn at_hand_aligned(size: usize, align: usize) -> *mut u8 {
    match Class::of(size, align) {
        Some(class) => malloc_or(class.shape().size as usize, at_hand, refilled),
        None if align <= SLICE && size > MAX_SMALL && size <= MAX_RUN => at_hand(size), // runs start at slices
        None => null_mut(),
    }
}

/// [`malloc`] of what is not at hand.
#[cold]
#[inline(never)]
pub fn malloc_slow(size: usize) -> *mut u8 {
    if let Some(heap) = thread::own() {
        // SAFETY: the thread's heap is its own.
        let (block, _) = unsafe {
            if size <= MAX_SMALL {
                take(heap, Class::of_size(size.max(1)), size)
            } else if size <= MAX_RUN {
                runs::take(heap, size, PLAIN_TAG, false)
            } else {
                (large::reuse(heap, size, 16, PLAIN_TAG).map_or(null_mut(), NonNull::as_ptr), false)
            }
        };
        if !block.is_null() {
            return block;
        }
    }
    super::obtain(size, 16)
}

/// The count of the slice around `ptr`, of the calling thread's heap, is 0. Finds the heap again, so that `free` need not keep it.
#[inline(never)]
fn counted_down(ptr: *mut u8) {
    if let Some(heap) = thread::own() {
        refill::counted_down(heap, heap.slice_of(ptr as usize));
    }
}

/// A plain block for the heap's owner. True: it is zero but for 16 bytes.
///
/// # Safety
/// The caller owns the heap; the class is that of `size`.
pub unsafe fn take(heap: &Heap, class: Class, size: usize) -> (*mut u8, bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if size > SMALL {
            return medium::take(heap, class);
        }
        let bin = heap.bin(size.max(1));
        let block = heap.pop(bin).unwrap_or_else(|| refill::fill(heap, bin, class));
        (block.cast(), false)
    }
}

/// A described block for the heap's owner, of the class, live with size and tag.
///
/// # Safety
/// The caller owns the heap.
pub unsafe fn take_described(heap: &'static Heap, class: Class, size: usize, tag: u8) -> (*mut u8, bool) {
    // SAFETY: the caller's promise.
    let (block, zero) = unsafe { refill::take(heap, class, true) };
    if !block.is_null()
        && let Some(place) = span::locate(heap, block as usize)
    {
        place.give(size, tag);
    }
    (block.cast(), zero)
}

/// Does a block start at `ptr` whose slice's check says what becomes of it?
///
/// # Safety
/// The slice is below the heap's limit.
#[inline(always)]
unsafe fn is_checked(heap: *const Heap, slice: usize, ptr: *mut u8) -> bool {
    const { assert!(offset_of!(Check, magic) == 0 && size_of::<Check>() == 8) };
    // SAFETY: the caller's promise.
    unsafe { starts_block::<CHECKS>(heap, slice, ptr) }
}

/// Does a block start at `ptr` whose slice's way says what becomes of it?
///
/// # Safety
/// The slice is below the heap's limit.
#[inline(always)]
unsafe fn has_way(heap: *const Heap, slice: usize, ptr: *mut u8) -> bool {
    const { assert!(offset_of!(Way, magic) == 0 && size_of::<Way>() == 8) };
    // SAFETY: the caller's promise.
    unsafe { starts_block::<WAYS>(heap, slice, ptr) }
}

/// Does a block start at `ptr`, by the magic that its slice's entry of 8 bytes starts with, in this array of the window?
///
/// # Safety
/// The slice is below the heap's limit.
#[inline(always)]
unsafe fn starts_block<const ENTRIES: usize>(heap: *const Heap, slice: usize, ptr: *mut u8) -> bool {
    // The compiler keeps an atomic in a register for its two uses, which takes an instruction and a register more, and the address's lower
    // part for the next question.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads one number of the slice's entry, twice; whoever closes the slice meanwhile comes too late either way.
    unsafe {
        core::arch::asm!(
            "movzx {offset:e}, {ptr:x}",
            "imul {offset:e}, dword ptr [{heap} + {slice}*8 + {entries}]",
            "cmp {offset:e}, dword ptr [{heap} + {slice}*8 + {entries}]",
            "jae {no}",
            offset = out(reg) _,
            ptr = in(reg) ptr,
            heap = in(reg) heap,
            slice = in(reg) slice,
            entries = const ENTRIES - RECORD,
            no = label { return false },
            options(nostack, readonly),
        );
        true
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        let entry = (heap as usize - RECORD + ENTRIES + slice * 8) as *const core::sync::atomic::AtomicU32;
        let magic = (*entry).load(Relaxed);
        u32::from(ptr as usize as u16).wrapping_mul(magic) < magic
    }
}

/// Does the block look as if it were free already? Freed ones always do, others seldom; see [`RECORD`].
///
/// # Safety
/// The block is the heap's.
#[inline(always)]
unsafe fn seems_marked(heap: *const Heap, ptr: *mut u8) -> bool {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads one byte of a block, which its program may be writing if it errs.
    unsafe {
        core::arch::asm!(
            "cmp byte ptr [rdi + 1], {heap:h}", // high halves of registers do not go with the new registers
            "je {yes}",
            heap = in(reg_abcd) heap,
            in("rdi") ptr,
            yes = label { return true },
            options(nostack, readonly),
        );
        false
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        (*ptr.cast::<Block>()).mark == heap as usize
    }
}

/// Frees the block that starts at `ptr` if it is a plain one or a run of the calling thread's, or a plain one of a slice of another heap's
/// from which it has freed others just before; anything else is left to `slow`: what is nobody's, freed already or no block's start, most of
/// what is other threads', large and described blocks.
///
/// # Safety
/// If it is a live block, nobody uses it any more.
#[inline(always)]
pub unsafe fn free_or(ptr: *mut u8, slow: impl FnOnce(*mut u8)) {
    let heap = thread::heap();
    let offset = offset(heap, ptr as usize);
    // SAFETY: the thread's heap is its own; slices below the limit have entries; a block that starts in a slice open to `free` is
    // the heap's, and the caller gives it up.
    unsafe {
        if offset < (*heap).limit.get() {
            let slice = offset / SLICE;
            if is_checked(heap, slice, ptr) {
                if !seems_marked(heap, ptr) {
                    return give_back(heap, slice, ptr, counted_down);
                }
            } else if has_way(heap, slice, ptr) && go_way(heap, slice, ptr) {
                return;
            }
        } else if Outbox::add_again((*heap).outbox.get(), ptr, hand_over) {
            return;
        }
    }
    slow(ptr);
}

/// There are enough of other heaps' blocks of the slice around `ptr`.
#[inline(never)]
fn hand_over(ptr: *mut u8) {
    if let Some(heap) = thread::own() {
        // SAFETY: the thread's own heap.
        unsafe { (*heap.outbox.get()).hand_over(ptr, &mut thread::relieve) };
    }
}

/// Puts a block into its slice's list; `down` where the count of blocks that are out is 0 then.
///
/// # Safety
/// The caller owns the heap; the block is live, of this slice, which is open to `free`, and the caller gives it up.
#[inline(always)]
unsafe fn give_back(heap: *const Heap, slice: usize, ptr: *mut u8, down: impl FnOnce(*mut u8)) {
    let block = ptr.cast::<Block>();
    // SAFETY: the caller's promise.
    unsafe {
        let head = (*heap).head(slice);
        *block = Block { mark: heap as usize, next: *head };
        *head = block;
        let check = (*heap).check(slice);
        let out = check.out.get().wrapping_sub(1);
        check.out.set(out);
        if out == 0 {
            down(ptr);
        }
    }
}

/// Puts a plain block that was put aside into its slice's list. False, and nothing happens: it is free already.
///
/// # Safety
/// The caller owns the heap; a plain block of it starts there, in the span where it was put aside, and was not given since.
pub unsafe fn give_back_unless_free(heap: &Heap, block: *mut Block) -> bool {
    let slice = offset(heap, block as usize) / SLICE;
    // SAFETY: the caller's promise: the slice is below the limit.
    unsafe {
        let live = (*block).mark != heap.mark();
        if live {
            // Not by the thread's heap: a thread that ends has none any more.
            give_back(heap, slice, block.cast(), |_| refill::counted_down(heap, slice as u32));
        }
        live
    }
}

/// Puts a block where its slice's way says. False, and nothing happens: it is free already, or a run that is not plain.
///
/// # Safety
/// The caller owns the heap; a block starts there, of this slice, which has a way, and the caller gives it up.
#[inline(always)]
unsafe fn go_way(heap: *const Heap, slice: usize, ptr: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let way = (*heap).way(slice);
        if way.hold() != Hold::NONE {
            if way.hold() == Hold::ASIDE {
                aside::put(heap, ptr.cast());
                return true;
            }
            if way.hold() == Hold::RUN {
                return runs::end(heap, slice, ptr.cast());
            }
            if medium::is_on_its_way(heap, ptr) {
                return false;
            }
        }
        medium::give_back(heap, slice, ptr, way.medium())
    }
}

/// Frees what [`free_or`] left of the calling thread's heap and nobody watches: a block that is put aside, a run, or a block that
/// looked as if it were free already and is not. False, and nothing happens, if `ptr` is neither.
///
/// # Safety
/// As for [`free_or`].
#[inline]
pub unsafe fn free_own(ptr: *mut u8) -> bool {
    let heap = thread::heap();
    let offset = offset(heap, ptr as usize);
    // SAFETY: as in `free_or`; the caller gives the block up.
    unsafe {
        if offset >= (*heap).limit.get() {
            return false;
        }
        let slice = offset / SLICE;
        if has_way(heap, slice, ptr) {
            return go_way(heap, slice, ptr);
        }
        let live = is_checked(heap, slice, ptr) && (*ptr.cast::<Block>()).mark != heap as usize;
        if live {
            give_back(heap, slice, ptr, counted_down);
        }
        live
    }
}

/// Bytes of the plain block of the calling thread's heap that starts at `address` and nobody watches; None: it is none.
#[inline]
pub fn usable_own(address: usize) -> Option<usize> {
    let heap = thread::own()?;
    let offset = offset(heap, address);
    // SAFETY: the heap is the thread's own; slices below the limit have entries.
    unsafe {
        let slice = offset / SLICE;
        let block = address as *mut u8;
        let known = offset < heap.limit.get() && (is_checked(heap, slice, block) || has_way(heap, slice, block));
        match known.then(|| heap.span(slice as u32).what()).flatten() {
            Some((Kind::Plain, class)) => Some(class.shape().size as usize),
            _ => None,
        }
    }
}

/// Gives a plain block or run of the calling thread's heap that nobody watches another size; it may move. Null: it is as it was,
/// because it is none, because it becomes a block of another kind, or because there is no memory.
///
/// # Safety
/// As for [`free_or`]; `size` is not 0.
pub unsafe fn resize_own(ptr: *mut u8, size: usize) -> *mut u8 {
    let Some(heap) = thread::own() else { return null_mut() };
    let offset = offset(heap, ptr as usize);
    if offset >= heap.limit.get() {
        return null_mut();
    }
    let slice = (offset / SLICE) as u32;
    // SAFETY: the heap is the thread's own and the slice below its limit; the caller gives the block up.
    unsafe {
        if !is_checked(heap, slice as usize, ptr) && !has_way(heap, slice as usize, ptr) {
            return null_mut();
        }
        let span = heap.span(slice);
        let Some((Kind::Plain, class)) = span.what() else {
            let grown = size > MAX_SMALL && size <= MAX_RUN && span.is_plain_run();
            if grown && runs::resize(heap, slice, size) {
                span.size.store(size, Relaxed);
                return ptr;
            }
            return null_mut();
        };
        let usable = class.shape().size as usize;
        let freed = (*ptr.cast::<Block>()).mark == heap.mark() || class.is_medium() && !heap.is_live(offset);
        if freed || heap.aside.has(ptr as usize) || size > MAX_RUN {
            return null_mut();
        }
        // While not more than half is unused.
        if size <= usable && size >= usable / 2 {
            return ptr;
        }
        // What grows once grows again.
        let new = if size > MAX_SMALL { runs::take(heap, size, PLAIN_TAG, true).0 } else { malloc(size) };
        if !new.is_null() {
            new.copy_from_nonoverlapping(ptr, usable.min(size));
            free_or(ptr, |ptr| {
                // Not where somebody began to watch meanwhile.
                if !free_own(ptr) {
                    super::free(ptr);
                }
            });
        }
        new
    }
}

/// Frees a plain block of another thread's heap that nobody watches, or, where `large` says so, a large one that is kept for reuse;
/// false, and nothing happens, if `ptr` is no such block's start or it is freed already.
///
/// # Safety
/// As for [`free_or`]; `large` only if nobody watches large blocks.
#[inline]
pub unsafe fn free_others(ptr: *mut u8, large: bool) -> bool {
    let Some(own) = thread::own() else { return false };
    let Some(entry) = page_map::get(ptr as usize) else { return false };
    let Some(heap) = span::heap_of(entry) else {
        // SAFETY: the thread's own heap; the caller gives the block up.
        return large && entry.tag == Tag::Large && unsafe { large::free_plain(own, entry.payload as usize, ptr) };
    };
    if core::ptr::eq(own, heap) {
        return false;
    }
    let slice = heap.slice_of(ptr as usize);
    // SAFETY: the page map says that the slice is of a mapped unit; a block that starts in a span of plain ones is one, and the
    // caller gives it up.
    unsafe {
        // Not by the checks that `free` goes by: their counts change with every block, and so does the line that they are in.
        let span = heap.span(slice);
        let Some((Kind::Plain, class)) = span.what() else { return false };
        let starts = class.shape().starts_at(ptr as usize - heap.start_of(slice));
        if !starts || span.watched.load(Relaxed) || (*ptr.cast::<Block>()).mark == heap.mark() {
            return false;
        }
        if class.is_medium() && !heap.is_live(offset(heap, ptr as usize)) {
            return false;
        }
        (*own.outbox.get()).add(heap, ptr.cast(), Some((span, class)), &mut thread::relieve);
    }
    thread::follow(own);
    true
}

/// Frees the block at `place`, on any thread; calls `last` when it is no longer live but cannot be given again yet. False, and
/// nothing happens, if it is not live.
///
/// # Safety
/// As for [`free`].
pub unsafe fn free_at(place: &Place, last: impl FnOnce()) -> bool {
    thread::begin_with(place.heap);
    let heap = thread::heap();
    let own = core::ptr::eq(place.heap, heap);
    if !place.claim() {
        return false;
    }
    last();
    let block = place.start as *mut Block;
    // SAFETY: we won the claim; the thread's heap is its own; the block is not in any list.
    unsafe {
        if !own {
            thread::send(place.heap, block);
        } else if place.kind == Kind::Run {
            runs::put(place.heap, place.slice, block);
        } else {
            (*block).mark = place.heap.mark();
            refill::put_list(place.heap, place.slice, block, block, 1);
        }
    }
    true
}
