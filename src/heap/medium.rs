//! Plain blocks of more than 1 KiB: which of them are live stands in a word of their slice, a bit each, so that giving and taking back
//! neither reads nor writes the block, and a second free is seen by its bit. What was freed last is given first, from a magazine; the
//! rest lies in the slices. What other threads free is marked on its way, like smaller blocks. Called by `fast.rs` and `refill.rs`.

use super::block::Block;
use super::classes::{Class, MAX_SMALL, SLICE, SMALL};
use super::local::{HEADS, Heap, RECORD, offset};
use super::magazines::Magazine;
use super::span::Kind;
use super::{aside, corrupt, refill, thread};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering::Relaxed;

const _: () = assert!(SLICE / SMALL == u64::BITS as usize);

/// The bit in [`Heap::live`] of a block that starts at this address, or this offset in its window.
#[inline(always)]
pub fn bit_of(address: usize) -> u64 {
    1 << (address / SMALL % u64::BITS as usize)
}

/// Has this size, more than 1 KiB, a class?
#[inline(always)]
pub fn is_medium(size: usize) -> bool {
    debug_assert!(size > SMALL);
    size <= MAX_SMALL
}

/// A block of such a size that lies ready.
#[inline(always)]
pub fn at_hand_medium(size: usize) -> Option<NonNull<u8>> {
    let heap = thread::heap();
    // SAFETY: the thread's heap is its own, and a stand-in's magazines are empty; there is such a class; what is in a magazine is free.
    unsafe { (*heap).magazines.of(Class::medium_of(size)).pop().map(|block| NonNull::new_unchecked(give(heap, block))) }
}

/// Makes a block live.
///
/// # Safety
/// The caller owns the heap; it is a plain block of more than 1 KiB, in no magazine and not free in its slice.
#[inline(always)]
unsafe fn give(heap: *const Heap, block: *mut Block) -> *mut u8 {
    // SAFETY: the caller's promise.
    let live = unsafe { (*heap).live(offset(heap, block as usize) / SLICE) };
    live.store(with_bit(live.load(Relaxed), block as usize), Relaxed);
    block.cast()
}

/// The bits with that of a block.
#[inline(always)]
fn with_bit(bits: u64, address: usize) -> u64 {
    // The compiler would make the bit first.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: calculates.
    unsafe {
        let mut bits = bits;
        core::arch::asm!("bts {bits}, {at}", bits = inout(reg) bits, at = in(reg) address / SMALL, options(pure, nomem, nostack));
        bits
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        bits | bit_of(address)
    }
}

/// Takes a block back. False, and nothing happens: it is free already.
///
/// # Safety
/// The caller owns the heap; a plain block of more than 1 KiB starts there, of this slice and this class by its number among those, on its
/// way from no other thread, and the caller gives it up.
#[inline(always)]
pub unsafe fn give_back(heap: *const Heap, slice: usize, ptr: *mut u8, class: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if !end(heap, slice, ptr) {
            return false;
        }
        aside::ask_for(ptr.cast()); // it is what its class gives next
        if !(*heap).magazines.of(class).push(ptr.cast()) {
            overflow(ptr);
        }
        true
    }
}

/// Makes a block no longer live. False: it was not.
///
/// # Safety
/// As for [`give_back`].
#[inline(always)]
unsafe fn end(heap: *const Heap, slice: usize, ptr: *mut u8) -> bool {
    // The compiler would make the bit and its complement for a question and a change that are one instruction.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: changes the slice's word, which its owner alone writes.
    unsafe {
        core::arch::asm!(
            "mov {bits}, qword ptr [{heap} + {slice}*8 + {heads}]",
            "btr {bits}, {at}",
            "jnc {no}",
            "mov qword ptr [{heap} + {slice}*8 + {heads}], {bits}",
            bits = out(reg) _,
            heap = in(reg) heap,
            slice = in(reg) slice,
            at = in(reg) ptr as usize / SMALL,
            heads = const HEADS - RECORD,
            no = label { return false },
            options(nostack),
        );
        true
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        let (live, bit) = ((*heap).live(slice), bit_of(ptr as usize));
        let before = live.load(Relaxed);
        live.store(before & !bit, Relaxed);
        before & bit != 0
    }
}

/// Did another thread free the block, which has not come back yet?
///
/// # Safety
/// The caller owns the heap; a block starts there.
#[inline(always)]
pub unsafe fn is_on_its_way(heap: *const Heap, ptr: *mut u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*ptr.cast::<Block>()).mark == heap as usize }
}

/// The magazine for this block is full, or there was none: half of it goes back to the slices, what was freed longest ago. Finds the heap
/// again, so that `free` need not keep it.
#[inline(never)]
fn overflow(ptr: *mut u8) {
    let Some(heap) = thread::own() else { return };
    // SAFETY: a slice of the heap, which is the thread's own; only blocks of these classes have magazines.
    unsafe {
        let Some((_, class)) = heap.span(heap.slice_of(ptr as usize)).what() else { return };
        refill::visit(heap);
        let magazine = opened(heap, class);
        magazine.take_oldest(class.magazine() / 2, |block| return_to_slice(heap, class, block));
        if !magazine.push(ptr.cast()) {
            return_to_slice(heap, class, ptr.cast()); // they were filled again meanwhile
        }
    }
}

/// Puts a free block into its slice.
fn return_to_slice(heap: &Heap, class: Class, block: *mut Block) {
    let offset = offset(heap, block as usize);
    let slice = (offset / SLICE) as u32;
    // SAFETY: a slice of the heap, which the caller owns.
    let (check, span) = unsafe { (heap.check(slice as usize), heap.span(slice)) };
    span.free.set(span.free.get() | 1 << class.shape().index_of(offset % SLICE));
    check.out.set(check.out.get() - 1);
    if check.out.get() == 0 {
        refill::counted_down(heap, slice);
    }
}

/// Empties the magazines, and closes them until they are needed.
pub fn unload(heap: &Heap) {
    // Most short threads have none, and their pages stay untouched.
    if heap.has_magazines.replace(false) {
        for (class, magazine) in heap.magazines.all() {
            magazine.set_limit(0);
            // SAFETY: the heap is no stand-in.
            unsafe { magazine.take_oldest(0, |block| return_to_slice(heap, class, block)) };
        }
    }
}

/// That of the class, which may be filled from now on.
///
/// # Safety
/// The caller owns the heap; the class is one of more than 1 KiB.
unsafe fn opened(heap: &Heap, class: Class) -> Magazine<'_> {
    // SAFETY: the caller's promise.
    let magazine = unsafe { heap.magazines.of(class.medium()) };
    magazine.set_limit(class.magazine());
    heap.has_magazines.set(true);
    magazine
}

/// A block whose class's magazine is empty, which gets what else the current slice has, up to a half. Null: no memory. True: it is zero
/// but for 16 bytes.
///
/// # Safety
/// The caller owns the heap.
pub unsafe fn take(heap: &Heap, class: Class) -> (*mut u8, bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(block) = heap.magazines.of(class.medium()).pop() {
            return (give(heap, block), false);
        }
        refill::visit(heap);
        let (block, zero) = refill::take(heap, class, false);
        if block.is_null() {
            return (null_mut(), false);
        }
        if !core::ptr::eq(heap, thread::heap()) {
            return (give(heap, block), zero); // the spare one, which takes nothing from its magazines
        }
        let (slice, magazine) = (heap.current(class).get(), opened(heap, class));
        while slice != 0 && magazine.count() < class.magazine() / 2 {
            let Some(more) = refill::take_from(heap, slice, class) else { break };
            magazine.push(more);
        }
        (give(heap, block), zero)
    }
}

/// Puts a list of `count` blocks, plain or described, into their slice.
///
/// # Safety
/// The caller owns the heap; the blocks are of this slice, a span of this kind and class, and freed.
pub unsafe fn put_list(heap: &Heap, slice: u32, kind: Kind, class: Class, first: *mut Block, count: u32) {
    // SAFETY: the caller's promise.
    let (span, live) = unsafe { (heap.span(slice), heap.live(slice as usize)) };
    let mut block = first;
    for _ in 0..count {
        // SAFETY: the slice is mapped; what lost its mark was written to, and so may its link have been.
        if block as usize ^ heap.start_of(slice) >= SLICE || unsafe { (*block).mark } != heap.mark() {
            corrupt::report("a freed block was written to,", block as usize);
        }
        if kind == Kind::Plain {
            let (before, bit) = (live.load(Relaxed), bit_of(block as usize));
            if before & bit == 0 {
                corrupt::report("a block was freed that was freed already,", block as usize);
            }
            live.store(before & !bit, Relaxed);
        }
        span.free.set(span.free.get() | 1 << class.shape().index_of(block as usize % SLICE));
        // SAFETY: as above; what the last one's word says is not followed.
        unsafe {
            (*block).mark = 0; // from now on the slice says that it is free
            block = (*block).next;
        }
    }
}

impl Heap {
    /// Is the plain block of more than 1 KiB live that starts at this offset in the window? Any thread may ask.
    ///
    /// # Safety
    /// The offset is below `limit`.
    #[inline]
    pub unsafe fn is_live(&self, at: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.live(at / SLICE) }.load(Relaxed) & bit_of(at) != 0
    }
}
