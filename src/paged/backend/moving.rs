//! The MOVE mechanism: UFFDIO_MOVE of whole huge pages, both ways. Called by the face of the backends only.

use super::Moved;
use crate::error::Error;
use crate::os::uffd::{Fault, Uffd};
use crate::os::{vm, worker};
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// The open mechanism.
pub struct Moving {
    uffd: Uffd,
    /// Frames of 4 KiB pages have been seen: page tables stay behind where they leave, and are cleared away.
    small: AtomicBool,
    /// Threads that make shared pages of a chunk they own their own just now.
    unsharing: [Unsharing; UNSHARING],
}

/// A thread that writes to a chunk it owns.
struct Unsharing {
    /// 0: nobody, [`CLAIMED`]: the range is not yet told.
    thread: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
}

const CLAIMED: u32 = u32::MAX;

/// Threads that can be at it at the same time; others wait.
const UNSHARING: usize = 64;

/// Tries before a busy page is taken for pinned.
const PATIENCE: u32 = 20;

impl Moving {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { uffd: Uffd::open()?, small: AtomicBool::new(false), unsharing: [const { Unsharing::new() }; UNSHARING] })
    }

    pub fn reopen(&self) -> Result<(), Error> {
        self.unsharing.iter().for_each(|place| place.thread.store(0, Relaxed));
        self.uffd.reopen()
    }

    pub fn kernel_faults(&self) -> bool {
        self.uffd.kernel_faults
    }

    pub fn descriptor(&self) -> i32 {
        self.uffd.fd()
    }

    pub fn next_fault(&self) -> Option<Fault> {
        self.uffd.next_fault()
    }

    pub fn add_bays(&self, start: usize, len: usize) -> Result<(), Error> {
        self.uffd.register(start, len) // or frames could not be moved there
    }

    pub fn add_region(&self, start: usize, len: usize) -> Result<(), Error> {
        self.uffd.register(start, len)
    }

    pub fn remove(&self, start: usize, len: usize) {
        self.uffd.unregister(start, len);
    }

    pub fn wake(&self, start: usize, len: usize) {
        self.uffd.wake(start, len);
    }

    /// From now on page tables may stay behind moved frames.
    fn saw_small_pages(&self) {
        self.small.store(true, Relaxed);
    }

    /// The frame is touched in an unregistered nursery (touching a registered bay would raise a fault that we would have to
    /// serve), then moved.
    ///
    /// # Safety
    /// As in the face, also below.
    pub unsafe fn make_frame(&self, bay: usize, len: usize, huge: bool) -> Option<bool> {
        let nursery = vm::reserve(len, len).ok()?;
        let start = nursery.as_ptr();
        // SAFETY: the nursery is ours until it is released below, the bay is the caller's.
        unsafe {
            let _ = vm::advise(start, len, libc::MADV_DONTFORK);
            let _ = vm::advise(start, len, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
            let made = vm::populate(start as usize, len).then(|| !huge || vm::is_huge(start as usize));
            if made == Some(false) {
                self.saw_small_pages();
            }
            if made.is_some() {
                self.map_in(bay, start as usize, len);
            }
            vm::release(nursery, len);
            made
        }
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn map_in(&self, chunk: usize, bay: usize, len: usize) {
        let mut done = 0;
        let mut tries = 0;
        while done < len {
            // SAFETY: the rest of the caller's two ranges.
            let (moved, error) = unsafe { self.uffd.shift(chunk + done, bay + done, len - done, true) };
            done += moved;
            if error == 0 || done >= len {
                continue;
            }
            if error == libc::EEXIST && is_gone(bay + done) {
                done += vm::PAGE;
                continue;
            }
            tries = if moved > 0 { 0 } else { tries + 1 };
            if error == libc::EEXIST && tries == 1 {
                // Something is mapped where nothing can be (the program advised the kernel behind our back): clear it.
                // SAFETY: the chunk is ours and its contents are in the bay.
                let _ = unsafe { vm::advise((chunk + done) as *mut u8, len - done, libc::MADV_DONTNEED) };
            } else if error == libc::EBUSY && tries == 1 {
                // SAFETY: the frame is ours alone in this process, and all of it is there.
                unsafe { own(bay + done, len - done) };
            } else if tries > PATIENCE {
                // SAFETY: the rest of the frame is readable and the chunk's rest is ours.
                unsafe { self.copy_rest(chunk + done, bay + done, len - done) };
                done = len;
            } else if error != libc::EAGAIN {
                worker::pause(50);
            }
        }
        if self.small.load(Relaxed) {
            // SAFETY: the bay is ours and empty.
            let _ = unsafe { vm::advise(bay as *mut u8, len, libc::MADV_DONTNEED) };
        }
        self.uffd.wake(chunk, len);
    }

    /// Where MOVE is refused for good: copy, page by page over what is there already.
    ///
    /// # Safety
    /// As [`Self::map_in`].
    unsafe fn copy_rest(&self, chunk: usize, bay: usize, len: usize) {
        self.saw_small_pages();
        let (mut done, mut step) = (0, len);
        while done < len {
            // SAFETY: the rest of the caller's two ranges.
            let (copied, error) = unsafe { self.uffd.copy(chunk + done, bay + done, step.min(len - done)) };
            done += copied;
            match error {
                libc::EEXIST => done += vm::PAGE,
                0 | libc::EAGAIN => {}
                // The program has split the mapping (mlock, mprotect): no page is in two of its parts.
                _ if step > vm::PAGE => step = vm::PAGE,
                _ => worker::pause(100),
            }
        }
        // SAFETY: what was copied is dropped from the bay.
        let _ = unsafe { vm::advise(bay as *mut u8, len, libc::MADV_DONTNEED) };
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn map_out(&self, bay: usize, chunk: usize, len: usize) -> Moved {
        let mut done = 0;
        let mut tries = 0;
        let mut shared = false;
        while done < len {
            // SAFETY: the rest of the caller's two ranges.
            let (moved, error) = unsafe { self.uffd.shift(bay + done, chunk + done, len - done, false) };
            done += moved;
            if error == 0 || done >= len {
                continue;
            }
            if error == libc::EBUSY && !shared {
                shared = true;
                self.unshare(chunk + done, len - done);
                continue;
            }
            self.saw_small_pages();
            if error == libc::EEXIST && is_gone(chunk + done) {
                done += vm::PAGE;
                continue;
            }
            tries = if moved > 0 { 0 } else { tries + 1 };
            if error == libc::ENOENT {
                // The program dropped this page (MADV_DONTNEED): it reads as zeros.
                static ZEROS: [u8; vm::PAGE] = [0; vm::PAGE];
                // SAFETY: a page of zeros into our own bay.
                let (copied, _) = unsafe { self.uffd.copy(bay + done, ZEROS.as_ptr() as usize, vm::PAGE) };
                done += copied;
            } else if tries > PATIENCE {
                if done > 0 {
                    // SAFETY: what came out goes back to where it was.
                    unsafe { self.map_in(chunk, bay, done) };
                }
                self.uffd.wake(chunk, len);
                return Moved::Refused;
            } else if error != libc::EAGAIN {
                worker::pause(20);
            }
        }
        if self.small.load(Relaxed) {
            // SAFETY: the chunk is ours and nothing is mapped there now.
            let _ = unsafe { vm::advise(chunk as *mut u8, len, libc::MADV_DONTNEED) };
        }
        if shared && len == vm::HUGE && !vm::is_huge(bay) { Moved::InPieces } else { Moved::Whole }
    }

    /// After fork the pages of a chunk are shared with the other process (or were, until it ended) and the kernel moves none of
    /// them; writing to one makes it our own. The program may write too meanwhile, so what is written is an atomic nothing.
    fn unshare(&self, start: usize, len: usize) {
        let this = worker::thread_id();
        let place = loop {
            let free = |p: &&Unsharing| p.thread.compare_exchange(0, CLAIMED, AcqRel, Relaxed).is_ok();
            match self.unsharing.iter().find(free) {
                Some(place) => break place,
                None => worker::pause(50),
            }
        };
        place.start.store(start, Relaxed);
        place.len.store(len, Relaxed);
        place.thread.store(this, Release);
        // SAFETY: pages of a mapped chunk; atomic, so that no write of the program is lost. Should the program drop one at this very
        // moment, the fault is answered because this thread stands in `unsharing`.
        vm::each_page(start, len, |page| unsafe { own(page, vm::PAGE) });
        place.thread.store(0, Release);
    }

    /// Does this thread wait for a page of a chunk that it owns itself?
    pub fn is_unsharing(&self, fault: &Fault) -> bool {
        self.unsharing.iter().any(|place| {
            let mine = place.thread.load(Acquire) == fault.thread;
            mine && fault.address.wrapping_sub(place.start.load(Relaxed)) < place.len.load(Relaxed)
        })
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn unmap(&self, chunk: usize, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { vm::drop_pages(chunk, len) };
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn repair(&self, fault: &Fault) {
        static ZEROS: [u8; vm::PAGE] = [0; vm::PAGE];
        self.saw_small_pages();
        // SAFETY: a page of zeros into a registered range; EEXIST is the out-of-date case.
        unsafe { self.uffd.copy(fault.address, ZEROS.as_ptr() as usize, vm::PAGE) };
    }

    pub fn poison(&self, chunk: usize, len: usize) {
        self.uffd.poison(chunk, len);
        self.uffd.wake(chunk, len);
    }
}

/// Has a page that could not be moved, because something is where it should go, been moved already? Linux 6.18 counts no page that it
/// moves at its second attempt (one that changed between the look at it and the lock, as the program's write after a fork changes it):
/// it tries it once more, finds it where it has just put it, and reports EEXIST with nothing moved. What is told after that begins with
/// these pages again, for the target is looked at first; so they are all found here, one by one.
fn is_gone(page: usize) -> bool {
    let mut gone = true;
    vm::each_page(page, vm::PAGE, |_| gone = false);
    gone
}

impl Unsharing {
    const fn new() -> Self {
        Self { thread: AtomicU32::new(0), start: AtomicUsize::new(0), len: AtomicUsize::new(0) }
    }
}

/// Makes pages that are shared with another process since a fork this one's own.
///
/// # Safety
/// The pages are there, and this thread may write to them.
unsafe fn own(start: usize, len: usize) {
    for page in (start..start + len).step_by(vm::PAGE) {
        // SAFETY: the caller's promise; every byte is a valid AtomicU8.
        let byte = unsafe { AtomicU8::from_ptr(page as *mut u8) };
        let now = byte.load(Relaxed);
        // Not `fetch_or(0)`, of which the compiler makes a load. If this fails, somebody else has written there.
        let _ = byte.compare_exchange(now, now, Relaxed, Relaxed);
    }
}
