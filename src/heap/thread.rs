//! Which heap a thread has, and heaps without a thread. A thread gets a heap with its first block, one that an ended thread left
//! or a new one, and leaves it as it is when it ends. One that begins by freeing an ended thread's blocks gets the heap of those.
//! Blocks of a heap that nobody runs are taken back by whoever sends them, under the depot's lock. Threads that have ended but still
//! allocate, and those that can get no heap, share the spare one.
//! Called by the face and the long ways of `fast.rs`. Locks: the depot's before those of the large blocks.

use super::block::{Block, Messages};
use super::local::{Heap, RUNNING};
use super::remote::{END, Links};
use super::window::Windows;
use super::{numa, refill};
use crate::config;
use crate::ds::{Table, Zeroed};
use crate::monitor::account::{self, Holder};
use crate::os::{thread, vm};
use crate::sync::Mutex;
use core::cell::Cell;
use core::ptr::null;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Heaps without a thread.
struct Depot {
    windows: Windows,
    /// The one that was left last comes first.
    idle: Cell<*const Heap>,
    /// Shared by threads without a heap, under the lock. Idle to senders.
    spare: *const Heap,
}

// SAFETY: what the pointers lead to is touched under the depot's lock.
unsafe impl Send for Depot {}

static DEPOT: Mutex<Depot> = Mutex::new(Depot { windows: Windows::new(), idle: Cell::new(null()), spare: null() });

/// How many heaps wait for a thread or are being left.
static IDLE: AtomicUsize = AtomicUsize::new(0);

/// So many times a heap looks around while its thread counts as new: it has filled bins eight times as often then.
const YOUNG: u32 = 64;

/// A heap's address.
struct Known(AtomicUsize);

// SAFETY: zero is a valid value.
unsafe impl Zeroed for Known {}

static HEAPS: Table<Known> = Table::new(config::HEAP_THREADS);

/// The heap of a thread that has not begun: without memory, so that its first request takes the long way.
static BEFORE: Heap = Heap::without_memory(&raw const BEFORE);
/// The heap of a thread that has ended or can have none.
static AFTER: Heap = Heap::without_memory(&raw const AFTER);

// The thread's heap: one pointer of thread-local storage in the initial-exec model, read in two instructions and without a call,
// in a library that is loaded at run time too. It starts out at BEFORE, so nothing has to ask whether it is there.
core::arch::global_asm!(
    ".pushsection .tdata.qmem_thread_heap,\"awT\",@progbits",
    ".p2align 3",
    ".hidden qmem_thread_heap",
    ".globl qmem_thread_heap",
    ".type qmem_thread_heap,@object",
    ".size qmem_thread_heap,8",
    "qmem_thread_heap:",
    ".quad {before}",
    ".popsection",
    before = sym BEFORE,
);

/// The calling thread's heap, or one without memory.
#[inline(always)]
pub fn heap() -> *const Heap {
    let heap: *const Heap;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads the pointer above.
    unsafe {
        core::arch::asm!(
            "mov {heap}, qword ptr [rip + qmem_thread_heap@GOTTPOFF]",
            "mov {heap}, qword ptr fs:[{heap}]",
            heap = out(reg) heap,
            options(nostack, preserves_flags, readonly, pure),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads the pointer above.
    unsafe {
        core::arch::asm!(
            "mrs {base}, tpidr_el0",
            "adrp {heap}, :gottprel:qmem_thread_heap",
            "ldr {heap}, [{heap}, #:gottprel_lo12:qmem_thread_heap]",
            "ldr {heap}, [{base}, {heap}]",
            base = out(reg) _,
            heap = out(reg) heap,
            options(nostack, preserves_flags, readonly, pure),
        );
    }
    heap
}

fn set_heap(heap: *const Heap) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: writes the pointer above.
    unsafe {
        core::arch::asm!(
            "mov {place}, qword ptr [rip + qmem_thread_heap@GOTTPOFF]",
            "mov qword ptr fs:[{place}], {heap}",
            place = out(reg) _,
            heap = in(reg) heap,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: writes the pointer above.
    unsafe {
        core::arch::asm!(
            "mrs {base}, tpidr_el0",
            "adrp {place}, :gottprel:qmem_thread_heap",
            "ldr {place}, [{place}, #:gottprel_lo12:qmem_thread_heap]",
            "str {heap}, [{base}, {place}]",
            base = out(reg) _,
            place = out(reg) _,
            heap = in(reg) heap,
            options(nostack, preserves_flags),
        );
    }
}

/// Heaps ever made, and those whose threads run.
pub fn heaps() -> (usize, usize) {
    (HEAPS.len(), RUNNING.load(Ordering::Relaxed) as usize)
}

/// Every heap that there is.
pub fn all() -> impl Iterator<Item = &'static Heap> {
    // SAFETY: heaps are entered when they are whole and never unmapped; one that is being entered is null.
    (0..HEAPS.len()).filter_map(|i| HEAPS.get(i)).filter_map(|k| unsafe { (k.0.load(Ordering::Acquire) as *const Heap).as_ref() })
}

/// The calling thread's heap, if it has one.
#[inline]
pub fn own() -> Option<&'static Heap> {
    let heap = heap();
    let stand_in = core::ptr::eq(heap, &BEFORE) || core::ptr::eq(heap, &AFTER);
    // SAFETY: a heap, never unmapped.
    if stand_in { None } else { unsafe { heap.as_ref() } }
}

/// The calling thread's heap, made if it is the first time.
pub fn own_or_new() -> Option<&'static Heap> {
    if core::ptr::eq(heap(), &BEFORE) { begin(None) } else { own() }
}

/// The calling thread frees a block of `heap`: if that is the first thing it does, and nobody runs the heap, it goes on with that one.
pub fn begin_with(heap: &'static Heap) {
    if core::ptr::eq(self::heap(), &BEFORE) {
        begin(Some(heap));
    }
}

/// A thread that is new frees blocks of a heap that nobody runs, as where threads hand their work on to others: it goes on with that heap.
/// For frees by the program alone: who holds what goes by the thread's heap must not lose it on the way.
#[inline]
pub fn follow(own: &'static Heap) {
    if !own.wanted.get().is_null() {
        change(own);
    }
}

#[cold]
fn change(own: &'static Heap) {
    // SAFETY: null or a heap, never unmapped.
    let wanted = unsafe { own.wanted.replace(null()).as_ref() };
    let Some(wanted) = wanted.filter(|_| own.young.get() > 0) else { return };
    let Some(heap) = take_this(&DEPOT.lock(), wanted) else { return };
    let young = own.young.get() / 2; // not for ever from one to the next
    leave(own, true);
    if start(heap) {
        heap.young.set(young);
    }
}

/// Takes the heap out of the idle ones, if it is one.
fn take_this(depot: &Depot, wanted: &Heap) -> Option<&'static Heap> {
    // SAFETY: the depot's lock makes the list ours, and it is of idle heaps.
    unsafe { numa::adopt_this(&depot.idle, wanted) }.inspect(|heap| take_over(heap))
}

/// Takes one of the idle heaps.
fn take_any(depot: &Depot) -> Option<&'static Heap> {
    // SAFETY: as above.
    let (heap, far) = unsafe { numa::adopt(&depot.idle) }?;
    take_over(heap);
    if far {
        refill::trim(heap);
    }
    Some(heap)
}

/// A heap is the calling thread's that was idle. Under the depot's lock.
fn take_over(heap: &Heap) {
    IDLE.fetch_sub(1, Ordering::Relaxed);
    refill::collect(heap, heap.inbox.0.take_over());
}

/// Runs `f` with the thread's heap, or with the spare one under the lock. `prepaid` bytes are charged already; what is left of them
/// is given back. None: there is no heap to have.
pub fn with<R>(prepaid: usize, f: impl FnOnce(&'static Heap) -> R) -> Option<R> {
    let pay = |heap: &'static Heap| {
        heap.prepaid.set(prepaid);
        let result = f(heap);
        account::uncharge(Holder::Heap, heap.prepaid.replace(0));
        result
    };
    if let Some(heap) = own_or_new() {
        return Some(pay(heap));
    }
    let mut depot = DEPOT.lock();
    if depot.spare.is_null() {
        let Some(spare) = new_heap(&mut depot) else {
            account::uncharge(Holder::Heap, prepaid);
            return None;
        };
        spare.inbox.0.take_and_idle();
        depot.spare = spare;
    }
    // SAFETY: a heap, never unmapped; the lock makes it ours for now.
    let spare = unsafe { &*depot.spare };
    refill::collect(spare, spare.inbox.0.take_and_idle());
    Some(pay(spare))
}

#[cold]
fn begin(wanted: Option<&Heap>) -> Option<&'static Heap> {
    let heap = {
        let mut depot = DEPOT.lock();
        let idle = wanted.and_then(|wanted| take_this(&depot, wanted)).or_else(|| take_any(&depot));
        idle.or_else(|| new_heap(&mut depot))
    };
    let Some(heap) = heap else {
        set_heap(&AFTER);
        return None;
    };
    start(heap).then_some(heap)
}

/// Makes the heap the calling thread's until it ends.
fn start(heap: &'static Heap) -> bool {
    RUNNING.fetch_add(1, Ordering::Relaxed);
    heap.young.set(YOUNG);
    heap.wanted.set(null());
    // First the heap, then the key: setting the key may itself allocate where qmem is the program's malloc.
    set_heap(heap);
    let known = thread::on_exit(end, heap.mark() as *mut ());
    if !known {
        end(heap.mark() as *mut ());
    }
    known
}

/// Under the depot's lock.
fn new_heap(depot: &mut Depot) -> Option<&'static Heap> {
    // The record, and a page of each array.
    let bytes = HEAPS.growth() + 7 * vm::PAGE;
    if !account::try_charge(Holder::Tables, bytes) {
        return None;
    }
    let made = HEAPS.push().ok().and_then(|index| Some((index, HEAPS.get(index)?))).and_then(|(index, known)| {
        let heap = depot.windows.make()?;
        heap.number.set(index as u32);
        known.0.store(heap.mark(), Ordering::Release);
        Some(heap)
    });
    if made.is_none() {
        account::uncharge(Holder::Tables, bytes);
    }
    made
}

/// The thread ends (or could not announce that it will): its heap waits for the next one.
fn end(heap: *mut ()) {
    set_heap(&AFTER);
    // SAFETY: `start` passed a heap, and heaps are never unmapped.
    let Some(heap) = (unsafe { heap.cast::<Heap>().as_ref() }) else { return };
    leave(heap, true);
}

/// Gives up the thread's heap; `again`: the next thread may have it.
fn leave(heap: &'static Heap, again: bool) {
    // SAFETY: the calling thread ran the heap.
    unsafe { (*heap.outbox.get()).flush(&mut relieve) };
    super::aside::settle(heap);
    heap.aside.forget();
    // Counted first: of thousands that end at the same time only the first few keep anything.
    if IDLE.fetch_add(1, Ordering::Relaxed) < config::HEAP_IDLE_HEAPS {
        refill::settle(heap);
    } else {
        refill::trim(heap);
    }
    numa::note(heap);
    let depot = DEPOT.lock();
    refill::collect(heap, heap.inbox.0.take_and_idle());
    if again {
        heap.next_idle.set(depot.idle.replace(heap));
    } else {
        IDLE.fetch_sub(1, Ordering::Relaxed);
    }
    RUNNING.fetch_sub(1, Ordering::Release); // what it gave back is given back
}

/// Leaves a heap whose window is full for a new one. False: it is not, or there is none.
pub fn renew() -> bool {
    let Some(heap) = own().filter(|heap| heap.slices.is_full()) else { return false };
    let Some(new) = new_heap(&mut DEPOT.lock()) else { return false };
    leave(heap, false);
    start(new)
}

/// Takes in what was sent to an idle heap.
pub fn relieve(heap: &'static Heap) {
    let _depot = DEPOT.lock();
    if heap.inbox.0.is_idle() {
        refill::collect(heap, heap.inbox.0.take_and_idle());
        if let Some(own) = own().filter(|own| own.young.get() > 0) {
            own.wanted.set(heap);
        }
    }
}

/// Brings a freed block, which nobody uses and no list holds, to its heap, which is not the calling thread's.
pub fn send(heap: &'static Heap, block: *mut Block) {
    if let Some(own) = own_or_new() {
        // SAFETY: the thread's own heap; the block is as the outbox wants it.
        unsafe { (*own.outbox.get()).add(heap, block, None, &mut relieve) };
        return;
    }
    // SAFETY: the block is ours alone.
    unsafe {
        (*block).mark = heap.mark();
        Messages::seal(block, block, 1);
        heap.way(heap.slice_of(block as usize) as usize).share();
    }
    Messages.set(block as usize, END);
    if heap.inbox.0.push(block as usize, block as usize, &Messages) {
        relieve(heap);
    }
}

/// Gives up what the calling thread's heap and the idle ones keep for reuse.
pub fn trim() {
    if let Some(heap) = own() {
        // SAFETY: the thread's own heap.
        unsafe { (*heap.outbox.get()).flush(&mut relieve) };
        refill::collect(heap, heap.inbox.0.take());
        super::aside::settle(heap);
        refill::trim(heap);
    }
    let _depot = DEPOT.lock();
    for heap in all().filter(|heap| heap.inbox.0.is_idle()) {
        refill::collect(heap, heap.inbox.0.take_and_idle());
        if !heap.slices.is_bare() || super::runs::kept(heap) > 0 {
            refill::trim(heap);
        }
    }
}

/// See the face.
pub fn before_fork() {
    DEPOT.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork() {
    // SAFETY: the caller's promise.
    unsafe { DEPOT.unlock_after_fork() };
}
