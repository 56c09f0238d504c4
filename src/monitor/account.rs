//! The budget: every resident byte of qmem is charged here before it is touched, so the bound is hard. Beside it the ledger
//! of what has been promised (the commit rule): frames granted never exceed budget + swap, unless the strategy bets.

use crate::config;
use crate::error::Error;
use crate::fail;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

/// What resident bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Heap spans and large blocks.
    Heap = 0,
    /// Frames: resident chunks, free frames, and the compressed pool's blocks.
    Frames = 1,
    /// The tables of heap and registry.
    Tables = 2,
}

/// Heap and tables are counted, but not against the budget.
static HEAP_OUTSIDE: AtomicBool = AtomicBool::new(false);
static BUDGET: AtomicUsize = AtomicUsize::new(usize::MAX);
static RESIDENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static HELD: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
static COMMITTED: AtomicUsize = AtomicUsize::new(0);
static SWAP: AtomicUsize = AtomicUsize::new(0);
static BETS: AtomicBool = AtomicBool::new(false);
/// `fn(bytes) -> bytes freed`: the pager gives up frames so that the heap may grow.
static RECLAIM: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// The bound on resident bytes; usize::MAX before initialisation.
pub fn budget() -> usize {
    BUDGET.load(Relaxed)
}

/// Sets the bound. The caller has brought residency below it.
pub fn set_budget(bytes: usize) {
    BUDGET.store(bytes, Relaxed);
}

/// Takes heap and tables out of the budget for good: in a preloaded program they are the program's own need, which no budget can
/// lessen. The caller is the process's only thread.
pub fn leave_heap_outside() {
    if !HEAP_OUTSIDE.swap(true, Relaxed) {
        RESIDENT.fetch_sub(held(Holder::Heap) + held(Holder::Tables), Relaxed);
        reset_peak();
    }
}

/// Does the budget bound what this holder holds?
fn counts(holder: Holder) -> bool {
    holder == Holder::Frames || !HEAP_OUTSIDE.load(Relaxed)
}

/// Bytes of the budget that are not for frames: what heap and tables hold of it.
pub fn beside_frames() -> usize {
    if counts(Holder::Heap) { HELD[0].load(SeqCst) + HELD[2].load(SeqCst) } else { 0 }
}

/// Resident bytes charged now.
pub fn resident() -> usize {
    RESIDENT.load(Relaxed)
}

/// Resident bytes charged to one holder.
pub fn held(holder: Holder) -> usize {
    HELD[holder as usize].load(Relaxed)
}

/// The most that was ever resident since the last [`reset_peak`].
pub fn peak() -> usize {
    PEAK.load(Relaxed)
}

/// Starts the peak again from what is resident now.
pub fn reset_peak() {
    PEAK.store(resident(), Relaxed);
}

/// Charges `bytes` if they fit into the budget now; does not reclaim.
pub fn try_charge(holder: Holder, bytes: usize) -> bool {
    if !counts(holder) {
        HELD[holder as usize].fetch_add(bytes, Relaxed);
        return true;
    }
    let budget = budget();
    let charged = RESIDENT.fetch_update(Relaxed, Relaxed, |now| now.checked_add(bytes).filter(|sum| *sum <= budget));
    let Ok(before) = charged else { return false };
    HELD[holder as usize].fetch_add(bytes, SeqCst);
    if holder != Holder::Frames && !keeps_promises(0) {
        uncharge(holder, bytes);
        return false;
    }
    PEAK.fetch_max(before + bytes, Relaxed);
    true
}

/// Charges `bytes`, asking the pager for room if they do not fit.
pub fn charge(holder: Holder, bytes: usize) -> Result<(), Error> {
    for _ in 0..64 {
        if try_charge(holder, bytes) {
            return Ok(());
        }
        if holder != Holder::Frames && !keeps_promises(bytes) {
            return Err(fail!(
                OutOfMemory,
                "{bytes} bytes do not fit: of the budget's {} bytes the heap holds {} already, and paged buffers were granted {} of what is left and {} of swap space; free buffers, raise max_memory or enable swapping",
                budget(),
                held(Holder::Heap) + held(Holder::Tables),
                committed(),
                swap()
            ));
        }
        let hook = RECLAIM.load(Relaxed);
        if hook.is_null() {
            break;
        }
        // SAFETY: RECLAIM holds null or a `fn(usize) -> usize` stored by `set_reclaim`.
        let reclaim: fn(usize) -> usize = unsafe { core::mem::transmute(hook) };
        if reclaim(bytes) == 0 {
            break;
        }
    }
    Err(fail!(
        OutOfMemory,
        "{bytes} bytes do not fit: {} of the budget's {} bytes are resident and nothing more can be evicted; free blocks, raise max_memory or enable swapping",
        resident(),
        budget()
    ))
}

/// Gives back what was charged.
pub fn uncharge(holder: Holder, bytes: usize) {
    HELD[holder as usize].fetch_sub(bytes, Relaxed);
    if counts(holder) {
        RESIDENT.fetch_sub(bytes, Relaxed);
    }
}

/// The pager's way to make room for others; None when it ends.
pub fn set_reclaim(reclaim: Option<fn(usize) -> usize>) {
    RECLAIM.store(reclaim.map_or(core::ptr::null_mut(), |f| f as *mut ()), Relaxed);
}

/// What swap the commit rule may count on (bytes there now, ours included), and whether the strategy bets on compression.
pub fn set_swap(bytes: usize, bets: bool) {
    SWAP.store(bytes, Relaxed);
    BETS.store(bets, Relaxed);
}

/// Swap bytes the commit rule counts on.
pub fn swap() -> usize {
    SWAP.load(Relaxed)
}

/// Bytes granted and not freed: of frames that hold what was asked for.
pub fn committed() -> usize {
    COMMITTED.load(Relaxed)
}

/// What may be granted in all: what the budget leaves for frames, and the swap space less the chunks that are on their way
/// between the two.
fn limit() -> usize {
    frames_budget().saturating_add(swap().saturating_sub(config::IN_FLIGHT))
}

fn frames_budget() -> usize {
    budget().saturating_sub(beside_frames())
}

/// If heap and tables took `more` bytes, could everything granted to paged buffers still be kept? It needs room by the commit
/// rule, and some of the room in frames, or nothing could move. The heap counts itself first and looks then, a grant likewise,
/// both in one order (SeqCst): of two that do not fit together at least one sees the other and withdraws.
fn keeps_promises(more: usize) -> bool {
    let granted = COMMITTED.load(SeqCst);
    let frames = frames_budget().saturating_sub(more);
    let swap = swap().saturating_sub(config::IN_FLIGHT);
    granted == 0 || frames >= granted.min(config::IN_FLIGHT) && (BETS.load(Relaxed) || granted <= frames.saturating_add(swap))
}

/// Does everything granted fit into the budget, so that nothing needs to leave memory?
pub fn holds_everything() -> bool {
    committed() <= frames_budget()
}

/// Would [`commit`] grant `bytes` now?
pub fn can_commit(bytes: usize) -> bool {
    let limit = limit();
    BETS.load(Relaxed) || committed().checked_add(bytes).is_some_and(|sum| sum <= limit)
}

/// Grants `bytes` by the commit rule.
pub fn commit(bytes: usize) -> Result<(), Error> {
    commit_for(bytes, bytes)
}

/// Grants `bytes` more of frames by the commit rule, for a buffer of `size` bytes.
pub fn commit_for(size: usize, bytes: usize) -> Result<(), Error> {
    let limit = limit();
    let bets = BETS.load(Relaxed);
    let granted = COMMITTED.fetch_update(SeqCst, Relaxed, |now| now.checked_add(bytes).filter(|sum| bets || *sum <= limit));
    let granted = granted.and_then(|now| {
        if keeps_promises(0) {
            return Ok(());
        }
        uncommit(bytes); // the heap grew meanwhile
        Err(now)
    });
    match granted {
        Ok(()) => Ok(()),
        Err(now) => Err(fail!(
            OutOfMemory,
            "{size} bytes refused: they need {bytes} more in whole chunks, {now} are granted already, and the budget of {} plus {} of swap space is all there is; raise max_memory, enable swapping, or give QMEM_SWAP_DIR a larger disk",
            budget(),
            swap()
        )),
    }
}

/// Takes a grant back.
pub fn uncommit(bytes: usize) {
    COMMITTED.fetch_sub(bytes, Relaxed);
}
