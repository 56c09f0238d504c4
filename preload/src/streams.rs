//! libc's streams: fread and fwrite transfer large blocks straight between the program's buffer and the kernel, by calls inside libc
//! that no wrapper sees. As in `calls.rs`, a part at a time. Also the names that checked builds (_FORTIFY_SOURCE) call. Called by the
//! program and its libraries.

use crate::calls::{self, Own, hold, needs_help, release};
use core::ffi::{c_int, c_void};
use libc::{FILE, off_t, sockaddr, socklen_t, ssize_t};

type Transfer = unsafe extern "C" fn(*mut c_void, usize, usize, *mut FILE) -> usize;

/// Items transferred whole.
fn in_parts(own: Transfer, buffer: *mut c_void, size: usize, count: usize, stream: *mut FILE) -> usize {
    let Some(total) = size.checked_mul(count).filter(|total| *total > 0 && needs_help(buffer)) else {
        // SAFETY: the caller's promise.
        return unsafe { own(buffer, size, count, stream) };
    };
    let mut done = 0;
    while done < total {
        let Some(held) = hold(buffer.wrapping_byte_add(done), total - done) else {
            calls::fault();
            break;
        };
        let part = held.bytes;
        // SAFETY: a part of the caller's buffer.
        let moved = unsafe { own(buffer.wrapping_byte_add(done), 1, part, stream) };
        release(held);
        done += moved;
        if moved < part {
            break;
        }
    }
    done / size
}

macro_rules! wrap {
    ($($(#[doc = $doc:literal])* fn $name:ident = $own:ident $symbol:literal;)*) => {$(
        $(#[doc = $doc])*
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(buffer: *mut c_void, size: usize, count: usize, stream: *mut FILE) -> usize {
            // SAFETY: of this type in libc.
            match unsafe { $own.get::<Transfer>() } {
                Some(own) => in_parts(own, buffer, size, count, stream),
                None => 0,
            }
        }
        static $own: Own = Own::new($symbol);
    )*
        /// Finds the functions of this file.
        pub fn look_up_all() {
            $($own.look_up();)*
        }
    };
}

wrap! {
    /// fread(3).
    fn fread = FREAD c"fread";
    /// fwrite(3).
    fn fwrite = FWRITE c"fwrite";
    /// fread(3) without the stream's lock.
    fn fread_unlocked = FREAD_UNLOCKED c"fread_unlocked";
    /// fwrite(3) without the stream's lock.
    fn fwrite_unlocked = FWRITE_UNLOCKED c"fwrite_unlocked";
}

/// What a checked build's call does whose buffer is too small: libc reports it and aborts.
#[cold]
fn overflow() -> ! {
    unsafe extern "C" {
        fn __chk_fail() -> !;
    }
    // SAFETY: does not return.
    unsafe { __chk_fail() }
}

/// A checked build's call knows how large the buffer is.
fn check(size: usize, room: usize) {
    if size > room {
        overflow();
    }
}

/// read(2) of a checked build.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __read_chk(fd: c_int, buffer: *mut c_void, size: usize, room: usize) -> ssize_t {
    check(size, room);
    // SAFETY: the caller's promise.
    unsafe { calls::read(fd, buffer, size) }
}

/// pread(2) of a checked build.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __pread_chk(fd: c_int, buffer: *mut c_void, size: usize, offset: off_t, room: usize) -> ssize_t {
    check(size, room);
    // SAFETY: the caller's promise.
    unsafe { calls::pread(fd, buffer, size, offset) }
}

/// pread(2) of a checked build, under its other name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __pread64_chk(fd: c_int, buffer: *mut c_void, size: usize, offset: off_t, room: usize) -> ssize_t {
    check(size, room);
    // SAFETY: the caller's promise.
    unsafe { calls::pread(fd, buffer, size, offset) }
}

/// recv(2) of a checked build.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recv_chk(fd: c_int, buffer: *mut c_void, size: usize, room: usize, flags: c_int) -> ssize_t {
    check(size, room);
    // SAFETY: the caller's promise.
    unsafe { calls::recv(fd, buffer, size, flags) }
}

/// recvfrom(2) of a checked build.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    size: usize,
    room: usize,
    flags: c_int,
    from: *mut sockaddr,
    length: *mut socklen_t,
) -> ssize_t {
    check(size, room);
    // SAFETY: the caller's promise.
    unsafe { calls::recvfrom(fd, buffer, size, flags, from, length) }
}

/// fread(3) of a checked build.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __fread_chk(buffer: *mut c_void, room: usize, size: usize, count: usize, stream: *mut FILE) -> usize {
    check(size.saturating_mul(count), room);
    // SAFETY: the caller's promise.
    unsafe { fread(buffer, size, count, stream) }
}

/// fread_unlocked(3) of a checked build.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __fread_unlocked_chk(
    buffer: *mut c_void,
    room: usize,
    size: usize,
    count: usize,
    stream: *mut FILE,
) -> usize {
    check(size.saturating_mul(count), room);
    // SAFETY: the caller's promise.
    unsafe { fread_unlocked(buffer, size, count, stream) }
}
