//! Blocks above 32 KiB up to 1 MiB: each is a run of slices of one unit. A few that were freed are kept for the next one; a run
//! grows in place where the slices after it are free. Called by the heap's owner alone.

use super::block::Block;
use super::classes::{RUNS, SLICE};
use super::local::Heap;
use super::refill;
use super::slices::For;
use super::span::PLAIN_TAG;
use crate::config;
use core::sync::atomic::Ordering::Relaxed;

/// A run for `size` bytes, up to `MAX_RUN`, live with this tag. Null: no memory. With `room`, where it can grow. True: it is zero.
///
/// # Safety
/// The caller owns the heap.
pub unsafe fn take(heap: &Heap, size: usize, tag: u8, room: bool) -> (*mut u8, bool) {
    let count = size.div_ceil(SLICE).clamp(1, RUNS) as u32;
    // SAFETY: the caller's promise.
    unsafe {
        let bin = heap.run_bin(count);
        if !room && (**bin).mark == heap.mark() {
            return (take_marked(heap, bin, count, size, tag), false);
        }
    }
    refill::visit(heap);
    if room && kept(heap) > RUNS {
        drop_kept(heap); // what grew before it left the largest ones, whose pages it can have
    }
    let Some(taken) = heap.take_slices(count, if room { For::GrowingRun } else { For::Run }) else {
        return (core::ptr::null_mut(), false);
    };
    join(heap, taken.slice, 1, count);
    // SAFETY: a slice that was just taken.
    let span = unsafe { heap.span(taken.slice) };
    span.begin_run(count, bin_offset(heap, count));
    span.give_run(size, tag);
    // SAFETY: as above.
    unsafe { heap.way(taken.slice as usize) }.open_run();
    (heap.start_of(taken.slice) as *mut u8, taken.zero)
}

/// Takes a plain run of `count` slices from its bin, which has one.
///
/// # Safety
/// The caller owns the heap; the bin is the one for runs of `count` slices, and its first block is marked.
#[inline(always)]
pub unsafe fn take_kept(heap: &Heap, bin: *mut *mut Block, count: u32, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { take_marked(heap, bin, count, size, PLAIN_TAG) }
}

/// # Safety
/// As for [`take_kept`].
#[inline(always)]
unsafe fn take_marked(heap: &Heap, bin: *mut *mut Block, count: u32, size: usize, tag: u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        let block = *bin;
        *bin = (*block).next;
        (*block).mark = 0;
        heap.runs_reused.set(heap.runs_reused.get().wrapping_add(count as usize));
        heap.span(heap.slice_of(block as usize)).give_run(size, tag);
        block.cast()
    }
}

/// Makes the slices `from` to `to` of a run part of it.
fn join(heap: &Heap, slice: u32, from: u32, to: u32) {
    for back in from..to {
        // SAFETY: slices that the caller has taken.
        unsafe { heap.span(slice + back) }.join_run(back);
    }
}

fn part(heap: &Heap, slice: u32, from: u32, to: u32) {
    for back in from..to {
        // SAFETY: slices of a run that the caller owns.
        unsafe { heap.span(slice + back) }.dissolve();
    }
}

/// Takes back a run whose user gave it up, watched or not.
///
/// # Safety
/// The caller owns the heap; the slice is the first of a run whose `block` is freed and that nobody uses.
pub unsafe fn put(heap: &Heap, slice: u32, block: *mut Block) {
    // SAFETY: the caller's promise.
    unsafe {
        heap.way(slice as usize).open_run(); // whoever watched has closed it
        keep(heap, slice, block);
    }
}

/// # Safety
/// As for [`put`]; the run's way is open.
#[inline(always)]
unsafe fn keep(heap: &Heap, slice: u32, block: *mut Block) {
    // SAFETY: the caller's promise.
    let span = unsafe { heap.span(slice) };
    let count = span.slices.load(Relaxed);
    if kept(heap) + count as usize <= config::HEAP_KEPT_RUNS / SLICE {
        heap.runs_kept.set(heap.runs_kept.get().wrapping_add(count as usize));
        // SAFETY: as above.
        unsafe { heap.push((heap.mark() + span.bin.get() as usize) as *mut *mut Block, block) };
    } else {
        give_up_one(heap, slice, count);
    }
}

#[inline(never)]
fn give_up_one(heap: &Heap, slice: u32, count: u32) {
    give_up(heap, slice, count);
    refill::look_around(heap);
}

/// Takes back a plain run. False, and nothing happens: it is free already, or not plain.
///
/// # Safety
/// The caller owns the heap; the slice is the first of a run, which nobody watches, and the caller gives it up.
#[inline(always)]
pub unsafe fn end(heap: *const Heap, slice: usize, block: *mut Block) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let live = (*heap).span(slice as u32).end_run();
        if live {
            keep_ended(block, heap, slice);
        }
        live
    }
}

/// [`keep`], with the block where `free` has it.
///
/// # Safety
/// As for [`keep`].
#[inline(never)]
unsafe fn keep_ended(block: *mut Block, heap: *const Heap, slice: usize) {
    // SAFETY: the caller's promise.
    unsafe { keep(&*heap, slice as u32, block) };
}

/// Slices in the bins of runs.
pub fn kept(heap: &Heap) -> usize {
    heap.runs_kept.get().wrapping_sub(heap.runs_reused.get())
}

/// Where the bin of runs of `count` slices lies in its heap.
fn bin_offset(heap: &Heap, count: u32) -> u32 {
    (heap.run_bin(count) as usize - heap.mark()) as u32
}

fn give_up(heap: &Heap, slice: u32, count: u32) {
    // SAFETY: the first slice of a run that nobody uses.
    unsafe { heap.way(slice as usize) }.close();
    part(heap, slice, 0, count);
    heap.release_slices(slice, count);
}

/// Gives up the runs that are kept.
pub fn drop_kept(heap: &Heap) {
    if kept(heap) == 0 {
        return;
    }
    for count in 1..=RUNS as u32 {
        // SAFETY: the caller owns the heap.
        while let Some(block) = unsafe { heap.pop(heap.run_bin(count)) } {
            give_up(heap, heap.slice_of(block as usize), count);
        }
    }
    heap.runs_reused.set(heap.runs_kept.get());
}

/// Gives a live run another size without moving it; false if there is no room.
///
/// # Safety
/// The caller owns the heap; the slice is the first of a live run; what the new size drops is not used.
pub unsafe fn resize(heap: &Heap, slice: u32, size: usize) -> bool {
    // SAFETY: the caller's promise.
    let span = unsafe { heap.span(slice) };
    let (old, new) = (span.slices.load(Relaxed), size.div_ceil(SLICE).max(1) as u32);
    if new > RUNS as u32 || (new > old && !heap.take_next(slice + old, new - old)) {
        return false;
    }
    if new > old {
        join(heap, slice, old, new);
    }
    span.slices.store(new, Relaxed);
    span.bin.set(bin_offset(heap, new));
    if new < old {
        part(heap, slice, new, old);
        heap.release_slices(slice + new, old - new);
    }
    true
}
