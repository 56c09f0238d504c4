//! Virtual memory: reserving, releasing and advising address ranges. Raw system calls, so that the preload's own `mmap`
//! wrappers are never re-entered.

use crate::error::Error;
use crate::fail;
use core::ptr::NonNull;

/// The OS page. x86-64 and the aarch64 configurations qmem supports use 4 KiB.
pub const PAGE: usize = 4096;
/// A huge page: the pager's chunk and the alignment of everything big.
pub const HUGE: usize = 2 << 20;

/// `n` rounded up to a multiple of the power of two `to`. The caller rules out overflow.
pub const fn round_up(n: usize, to: usize) -> usize {
    (n + (to - 1)) & !(to - 1)
}

/// errno of the last failed call on this thread.
pub fn errno() -> i32 {
    // SAFETY: glibc's errno location is valid for the calling thread.
    unsafe { *libc::__errno_location() }
}

/// Reserves `size` bytes (a multiple of the page) of private zero memory aligned to `align`; nothing is resident yet.
pub fn reserve(size: usize, align: usize) -> Result<NonNull<u8>, Error> {
    let slack = if align > PAGE { align } else { 0 };
    let Some(total) = size.checked_add(slack) else {
        return Err(fail!(OutOfMemory, "cannot reserve {size} bytes of address space: the size overflows"));
    };
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
    let base = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            0usize,
            total,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1isize,
            0usize,
        )
    };
    if base == -1 {
        return Err(fail!(
            OutOfMemory,
            "cannot reserve {total} bytes of address space (errno {}): check ulimit -v, vm.max_map_count and vm.overcommit_memory",
            errno()
        ));
    }
    let base = base as usize;
    let start = round_up(base, align.max(PAGE));
    // SAFETY: both tails lie inside the mapping just made and outside [start, start + size).
    unsafe {
        if start > base {
            unmap(base, start - base);
        }
        if base + total > start + size {
            unmap(start + size, base + total - (start + size));
        }
        Ok(NonNull::new_unchecked(start as *mut u8)) // mmap never returns page zero
    }
}

/// Maps `[start, start + size)`, page-aligned, as private zero memory; an error number if something is mapped there already.
pub fn map_at(start: usize, size: usize) -> Result<(), i32> {
    // SAFETY: MAP_FIXED_NOREPLACE never touches existing mappings.
    let at = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            start,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE,
            -1isize,
            0usize,
        )
    };
    if at == -1 {
        return Err(errno());
    }
    if at as usize != start {
        // A kernel before 4.17 takes the address as a wish.
        // SAFETY: mapped just now, known to nobody.
        unsafe { unmap(at as usize, size) };
        return Err(libc::EEXIST);
    }
    Ok(())
}

/// munmap(2).
///
/// # Safety
/// `[start, start + size)` is mapped, page-aligned and no longer used by anyone.
pub unsafe fn unmap(start: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_munmap, start, size) };
}

/// Gives a range back to the kernel.
///
/// # Safety
/// The range was made by [`reserve`] (or is a page-aligned part of such a range) and nothing uses it any more.
pub unsafe fn release(start: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { unmap(start.as_ptr() as usize, size) };
}

/// madvise(2): the error number on failure.
///
/// # Safety
/// The range is mapped and the caller can bear the advice (MADV_DONTNEED drops contents).
pub unsafe fn advise(start: *mut u8, size: usize, advice: i32) -> Result<(), i32> {
    // SAFETY: the caller's promise.
    let r = unsafe { libc::syscall(libc::SYS_madvise, start, size, advice) };
    if r == 0 { Ok(()) } else { Err(errno()) }
}

/// Drops the contents of whole pages, which are zero then; false if the kernel refuses (locked memory). errno stays as it is.
///
/// # Safety
/// The range is mapped and nobody needs its contents.
pub unsafe fn try_drop_pages(start: usize, size: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { try_advise(start, size, libc::MADV_DONTNEED) }
}

/// madvise(2); false if the kernel refuses. errno stays as it is.
///
/// # Safety
/// As for [`advise`].
pub unsafe fn try_advise(start: usize, size: usize, advice: i32) -> bool {
    let before = errno();
    // SAFETY: the caller's promise.
    let done = unsafe { advise(start as *mut u8, size, advice) }.is_ok();
    if !done {
        // SAFETY: glibc's errno location is valid for the calling thread.
        unsafe { *libc::__errno_location() = before };
    }
    done
}

/// `struct pm_scan_arg` of PAGEMAP_SCAN.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: u64 = 0xC060_6610;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// Is the huge-page-aligned address mapped by one huge page now? Where the kernel cannot tell (before 6.7), false.
pub fn is_huge(address: usize) -> bool {
    let mut region = [0u64; 3];
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        start: address as u64,
        end: (address + HUGE) as u64,
        vec: region.as_mut_ptr() as u64,
        vec_len: 1,
        category_mask: PAGE_IS_HUGE,
        return_mask: PAGE_IS_HUGE,
        ..ScanArgument::default()
    };
    // SAFETY: opens, asks and closes; the kernel writes at most one page_region to `region`.
    unsafe {
        let fd = libc::open(c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return false;
        }
        let found = libc::ioctl(fd, PAGEMAP_SCAN, &raw mut argument);
        libc::close(fd);
        found == 1 && region == [address as u64, (address + HUGE) as u64, PAGE_IS_HUGE]
    }
}

/// Bytes of memory in this machine.
pub fn machine_memory() -> usize {
    // SAFETY: sysconf only reports.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    usize::try_from(pages).unwrap_or(0).max(1 << 16).saturating_mul(PAGE)
}

/// Takes all access from a range: touching it is a plain segmentation fault.
///
/// # Safety
/// The range is part of a mapping that nobody uses.
pub unsafe fn forbid(start: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_mprotect, start, size, libc::PROT_NONE) };
}

/// mprotect(2): the error number on failure.
///
/// # Safety
/// The range is the caller's, page-aligned, and whoever touches it can bear the new protection.
pub unsafe fn protect(start: usize, size: usize, access: i32) -> Result<(), i32> {
    // SAFETY: the caller's promise.
    let r = unsafe { libc::syscall(libc::SYS_mprotect, start, size, access) };
    if r == 0 { Ok(()) } else { Err(errno()) }
}

/// Makes every page of a private writable range resident; false if memory is not to be had.
///
/// # Safety
/// The range is the caller's and no one waits for pages of it.
pub unsafe fn populate(start: usize, size: usize) -> bool {
    // SAFETY: the caller's promise; contents stay as they are.
    match unsafe { advise(start as *mut u8, size, libc::MADV_POPULATE_WRITE) } {
        Err(libc::EINVAL) => {
            // A kernel before 5.14: a write to each page does the same.
            for page in (start..start + size).step_by(PAGE) {
                // SAFETY: a byte of the caller's range; it gets the value that it has.
                unsafe { (page as *mut u8).write_volatile((page as *const u8).read_volatile()) };
            }
            true
        }
        done => done.is_ok(),
    }
}

/// Drops the pages of a private range, whatever locks the program has put on them (mlock moves with the pages).
///
/// # Safety
/// The range is the caller's and its contents are not missed.
pub unsafe fn drop_pages(start: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if advise(start as *mut u8, size, libc::MADV_DONTNEED).is_err() {
            libc::syscall(libc::SYS_munlock, start, size);
            let _ = advise(start as *mut u8, size, libc::MADV_DONTNEED);
        }
    }
}

/// MPOL_F_MEMS_ALLOWED of linux/mempolicy.h.
const MEMS_ALLOWED: usize = 4;

/// Has the pages of a range, none of which is there yet, spread over the memory nodes that the process may use; false if the kernel
/// refuses.
pub fn interleave(start: usize, size: usize) -> bool {
    let mut nodes = [0usize; 16];
    let bits = nodes.len() * usize::BITS as usize;
    // SAFETY: fills the array with the nodes that are allowed; changes where pages will come from, nothing in them.
    unsafe {
        libc::syscall(libc::SYS_get_mempolicy, core::ptr::null_mut::<i32>(), nodes.as_mut_ptr(), bits, 0usize, MEMS_ALLOWED) == 0
            && libc::syscall(libc::SYS_mbind, start, size, libc::MPOL_INTERLEAVE, nodes.as_ptr(), bits, 0usize) == 0
    }
}

/// `mremap` with MREMAP_DONTUNMAP: the pages of a private mapping move to `to`, where there are none, replacing in one step what
/// is mapped there, and `from` stays mapped without pages. Bytes moved and the error that ended it, 0 for none: EINVAL before
/// Linux 5.7 and under valgrind, EFAULT if `from` is several mappings (before Linux 6.17, which moves one after the other and may
/// stop between two), ENOMEM beyond vm.max_map_count.
///
/// # Safety
/// Both ranges are `size` bytes and the caller's; `to` holds no pages.
pub unsafe fn shift(from: usize, to: usize, size: usize) -> (usize, i32) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: the caller's promise.
    let r = unsafe { libc::syscall(libc::SYS_mremap, from, size, size, flags, to) };
    match errno() {
        _ if r != -1 => (size, 0),
        libc::EINVAL => (0, libc::EINVAL),
        error => (reach(to, size), error),
    }
}

/// Where the last page ends that is there in a range, in memory or in the kernel's swap, as bytes from `start`. Asks without
/// touching; 0 if /proc is not mounted.
fn reach(start: usize, size: usize) -> usize {
    let mut pages = [0; HUGE / PAGE];
    let last = page_map(start, size, &mut pages).and_then(|pages| pages.iter().rposition(|page| is_there(*page)));
    last.map_or(0, |last| (last + 1) * PAGE)
}

/// Calls `act` for each page that is there in a range of at most a huge page, in memory or in the kernel's swap (without /proc those in
/// swap are passed over). Asks without touching.
pub fn each_page(start: usize, size: usize, mut act: impl FnMut(usize)) {
    let mut pages = [0; HUGE / PAGE];
    let mut resident = [0u8; HUGE / PAGE];
    let mut seen = |there: &mut dyn Iterator<Item = bool>| {
        there.enumerate().filter(|(_, there)| *there).for_each(|(page, _)| act(start + page * PAGE));
    };
    if let Some(pages) = page_map(start, size, &mut pages) {
        seen(&mut pages.iter().map(|page| is_there(*page)));
    // SAFETY: a byte for each page of the range; it only asks.
    } else if size <= HUGE && unsafe { libc::mincore(start as *mut _, size, resident.as_mut_ptr()) } == 0 {
        seen(&mut resident.iter().take(size / PAGE).map(|page| page & 1 == 1));
    }
}

/// The entries of /proc/self/pagemap for a range of at most a huge page. None if they are not to be had.
fn page_map(start: usize, size: usize, entries: &mut [u64; HUGE / PAGE]) -> Option<&[u64]> {
    let count = (size / PAGE).min(entries.len());
    // SAFETY: opens, reads as many entries as there is room for, and closes.
    let bytes = unsafe {
        let fd = libc::open(c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let n = libc::pread(fd, entries.as_mut_ptr().cast(), count * 8, (start / PAGE * 8) as i64);
        libc::close(fd);
        n
    };
    entries.get(..count).filter(|_| bytes == count as isize * 8)
}

/// By its entry: present, or swapped.
fn is_there(entry: u64) -> bool {
    entry >> 62 != 0
}

/// Does [`shift`] work here?
pub fn can_shift() -> bool {
    let Ok(pages) = reserve(2 * PAGE, PAGE) else { return false };
    let start = pages.as_ptr() as usize;
    // SAFETY: two pages of our own.
    unsafe {
        let moved = shift(start, start + PAGE, PAGE);
        release(pages, 2 * PAGE);
        moved == (PAGE, 0)
    }
}

/// mremap(2): resizes a mapping without copying. With `to` the pages move there and replace what is mapped at it; without, the
/// mapping stays where it is. The error number on failure, with both ranges as they were.
///
/// # Safety
/// `[start, start + old)` is a private mapping made by [`reserve`]; nobody uses the part that a smaller `new` drops. `to`, if
/// given, is a reserved range of `new` bytes that nobody uses, apart from the old one.
pub unsafe fn remap(start: NonNull<u8>, old: usize, new: usize, to: Option<NonNull<u8>>) -> Result<(), i32> {
    let (flags, target) = match to {
        Some(to) => (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to.as_ptr() as usize),
        None => (0, 0),
    };
    // SAFETY: the caller's promise.
    let r = unsafe { libc::syscall(libc::SYS_mremap, start.as_ptr(), old, new, flags, target) };
    if r == -1 { Err(errno()) } else { Ok(()) }
}
