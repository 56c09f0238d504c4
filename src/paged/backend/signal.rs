//! The SIGNAL mechanism, where userfaultfd is refused: a chunk without a frame may not be touched, the handler of SIGSEGV hands the
//! access to the workers through a pipe and sleeps until it is woken, as userfaultfd does. mremap moves pages both ways in one
//! step, so no thread sees half a chunk; where it cannot (before Linux 5.7, under valgrind), pages are copied behind a protection
//! that keeps writers out. System calls fail with EFAULT on what has no frame. Called by the face of the backends only.

use super::{Moved, patiently};
use crate::error::Error;
use crate::fail;
use crate::os::hollow::{Hollow, Raises};
use crate::os::segv::{self, Access};
use crate::os::uffd::Fault;
use crate::os::{pipe::Pipe, vm};
use crate::paged::pager;
use crate::sync::{futex_wait, futex_wake};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// A chunk in a region, what is between it and the next, and the bay that it came from.
pub const MAPPINGS_PER_FRAME: usize = 3;
/// Bytes copied at a time, and resident twice meanwhile.
const STEP: usize = 64 << 10;
/// Queues of waiting threads, by the 2 MiB that they wait for.
const QUEUES: usize = 256;

/// Threads that wait for some 2 MiB.
struct Queue {
    /// Counts wakes; waiters sleep on it.
    wakes: AtomicU32,
    waiters: AtomicU32,
}

static WAITING: [Queue; QUEUES] = [const { Queue { wakes: AtomicU32::new(0), waiters: AtomicU32::new(0) } }; QUEUES];
/// Where the handler writes to.
static FAULTS: AtomicI32 = AtomicI32::new(-1);
/// A page that reads as zeros in a child of fork until the child has a pipe of its own: one that was made behind the C library's back
/// has nobody to serve it. (A child of vfork is in this memory, and is served.)
static SERVED: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());
/// Numbers of accesses, and by number those that the program has forbidden itself: not ours to serve.
static TICKETS: AtomicU32 = AtomicU32::new(1);
static DENIED: [AtomicU64; QUEUES] = [const { AtomicU64::new(0) }; QUEUES];

/// What goes through the pipe.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Message {
    address: usize,
    thread: u32,
    /// The ticket, its lowest bit set for a write.
    ticket: u32,
}

/// The open mechanism.
pub struct Signal {
    hollow: Hollow,
    pipe: Pipe,
    /// mremap can leave the source mapped.
    shifts: bool,
    /// The kernel can be asked whether an access is allowed.
    populates: bool,
}

fn queue(address: usize) -> &'static Queue {
    &WAITING[address / vm::HUGE % QUEUES]
}

/// The hook of the signal handler: true when the access is to be tried again.
fn on_access(access: &Access) -> bool {
    // SAFETY: null, or the page that `open` made for good.
    let served = unsafe { SERVED.load(Relaxed).as_ref() }.is_some_and(|served| served.load(Relaxed) == 1);
    if !served || !pager::owns(access.address) {
        return false;
    }
    let number = TICKETS.fetch_add(2, Relaxed);
    let ticket = number | u32::from(access.write);
    let message = Message { address: access.address & !(vm::PAGE - 1), thread: access.thread, ticket };
    let queue = queue(access.address);
    // Counted before the number of wakes is read, so that whoever wakes after that sees us.
    queue.waiters.fetch_add(1, SeqCst);
    let seen = queue.wakes.load(SeqCst);
    let sent = Pipe::send(FAULTS.load(Relaxed), &message);
    while sent && queue.wakes.load(SeqCst) == seen {
        futex_wait(&queue.wakes, seen);
    }
    queue.waiters.fetch_sub(1, SeqCst);
    sent && denials(ticket).compare_exchange(denial(access.thread, ticket), 0, SeqCst, Relaxed).is_err()
}

fn denials(ticket: u32) -> &'static AtomicU64 {
    &DENIED[ticket as usize / 2 % QUEUES]
}

fn denial(thread: u32, ticket: u32) -> u64 {
    u64::from(thread) << 32 | u64::from(ticket)
}

impl Signal {
    pub fn open() -> Result<Self, Error> {
        // SAFETY: no bytes of our own page; it only asks whether the advice is known.
        let populates = unsafe { vm::advise(vm::PAGE as *mut u8, 0, libc::MADV_POPULATE_READ) }.is_ok();
        let signal = Self { hollow: Hollow::open()?, pipe: Pipe::new()?, shifts: vm::can_shift(), populates };
        FAULTS.store(signal.pipe.write_end(), Relaxed);
        let page = vm::reserve(vm::PAGE, vm::PAGE)?;
        // SAFETY: our own page. (The advice is older than everything else that is asked of the kernel here.)
        unsafe {
            let _ = vm::advise(page.as_ptr(), vm::PAGE, libc::MADV_WIPEONFORK);
            page.cast::<AtomicU32>().as_ref().store(1, Relaxed);
        }
        SERVED.store(page.cast().as_ptr(), Relaxed);
        segv::install(on_access)?;
        Ok(signal)
    }

    /// The pipe is shared with the parent, and nobody waits here yet.
    pub fn reopen(&self) -> Result<(), Error> {
        self.pipe.reopen()?;
        FAULTS.store(self.pipe.write_end(), Relaxed);
        // SAFETY: the page that `open` made for good.
        if let Some(served) = unsafe { SERVED.load(Relaxed).as_ref() } {
            served.store(1, Relaxed);
        }
        WAITING.iter().for_each(|queue| queue.waiters.store(0, SeqCst));
        Ok(())
    }

    pub fn descriptor(&self) -> i32 {
        self.pipe.read_end()
    }

    pub fn next_fault(&self) -> Option<Fault> {
        let message: Message = self.pipe.receive()?;
        Some(Fault { address: message.address, thread: message.thread, ticket: message.ticket })
    }

    pub fn add_bays(&self, start: usize, len: usize) -> Result<(), Error> {
        if !self.shifts {
            // Huge pages could not be given up bit by bit while they are copied.
            // SAFETY: a fresh range of the caller's.
            let _ = unsafe { vm::advise(start as *mut u8, len, libc::MADV_NOHUGEPAGE) };
        }
        Ok(())
    }

    pub fn add_region(&self, start: usize, len: usize) -> Result<(), Error> {
        segv::install(on_access)?;
        // SAFETY: a fresh range of the caller's.
        unsafe { self.hollow.cover(start, len, Raises::Segv) }.map_err(|error| {
            fail!(
                OutOfMemory,
                "{len} bytes of address space cannot be guarded (errno {error}): check vm.max_map_count and ulimit -v"
            )
        })
    }

    pub fn remove(&self, start: usize, len: usize) {
        self.wake(start, len);
    }

    pub fn wake(&self, start: usize, len: usize) {
        let last = start + len.max(1) - 1;
        for unit in (start / vm::HUGE..=last / vm::HUGE).take(QUEUES) {
            let queue = queue(unit * vm::HUGE);
            queue.wakes.fetch_add(1, SeqCst);
            if queue.waiters.load(SeqCst) > 0 {
                futex_wake(&queue.wakes, i32::MAX);
            }
        }
    }

    /// # Safety
    /// As in the face, also below.
    pub unsafe fn make_frame(&self, bay: usize, len: usize, huge: bool) -> Option<bool> {
        // SAFETY: the caller's promise.
        unsafe { vm::populate(bay, len) }.then(|| !huge || vm::is_huge(bay))
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn map_in(&self, chunk: usize, bay: usize, len: usize) {
        if self.shifts {
            let mut done = 0;
            patiently(|| {
                // SAFETY: the caller owns both; what is at the chunk's rest is hollow.
                let (moved, error) = unsafe { vm::shift(bay + done, chunk + done, len - done) };
                done += moved;
                if done == len { Ok(()) } else { Err(error) }
            });
        } else {
            // SAFETY: as above.
            unsafe { copy_in(chunk, bay, len) };
        }
        self.wake(chunk, len);
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn map_out(&self, bay: usize, chunk: usize, len: usize) -> Moved {
        // SAFETY: the caller owns both ranges. From the first call on whoever touches the chunk waits for us.
        unsafe {
            if vm::protect(chunk, len, libc::PROT_NONE).is_err() {
                return Moved::Refused;
            }
            let mut done = 0;
            if self.shifts {
                (done, _) = vm::shift(chunk, bay, len);
            }
            if done > 0 {
                patiently(|| {
                    let (moved, error) = if done < len { vm::shift(chunk + done, bay + done, len - done) } else { (0, 0) };
                    done += moved;
                    if done == len { Ok(()) } else { Err(error) }
                });
                patiently(|| vm::protect(bay, len, libc::PROT_READ | libc::PROT_WRITE));
                patiently(|| self.hollow.cover(chunk, len, Raises::Segv));
                return Moved::Whole;
            }
            self.copy_out(bay, chunk, len)
        }
    }

    /// Readers may look on; a part that has been copied is out of reach before the next one is copied.
    ///
    /// # Safety
    /// As in the face.
    unsafe fn copy_out(&self, bay: usize, chunk: usize, len: usize) -> Moved {
        // SAFETY: the caller owns both ranges, and nobody writes to the chunk while it is protected.
        unsafe {
            if vm::protect(chunk, len, libc::PROT_READ).is_ok() {
                for done in (0..len).step_by(STEP) {
                    core::ptr::copy_nonoverlapping((chunk + done) as *const u8, (bay + done) as *mut u8, STEP);
                    if done > 0 {
                        patiently(|| self.hollow.cover(chunk + done, STEP, Raises::Segv));
                    } else if self.hollow.cover(chunk, STEP, Raises::Segv).is_err() {
                        break; // no mapping left: as it was
                    }
                    if done + STEP >= len {
                        return Moved::Whole;
                    }
                }
            }
            vm::drop_pages(bay, len);
            patiently(|| vm::protect(chunk, len, libc::PROT_READ | libc::PROT_WRITE));
        }
        Moved::Refused
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn unmap(&self, chunk: usize, len: usize) {
        // SAFETY: the caller's promise.
        patiently(|| unsafe { self.hollow.cover(chunk, len, Raises::Segv) });
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn repair(&self, fault: &Fault) {
        let advice = if fault.ticket & 1 == 1 { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        // SAFETY: the page lies in a chunk that is mapped and held by the caller; populating changes no contents.
        if self.populates && unsafe { vm::advise(fault.address as *mut u8, vm::PAGE, advice) }.is_err() {
            denials(fault.ticket).store(denial(fault.thread, fault.ticket), SeqCst);
        }
    }

    pub fn poison(&self, chunk: usize, len: usize) {
        // SAFETY: a chunk whose bytes are lost, and which nobody else changes.
        patiently(|| unsafe { self.hollow.cover(chunk, len, Raises::Bus) });
        self.wake(chunk, len);
    }
}

/// Without MREMAP_DONTUNMAP: a copy is made elsewhere, part by part as the bay's is given up, and moved in whole.
///
/// # Safety
/// As in the face.
unsafe fn copy_in(chunk: usize, bay: usize, len: usize) {
    let mut nursery = None;
    patiently(|| {
        nursery = Some(vm::reserve(len, vm::PAGE).map_err(|_| libc::ENOMEM)?);
        Ok(())
    });
    let Some(nursery) = nursery else { return };
    let copy = nursery.as_ptr() as usize;
    // SAFETY: the nursery is ours until it is the chunk; the rest is the caller's promise.
    unsafe {
        let _ = vm::advise(nursery.as_ptr(), len, libc::MADV_NOHUGEPAGE);
        let _ = vm::advise(nursery.as_ptr(), len, libc::MADV_DONTFORK);
        let _ = vm::advise(nursery.as_ptr(), len, libc::MADV_DONTDUMP);
        for done in (0..len).step_by(STEP) {
            core::ptr::copy_nonoverlapping((bay + done) as *const u8, (copy + done) as *mut u8, STEP);
            vm::drop_pages(bay + done, STEP);
        }
        patiently(|| vm::remap(nursery, len, len, core::ptr::NonNull::new(chunk as *mut u8)));
    }
}
