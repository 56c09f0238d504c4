//! The REMAP mechanism: userfaultfd tells of faults, and mremap moves a chunk's pages between bay and region, both ways in one
//! step and without a copy; the page stays huge. For kernels without UFFDIO_MOVE, which does the same without locking the whole
//! address space. Filling by UFFDIO_COPY and evicting by write-protection instead costs a hundred times as much, and every huge
//! page. Where mappings run out, pages are copied in. Called by the face of the backends only.

use super::{Moved, patiently};
use crate::ds::MappedArray;
use crate::error::Error;
use crate::fail;
use crate::os::hollow::{Hollow, Raises};
use crate::os::uffd::{Fault, Uffd};
use crate::os::{limits, vm, worker};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The bay of a frame, and as much again for the chunks that [`Pieces`] counts.
pub const MAPPINGS_PER_FRAME: usize = 2;
/// Smallest chunk.
const UNIT: usize = 64 << 10;
/// Bits of an address.
const ADDRESS_BITS: u32 = 47;

/// The open mechanism.
pub struct Remap {
    uffd: Uffd,
    hollow: Hollow,
    pieces: Pieces,
}

/// Chunks that are mappings of their own: each that ever had a frame moved in stays one until its region ends, since the kernel
/// joins no mappings whose pages were elsewhere. Counted, so that the program keeps mappings for itself.
struct Pieces {
    /// A bit by the number of the chunk's first unit.
    map: MappedArray<AtomicU64>,
    count: AtomicUsize,
    most: usize,
}

impl Pieces {
    fn new() -> Result<Self, Error> {
        let map = MappedArray::new(1 << (ADDRESS_BITS - UNIT.trailing_zeros() - 6))?;
        Ok(Self { map, count: AtomicUsize::new(0), most: limits::mappings() / 8 * 3 })
    }

    /// May the chunk be a mapping of its own?
    fn take(&self, chunk: usize) -> bool {
        let unit = chunk / UNIT;
        let Some(word) = self.map.get(unit / 64) else { return false };
        let bit = 1 << (unit % 64);
        if word.load(Relaxed) & bit != 0 {
            return true;
        }
        if self.count.fetch_add(1, Relaxed) >= self.most {
            self.count.fetch_sub(1, Relaxed);
            return false;
        }
        word.fetch_or(bit, Relaxed);
        true
    }

    /// The range is one mapping, or none.
    fn forget(&self, start: usize, len: usize) {
        for unit in start / UNIT..(start + len).div_ceil(UNIT) {
            let Some(word) = self.map.get(unit / 64).filter(|word| word.load(Relaxed) != 0) else { continue };
            let bit = 1 << (unit % 64);
            if word.fetch_and(!bit, Relaxed) & bit != 0 {
                self.count.fetch_sub(1, Relaxed);
            }
        }
    }
}

static ZEROS: [u8; vm::PAGE] = [0; vm::PAGE];

impl Remap {
    pub fn open() -> Result<Self, Error> {
        let uffd = Uffd::open_older()?;
        if !vm::can_shift() {
            return Err(fail!(Unsupported, "this kernel's mremap has no MREMAP_DONTUNMAP (Linux 5.7 or newer)"));
        }
        Ok(Self { uffd, hollow: Hollow::open()?, pieces: Pieces::new()? })
    }

    pub fn reopen(&self) -> Result<(), Error> {
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

    pub fn add_bays(&self, _: usize, _: usize) -> Result<(), Error> {
        Ok(())
    }

    pub fn add_region(&self, start: usize, len: usize) -> Result<(), Error> {
        self.uffd.register(start, len)
    }

    pub fn remove(&self, start: usize, len: usize) {
        self.uffd.unregister(start, len);
        self.pieces.forget(start, len);
    }

    pub fn wake(&self, start: usize, len: usize) {
        self.uffd.wake(start, len);
    }

    /// # Safety
    /// As in the face, also below.
    pub unsafe fn make_frame(&self, bay: usize, len: usize, huge: bool) -> Option<bool> {
        // SAFETY: the caller's promise; bays are not registered, so nobody waits for their pages.
        unsafe { vm::populate(bay, len) }.then(|| !huge || vm::is_huge(bay))
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn map_in(&self, chunk: usize, bay: usize, len: usize) {
        // SAFETY: the caller owns both ranges, and nothing is mapped in the chunk.
        let (moved, _) = if self.pieces.take(chunk) { unsafe { vm::shift(bay, chunk, len) } } else { (0, 0) };
        if moved < len {
            // SAFETY: the rest of the two.
            unsafe { self.copy_in(chunk + moved, bay + moved, len - moved) };
        }
        if moved > 0 {
            // Until it is registered, a page that the program drops here reads as zeros without us: as it should.
            self.register(chunk, len);
        }
        self.uffd.wake(chunk, len);
    }

    fn register(&self, chunk: usize, len: usize) {
        patiently(|| self.uffd.register(chunk, len).map_err(|_| libc::ENOMEM));
    }

    /// Page by page, giving the bay's up as the region's come, so that no more is resident than was charged.
    ///
    /// # Safety
    /// As in the face.
    unsafe fn copy_in(&self, chunk: usize, bay: usize, len: usize) {
        let (mut done, mut step) = (0, UNIT);
        while done < len {
            // SAFETY: a part of the caller's two ranges.
            let (copied, error) = unsafe { self.uffd.copy(chunk + done, bay + done, step.min(len - done)) };
            // SAFETY: what has been copied.
            unsafe { vm::drop_pages(bay + done, copied) };
            done += copied;
            match error {
                libc::EEXIST => done += vm::PAGE,
                0 | libc::EAGAIN => {}
                // The program has split the mapping (mlock, mprotect): no page is in two of its parts.
                _ if step > vm::PAGE => step = vm::PAGE,
                _ => worker::pause(100),
            }
        }
        // SAFETY: the bay is empty from here on.
        unsafe { vm::drop_pages(bay, len) };
    }

    /// # Safety
    /// As in the face.
    pub unsafe fn map_out(&self, bay: usize, chunk: usize, len: usize) -> Moved {
        let mut done = 0;
        while done < len {
            // SAFETY: the caller owns both. What is left in the chunk is a registered mapping without pages.
            let (moved, error) = unsafe { vm::shift(chunk + done, bay + done, len - done) };
            done += moved;
            if error != 0 && done == 0 {
                return Moved::Refused;
            }
            if error != 0 {
                worker::pause(1000); // mappings come back as others give theirs up
            }
        }
        Moved::Whole
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
        // SAFETY: a page of zeros into a registered range; EEXIST is the out-of-date case.
        unsafe { self.uffd.copy(fault.address, ZEROS.as_ptr() as usize, vm::PAGE) };
    }

    pub fn poison(&self, chunk: usize, len: usize) {
        // SAFETY: a chunk whose bytes are lost, and which nobody else changes.
        patiently(|| unsafe { self.hollow.cover(chunk, len, Raises::Bus) });
        self.uffd.wake(chunk, len);
    }
}
