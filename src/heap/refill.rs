//! What stands behind the bins: which slices there are of each class, where new blocks come from when a bin is empty, and where
//! blocks go that cannot simply be put into their slice's list. Called by the heap's owner alone.

use super::block::{Block, Messages};
use super::classes::{COUNT, Class, SLICE, SMALL};
use super::local::{Bin, Check, Heap, List, offset};
use super::remote::{END, Links};
use super::slices::For;
use super::span::{Kind, Span, Stand};
use super::{aside, corrupt, large, medium, runs};
use crate::config;
use crate::os::clock;
use core::ptr::null_mut;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

/// Bytes of a slice that are cut into blocks at a time: as little as possible is touched before it is needed.
const CARVE: u32 = 4096;
/// Blocks that are cut at a time at least, up to [`SMALL`] bytes each.
const CARVE_LEAST: u32 = 8;
/// A slice that was exhausted comes back with this share of its blocks, one at least and so many at most.
const WAKE_SHARE: u32 = 8;
/// See [`WAKE_SHARE`].
const WAKE_MOST: u32 = 24;
/// Blocks with which a bin is content if its slice has no more.
const ENOUGH: u32 = 4;
/// How much more than its blocks the count of a class's current slice says, so that it does not reach 0: it stays.
const HELD: u32 = 1;
/// Of a heap with so many bytes in slices that are full, blocks that are freed may have left the nearer caches: then `free` puts them aside.
const COLD: usize = 3 << 20;
/// Visits between two looks at the clock.
const LOOK_EVERY: u32 = 7;

/// Fills the empty bin of plain blocks and takes a block of it. Null: no memory.
///
/// # Safety
/// The caller owns the heap; `bin` is one of its bins, for this class, and empty.
#[inline]
pub unsafe fn fill(heap: &Heap, bin: *mut *mut Block, class: Class) -> *mut Block {
    visit(heap);
    let list = heap.list(class, false);
    let slice = list.current.get();
    // SAFETY: a slice of the heap, which the caller owns.
    unsafe {
        let (check, shape) = (heap.check(slice as usize), class.shape());
        let carved = heap.span(slice).carved.load(Relaxed);
        // What there is of no slice is 0 blocks.
        let got = (carved + HELD).wrapping_sub(check.out.get()) as i32;
        if got >= shape.good as i32 && slice != 0 || got >= ENOUGH as i32 && carved == shape.blocks {
            let head = heap.head(slice as usize);
            let block = core::mem::replace(&mut *head, heap.end());
            if (*block).mark != heap.mark() {
                corrupt::report("a freed block was written to,", block as usize);
            }
            check.out.set(carved + HELD);
            *bin = (*block).next;
            (*block).mark = 0;
            return block;
        }
        fill_slow(heap, bin, class)
    }
}

/// [`fill`] where the class's current slice has not enough.
///
/// # Safety
/// As for [`fill`].
#[inline(never)]
unsafe fn fill_slow(heap: &Heap, bin: *mut *mut Block, class: Class) -> *mut Block {
    let list = heap.list(class, false);
    loop {
        let slice = match list.current.get() {
            0 => next(heap, class, false),
            slice => slice,
        };
        if slice == 0 {
            return null_mut();
        }
        // SAFETY: the caller owns the heap, and the slice is a span of this class.
        unsafe {
            let (check, span, head) = (heap.check(slice as usize), heap.span(slice), heap.head(slice as usize));
            if span.carved.load(Relaxed) + HELD - check.out.get() < class.shape().good {
                carve(heap, slice, class, false);
            }
            let carved = span.carved.load(Relaxed) + HELD;
            let got = carved - check.out.get();
            // Few are left for later where there are more.
            let all = got > 0 && list.first.get() == 0;
            if got >= ENOUGH || all {
                *bin = core::mem::replace(&mut *head, heap.end());
                check.out.set(carved);
                return heap.pop(bin).unwrap_or(null_mut());
            }
            exhausted(heap, list, slice, ENOUGH, got);
        }
    }
}

/// The class's current slice has nothing left to give, or less than `enough`, `got` blocks: it comes back when enough blocks have, so that
/// a visit is worth it. Its count stands so that `free` notices.
fn exhausted(heap: &Heap, list: &List, slice: u32, enough: u32, got: u32) {
    // SAFETY: a slice of the heap, which the caller owns.
    let (check, span) = unsafe { (heap.check(slice as usize), heap.span(slice)) };
    let wake = (span.carved.load(Relaxed) / WAKE_SHARE).min(WAKE_MOST).max(enough);
    span.stand.set(Stand::Full);
    span.wake.set(wake);
    check.out.set(wake - got);
    list.current.set(0);
    heap.full.set(heap.full.get() + 1);
    if is_large(heap)
        && let Some((Kind::Plain, class)) = span.what()
        && !class.is_medium()
    {
        open_to_free(heap, slice, class, heap.aside.expects_cold());
    }
}

/// Is there so much that what is freed may be cold?
fn is_large(heap: &Heap) -> bool {
    heap.full.get() >= COLD / SLICE
}

/// Takes one block from the class's current slice. Null: no memory. True: it is zero but for 16 bytes.
///
/// # Safety
/// The caller owns the heap.
pub unsafe fn take(heap: &Heap, class: Class, described: bool) -> (*mut Block, bool) {
    let list = heap.list(class, described);
    let mut fresh = false;
    loop {
        let slice = list.current.get();
        if slice != 0 {
            // SAFETY: the caller owns the heap, and the slice is a span of this class.
            unsafe {
                if let Some(block) = take_from(heap, slice, class) {
                    return (block, fresh);
                }
                fresh = carve(heap, slice, class, described) && heap.span(slice).fresh.get();
                if heap.span(slice).carved.load(Relaxed) + HELD != heap.check(slice as usize).out.get() {
                    continue;
                }
            }
            exhausted(heap, list, slice, 1, 0);
        }
        visit(heap);
        if next(heap, class, described) == 0 {
            return (null_mut(), false);
        }
    }
}

/// Takes a free block of a slice.
///
/// # Safety
/// The caller owns the heap, and the slice is a span of this class.
pub unsafe fn take_from(heap: &Heap, slice: u32, class: Class) -> Option<*mut Block> {
    // SAFETY: the caller's promise.
    unsafe {
        if class.is_medium() {
            let (free, check) = (&heap.span(slice).free, heap.check(slice as usize));
            if free.get() == 0 {
                return None;
            }
            let index = free.get().trailing_zeros() as usize;
            free.set(free.get() & (free.get() - 1));
            check.out.set(check.out.get() + 1);
            return Some((heap.start_of(slice) + index * class.shape().size as usize) as *mut Block);
        }
        let block = heap.pop(heap.head(slice as usize))?;
        let check = heap.check(slice as usize);
        check.out.set(check.out.get() + 1);
        Some(block)
    }
}

/// What is done now and then, wherever the heap is not in a hurry: others' frees are taken in, and idle memory is looked for.
#[inline]
pub fn visit(heap: &Heap) {
    let messages = heap.inbox.0.take();
    if messages != END {
        collect(heap, messages); // a call that one thread alone need not make
    }
    look_around(heap);
}

/// Cuts the next blocks of a slice that were never given and puts them into its list; false if there are none.
///
/// # Safety
/// The caller owns the heap; the slice is a span of this class.
unsafe fn carve(heap: &Heap, slice: u32, class: Class, described: bool) -> bool {
    // SAFETY: the caller's promise.
    let (span, head) = unsafe { (heap.span(slice), heap.head(slice as usize)) };
    let (shape, carved) = (class.shape(), span.carved.load(Relaxed));
    let all = if described { shape.described } else { shape.blocks };
    let at_once = if class.is_medium() { 1 } else { (CARVE / shape.size).max(CARVE_LEAST) };
    let count = (all - carved).min(at_once);
    if count == 0 {
        return false;
    }
    let (size, first) = (shape.size as usize, heap.start_of(slice) + carved as usize * shape.size as usize);
    if class.is_medium() {
        span.carved.store(carved + 1, Relaxed);
        span.free.set(span.free.get() | 1 << carved);
        // SAFETY: as below. A smaller block that was here may have left its mark.
        unsafe { (*(first as *mut Block)).mark = 0 };
        return true;
    }
    for index in 0..count as usize {
        let block = first + index * size;
        // SAFETY: the blocks are inside the slice and were never given.
        unsafe {
            let next = if index + 1 == count as usize { *head } else { (block + size) as *mut Block };
            *(block as *mut Block) = Block { mark: heap.mark(), next };
        }
    }
    span.carved.store(carved + count, Relaxed);
    // SAFETY: as above.
    unsafe { *head = first as *mut Block };
    true
}

/// Makes another slice the class's current one: a waiting one, or a new one. 0: no memory.
fn next(heap: &Heap, class: Class, described: bool) -> u32 {
    let list = heap.list(class, described);
    let mut slice = list.first.get();
    loop {
        aside::settle_slice(heap, slice); // what can be given from now on is not aside
        match list.first.get() {
            same if same == slice => break,
            other => slice = other, // that was the last of it
        }
    }
    if slice != 0 {
        unlink(heap, slice, class, described);
    } else {
        let Some(taken) = heap.take_slices(1, For::Blocks) else { return 0 };
        slice = taken.slice;
        // SAFETY: the slice was just taken; the caller owns the heap.
        unsafe {
            heap.span(slice).carve(heap.start_of(slice), class, described, taken.zero);
            if class.is_medium() {
                heap.live(slice as usize).store(0, Relaxed);
            } else {
                *heap.head(slice as usize) = heap.end();
            }
            heap.check(slice as usize).out.set(0);
        }
    }
    // SAFETY: a slice of the heap.
    let (check, span) = unsafe { (heap.check(slice as usize), heap.span(slice)) };
    if !described {
        open_to_free(heap, slice, class, false);
    }
    span.stand.set(Stand::Current);
    check.out.set(check.out.get() + HELD);
    list.current.set(slice);
    slice
}

/// `free` may put the slice's plain blocks into its list from now on, or aside, which is for slices alone whose free blocks are not given.
fn open_to_free(heap: &Heap, slice: u32, class: Class, aside: bool) {
    // SAFETY: a slice of the heap, which the caller owns.
    unsafe {
        let (check, way, shape) = (heap.check(slice as usize), heap.way(slice as usize), class.shape());
        let (to_check, to_way) = if aside || class.is_medium() { (0, shape.magic) } else { (shape.magic, 0) };
        if check.magic.load(Relaxed) == to_check && way.magic.load(Relaxed) == to_way {
            return; // as it is: what is on its way to the slice is counted
        }
        check.magic.store(to_check, Relaxed);
        if to_way == 0 {
            way.close();
        } else {
            way.open(class);
        }
        fence(SeqCst); // either this sees the watch or the watch closes what was opened
        if heap.span(slice).watched.load(Relaxed) {
            close_to_free(heap, slice);
        }
    }
}

/// # Safety
/// A slice of the heap.
unsafe fn close_to_free(heap: &Heap, slice: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        heap.check(slice as usize).magic.store(0, Relaxed);
        heap.way(slice as usize).close();
    }
}

/// Puts a slice in front of those that wait: its blocks were used last, and the others may become empty.
fn link(heap: &Heap, slice: u32, class: Class, described: bool) {
    let list = heap.list(class, described);
    // SAFETY: slices of the heap, which the caller owns.
    let (span, first) = unsafe { (heap.span(slice), heap.span(list.first.get())) };
    span.stand.set(Stand::Waiting);
    span.next.set(list.first.get());
    span.prev.set(0);
    if list.first.get() == 0 { &list.last } else { &first.prev }.set(slice);
    list.first.set(slice);
}

/// Takes a slice out of those that wait.
fn unlink(heap: &Heap, slice: u32, class: Class, described: bool) {
    let list = heap.list(class, described);
    // SAFETY: slices of the heap, which the caller owns; number 0 has a record too.
    let (span, next, prev) = unsafe {
        let span = heap.span(slice);
        (span, heap.span(span.next.get()), heap.span(span.prev.get()))
    };
    if span.prev.get() == 0 { &list.first } else { &prev.next }.set(span.next.get());
    if span.next.get() == 0 { &list.last } else { &next.prev }.set(span.prev.get());
}

/// Puts the blocks from `first` to `last`, `count` of them, into their slice's list.
///
/// # Safety
/// The caller owns the heap; the blocks are of this slice, a span of blocks, freed and marked.
pub unsafe fn put_list(heap: &Heap, slice: u32, first: *mut Block, last: *mut Block, count: u32) {
    // SAFETY: the caller's promise.
    let (check, span) = unsafe { (heap.check(slice as usize), heap.span(slice)) };
    // SAFETY: as above.
    unsafe {
        match span.what() {
            Some((kind, class)) if class.is_medium() => medium::put_list(heap, slice, kind, class, first, count),
            _ => {
                let head = heap.head(slice as usize);
                (*last).next = *head;
                *head = first;
            }
        }
    }
    if span.stand.get() == Stand::Full && check.out.get() > count {
        check.out.set(check.out.get() - count);
        return;
    }
    awaken(heap, slice, check, span);
    let Some(left) = check.out.get().checked_sub(count) else {
        corrupt::report("more blocks came back to a slice than it had given, last one", last as usize);
    };
    check.out.set(left);
    if left == 0 {
        emptied(heap, slice);
    }
}

/// A slice that had too few blocks to give has enough again: it waits to be the current one, and its count is what it should be.
fn awaken(heap: &Heap, slice: u32, check: &Check, span: &Span) {
    if span.stand.get() == Stand::Full
        && let Some((kind, class)) = span.what()
    {
        heap.full.set(heap.full.get() - 1);
        let back = span.wake.get().saturating_sub(check.out.get());
        check.out.set(span.carved.load(Relaxed).saturating_sub(back));
        if kind == Kind::Plain && !class.is_medium() && heap.aside.is_cold() {
            open_to_free(heap, slice, class, true);
        }
        link(heap, slice, class, kind == Kind::Described);
    }
}

/// `free` has counted to 0: enough blocks came back to a slice that had too few, or the last one did.
pub fn counted_down(heap: &Heap, slice: u32) {
    // SAFETY: a slice of the heap, which the caller owns.
    let (check, span) = unsafe { (heap.check(slice as usize), heap.span(slice)) };
    awaken(heap, slice, check, span);
    if check.out.get() == 0 {
        emptied(heap, slice);
    }
}

/// Nobody has a block of this slice: it goes back.
fn emptied(heap: &Heap, slice: u32) {
    // SAFETY: a slice of the heap, which the caller owns.
    let span = unsafe { heap.span(slice) };
    if let (Stand::Waiting, Some((kind, class))) = (span.stand.get(), span.what()) {
        let described = kind == Kind::Described;
        let list = heap.list(class, described);
        // Of large blocks, few of which are a slice, the last slice that waits stays for a while: it would be made anew all the time.
        if class.shape().size as usize <= SMALL || list.first.get() != list.last.get() {
            unlink(heap, slice, class, described);
            give_up(heap, slice);
        }
        look_around(heap);
    }
}

/// Gives up the slices that wait although nobody has a block of them.
fn drop_waiting(heap: &Heap) {
    for class in (0..COUNT as u8).filter_map(Class::from_number).filter(|class| class.shape().size as usize > SMALL) {
        for described in [false, true] {
            let mut slice = heap.list(class, described).first.get();
            while slice != 0 {
                // SAFETY: slices of the heap, which the caller owns.
                let (out, next) = unsafe { (heap.check(slice as usize).out.get(), heap.span(slice).next.get()) };
                if out == 0 {
                    unlink(heap, slice, class, described);
                    give_up(heap, slice);
                }
                slice = next;
            }
        }
    }
}

/// Takes a slice without blocks in use out of the spans.
fn give_up(heap: &Heap, slice: u32) {
    // SAFETY: a slice of the heap, which the caller owns.
    unsafe {
        close_to_free(heap, slice);
        heap.span(slice).dissolve();
    }
    aside::reject_slice(heap, slice);
    heap.release_slices(slice, 1);
}

/// Takes in a list of messages.
pub fn collect(heap: &Heap, mut message: usize) {
    while message != END {
        let last = message as *mut Block;
        let offset = offset(heap, message);
        // SAFETY: only blocks of this heap are sent to it; one that lost its mark was written to after it was freed.
        if offset >= heap.limit.get() || unsafe { (*last).mark } != heap.mark() {
            corrupt::report("a freed block was written to,", message);
        }
        message = Messages.next(message);
        // SAFETY: the message is whole, as its mark shows, and we took it out of the inbox.
        unsafe {
            let (first, count) = Messages::open(last);
            let slice = heap.slice_of(last as usize);
            match heap.span(slice).what() {
                Some((Kind::Run, _)) => runs::put(heap, slice, last),
                Some((_, class)) => {
                    if class.is_medium() {
                        heap.way(slice as usize).unshare();
                    }
                    put_list(heap, slice, first, last, count);
                }
                None => corrupt::report("a freed block is in no span,", last as usize),
            }
        }
    }
}

/// Puts the blocks of a bin back into their slices' lists.
///
/// # Safety
/// The caller owns the heap; `bin` is one of its bins of blocks.
unsafe fn empty_bin(heap: &Heap, bin: *mut *mut Block) {
    // SAFETY: the caller's promise.
    while let Some(block) = unsafe { heap.pop(bin) } {
        // SAFETY: a free block of the heap that is in no list now.
        unsafe {
            (*block).mark = heap.mark();
            put_list(heap, heap.slice_of(block as usize), block, block, 1);
        }
    }
}

/// Gives up everything that is kept for reuse: bins, empty slices, runs, large blocks, dirty pages.
pub fn trim(heap: &Heap) {
    medium::unload(heap);
    for size in (1..=SMALL).step_by(size_of::<Bin>()) {
        // SAFETY: the caller owns the heap.
        unsafe { empty_bin(heap, heap.bin(size)) };
    }
    for class in (0..COUNT as u8).filter_map(Class::from_number) {
        for described in [false, true] {
            let list = heap.list(class, described);
            let slice = list.current.get();
            // SAFETY: as above.
            if slice != 0 && unsafe { heap.check(slice as usize) }.out.get() == HELD {
                list.current.set(0);
                give_up(heap, slice);
            }
        }
    }
    drop_waiting(heap);
    runs::drop_kept(heap);
    large::drop_kept(heap, true);
    heap.drop_dirty(0, true);
    heap.forget_learned();
}

/// A thread leaves the heap: what it keeps beyond a little goes, so that idle heaps hold next to nothing.
pub fn settle(heap: &Heap) {
    medium::unload(heap);
    drop_waiting(heap);
    runs::drop_kept(heap);
    large::drop_kept(heap, true);
    heap.drop_dirty(config::HEAP_IDLE_SLICES, false);
}

/// From time to time: gives back to the kernel what was not needed for a while.
#[inline]
pub fn look_around(heap: &Heap) {
    let left = heap.until_look.get();
    heap.until_look.set(left.wrapping_sub(1));
    if left == 0 {
        look(heap);
    }
}

#[cold]
fn look(heap: &Heap) {
    heap.until_look.set(LOOK_EVERY);
    heap.young.set(heap.young.get().saturating_sub(1));
    let now = clock::coarse_milliseconds();
    if now.wrapping_sub(heap.looked.get()) >= config::HEAP_IDLE.get() as u64 {
        heap.looked.set(now);
        aside::settle(heap);
        medium::unload(heap);
        drop_waiting(heap);
        runs::drop_kept(heap);
        large::drop_kept(heap, false);
        heap.drop_idle();
    }
}
