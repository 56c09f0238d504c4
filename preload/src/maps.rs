//! Mappings: with QMEM_PRELOAD_MMAP a large private anonymous mmap is paged as a block from malloc is; munmap, mremap and madvise then
//! mean for it what they mean for the kernel's own. madvise is also for paged blocks from malloc. Called by the program and its
//! libraries; everything else is the plain system call.
//!
//! A part that is unmapped from the middle or an end of a paged mapping costs nothing from then on, but its addresses stay taken
//! until the whole is unmapped: an access there reads zeros instead of ending the program.

use crate::blocks::{self, set_errno};
use core::ffi::{c_int, c_void};
use libc::off_t;
use qmem::error::Status;
use qmem::os::vm;
use qmem::paged::{self, Found};

/// What a mapping may ask for and still be paged.
const PLAIN: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_POPULATE;

fn failed(errno: c_int) -> *mut c_void {
    set_errno(errno);
    libc::MAP_FAILED
}

/// mmap(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    size: usize,
    rights: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let wanted = address.is_null()
        && blocks::pages_maps(size)
        && rights == libc::PROT_READ | libc::PROT_WRITE
        && flags & !PLAIN == 0
        && flags & libc::MAP_PRIVATE != 0
        && flags & libc::MAP_ANONYMOUS != 0;
    if wanted && size <= isize::MAX as usize {
        match blocks::page(vm::round_up(size, vm::PAGE), vm::PAGE) {
            Ok(block) => return block.cast(),
            Err(error) if error.status == Status::Unsupported => {} // a plain mapping then
            Err(error) => {
                blocks::refuse(size, &error);
                return failed(libc::ENOMEM);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_mmap, address, size, rights, flags, fd, offset) as *mut c_void }
}

/// mmap(2) under its other name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    size: usize,
    rights: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { mmap(address, size, rights, flags, fd, offset) }
}

/// The paged region that a range begins in, and how many of the range's bytes are its own.
fn region(address: *mut c_void, size: usize) -> Option<(Found, usize)> {
    let found = paged::find(address.cast())?;
    let left = found.size - (address as usize - found.start as usize);
    Some((found, size.min(left)))
}

/// munmap(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(address: *mut c_void, size: usize) -> c_int {
    let Some((found, bytes)) = region(address, size) else {
        // SAFETY: the caller's promise.
        return unsafe { libc::syscall(libc::SYS_munmap, address, size) as c_int };
    };
    let whole = core::ptr::eq(found.start, address.cast()) && bytes == found.size;
    // SAFETY: the program gives the range up.
    let done = unsafe { if whole { paged::free(found.start) } else { paged::discard(address.cast(), bytes) } };
    match done {
        Ok(()) => 0,
        Err(_) => {
            set_errno(libc::EINVAL);
            -1
        }
    }
}

/// mremap(2). A paged mapping moves as a whole; MREMAP_FIXED and MREMAP_DONTUNMAP are EINVAL for it.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(address: *mut c_void, old: usize, new: usize, flags: c_int, target: *mut c_void) -> *mut c_void {
    let Some((found, bytes)) = region(address, old) else {
        // SAFETY: the caller's promise.
        return unsafe { libc::syscall(libc::SYS_mremap, address, old, new, flags, target) as *mut c_void };
    };
    let whole = core::ptr::eq(found.start, address.cast()) && bytes == found.size;
    if !whole || new == 0 || new > isize::MAX as usize || flags & !libc::MREMAP_MAYMOVE != 0 {
        return failed(libc::EINVAL);
    }
    let size = vm::round_up(new, vm::PAGE);
    if size == found.size {
        return address;
    }
    if flags & libc::MREMAP_MAYMOVE == 0 {
        if size > found.size {
            return failed(libc::ENOMEM);
        }
        // SAFETY: the program gives the tail up.
        let _ = unsafe { paged::discard(found.start.wrapping_add(size), found.size - size) }; // what is pinned is zeroed
        return address;
    }
    // SAFETY: the program gives the old addresses up.
    match unsafe { paged::resize(found.start, size) } {
        Ok(moved) => moved.as_ptr().cast(),
        Err(error) => {
            blocks::refuse(size, &error);
            failed(libc::ENOMEM)
        }
    }
}

/// madvise(2). On paged memory MADV_DONTNEED reads as zeros wherever the bytes were, MADV_FREE does nothing, MADV_WILLNEED reads
/// ahead; the rest is the kernel's.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(address: *mut c_void, size: usize, advice: c_int) -> c_int {
    if let Some((_, bytes)) = region(address, vm::round_up(size.min(isize::MAX as usize), vm::PAGE)).filter(|(_, n)| *n > 0) {
        match advice {
            // SAFETY: the program misses nothing in the range.
            libc::MADV_DONTNEED if unsafe { paged::discard(address.cast(), bytes) }.is_ok() => return 0,
            libc::MADV_FREE => return 0,
            libc::MADV_WILLNEED if paged::prefetch(address.cast_const().cast(), bytes).is_ok() => return 0,
            _ => {}
        }
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_madvise, address, size, advice) as c_int }
}
