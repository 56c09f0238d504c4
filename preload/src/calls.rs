//! System calls that are handed paged memory: read, write and their kin. Where the kernel does not wait for a missing page (no
//! privileges, or no userfaultfd) they would give EFAULT; here the buffer is held resident, a part at a time. Called by the program
//! and its libraries; with buffers that are not paged, or where the kernel does wait, it is a look at the address and libc's call.
//!
//! A part is 8 MiB at most. A file's larger transfer is several calls, one after the other; a socket's or pipe's ends after the first,
//! as short transfers there are common and datagrams never as large. What libc transfers inside (fread, fwrite) is wrapped as well.
//! Calls that nobody wraps may give EFAULT.

use crate::blocks::set_errno;
use crate::next;
use core::ffi::{CStr, c_int, c_uint, c_void};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use libc::{off_t, sockaddr, socklen_t, ssize_t};
use qmem::os::vm;
use qmem::paged::{self, Hold};

/// libc's own function behind a wrapper.
pub struct Own {
    /// In place: read when the program starts, and strings elsewhere would have their pages in every process.
    name: [u8; 16],
    found: AtomicPtr<c_void>,
}

impl Own {
    /// Not looked up yet.
    pub const fn new(name: &'static CStr) -> Self {
        let (bytes, mut own) = (name.to_bytes_with_nul(), [0; 16]);
        own.split_at_mut(bytes.len()).0.copy_from_slice(bytes);
        Self { name: own, found: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// Looks it up. At the start: later the dynamic linker's lock may be held by a thread that waits for the one that asks.
    pub fn look_up(&self) -> *mut c_void {
        let mut found = self.found.load(Relaxed);
        if found.is_null() {
            let name = CStr::from_bytes_until_nul(&self.name).ok();
            found = name.and_then(next::symbol).unwrap_or(core::ptr::null_mut());
            self.found.store(found, Relaxed);
        }
        found
    }

    /// The function; None if libc has none of that name.
    ///
    /// # Safety
    /// `F` is the type of that function.
    pub unsafe fn get<F: Copy>(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let found = self.look_up();
        // SAFETY: not null: a function, of this type by the caller's promise.
        (!found.is_null()).then(|| unsafe { core::mem::transmute_copy::<*mut c_void, F>(&found) })
    }
}

/// Finds libc's functions.
pub fn prepare() {
    look_up_all();
    crate::vectors::look_up_all();
    crate::streams::look_up_all();
}

/// Must this buffer be held for the kernel?
pub fn needs_help(buffer: *const c_void) -> bool {
    paged::needs_hold(buffer.cast())
}

/// Nothing could be held.
pub fn fault() -> ssize_t {
    set_errno(libc::EFAULT);
    -1
}

/// libc has no such function.
pub fn missing() -> ssize_t {
    set_errno(libc::ENOSYS);
    -1
}

/// Holds the beginning of a buffer. None: it can be held no more (lost, or the budget is all pinned).
pub fn hold(buffer: *const c_void, size: usize) -> Option<Hold> {
    paged::hold(buffer.cast(), size).ok()
}

/// Is it a file on a disk, whose transfers are expected to be whole?
pub fn is_file(fd: c_int) -> bool {
    // SAFETY: fstat writes to a valid struct.
    unsafe {
        let mut found: libc::stat = core::mem::zeroed();
        libc::fstat(fd, &raw mut found) == 0 && matches!(found.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK)
    }
}

/// A transfer in parts: `call(done, part)` transfers up to `part` bytes from offset `done`. Ends with the first short part, or with
/// the first one of all. What has been transferred counts, even if the part after it fails.
fn in_parts(buffer: *const c_void, size: usize, all: bool, mut call: impl FnMut(usize, usize) -> ssize_t) -> ssize_t {
    let mut done = 0;
    while done < size {
        let Some(held) = hold(buffer.wrapping_byte_add(done), size - done) else {
            return if done > 0 { done as ssize_t } else { fault() };
        };
        let part = held.bytes;
        let moved = call(done, part);
        release(held);
        if moved < 0 {
            return if done > 0 { done as ssize_t } else { moved };
        }
        done += moved as usize;
        if !all || (moved as usize) < part {
            break;
        }
    }
    done as ssize_t
}

/// Lets go of what was held; errno stays as it is.
pub fn release<T>(held: T) {
    let errno = vm::errno();
    drop(held);
    set_errno(errno);
}

macro_rules! wrap {
    ($($(#[doc = $doc:literal])* fn $name:ident = $own:ident $symbol:literal ($($before:ident: $before_type:ty),*; $buffer:ident: $buffer_type:ty, $size:ident; $($after:ident: $after_type:ty),*) $offset:ident, all $all:expr;)*) => {$(
        $(#[doc = $doc])*
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($before: $before_type,)* $buffer: $buffer_type, $size: usize, $($after: $after_type),*) -> ssize_t {
            type Function = unsafe extern "C" fn($($before_type,)* $buffer_type, usize, $($after_type),*) -> ssize_t;
            // SAFETY: of this type in libc.
            let Some(own) = (unsafe { $own.get::<Function>() }) else { return missing() };
            if $size == 0 || !needs_help($buffer.cast()) {
                // SAFETY: the caller's promise.
                return unsafe { own($($before,)* $buffer, $size, $($after),*) };
            }
            in_parts($buffer.cast(), $size, $all, |done, part| {
                $offset!(done, $($after),*);
                // SAFETY: a part of the caller's buffer.
                unsafe { own($($before,)* $buffer.wrapping_byte_add(done), part, $($after),*) }
            })
        }
        static $own: Own = Own::new($symbol);
    )*
        /// Finds the functions of this file.
        pub fn look_up_all() {
            $($own.look_up();)*
        }
    };
}

/// The offset in a file goes on with the parts.
macro_rules! moving {
    ($done:ident, $offset:ident) => {
        let $offset = $offset + $done as off_t;
    };
}
/// There is none.
macro_rules! still {
    ($done:ident, $($after:ident),*) => {};
}

wrap! {
    /// read(2).
    fn read = READ c"read" (fd: c_int; buffer: *mut c_void, size; ) still, all is_file(fd);
    /// write(2).
    fn write = WRITE c"write" (fd: c_int; buffer: *const c_void, size; ) still, all is_file(fd);
    /// pread(2).
    fn pread = PREAD c"pread" (fd: c_int; buffer: *mut c_void, size; offset: off_t) moving, all is_file(fd);
    /// pread(2) under its other name.
    fn pread64 = PREAD64 c"pread64" (fd: c_int; buffer: *mut c_void, size; offset: off_t) moving, all is_file(fd);
    /// pwrite(2).
    fn pwrite = PWRITE c"pwrite" (fd: c_int; buffer: *const c_void, size; offset: off_t) moving, all is_file(fd);
    /// pwrite(2) under its other name.
    fn pwrite64 = PWRITE64 c"pwrite64" (fd: c_int; buffer: *const c_void, size; offset: off_t) moving, all is_file(fd);
    /// send(2).
    fn send = SEND c"send" (fd: c_int; buffer: *const c_void, size; flags: c_int) still, all false;
    /// recv(2).
    fn recv = RECV c"recv" (fd: c_int; buffer: *mut c_void, size; flags: c_int) still, all false;
    /// sendto(2).
    fn sendto = SENDTO c"sendto" (fd: c_int; buffer: *const c_void, size; flags: c_int, to: *const sockaddr, length: socklen_t) still, all false;
    /// recvfrom(2).
    fn recvfrom = RECVFROM c"recvfrom" (fd: c_int; buffer: *mut c_void, size; flags: c_int, from: *mut sockaddr, length: *mut socklen_t) still, all false;
    /// getrandom(2).
    fn getrandom = GETRANDOM c"getrandom" (; buffer: *mut c_void, size; flags: c_uint) still, all true;
}
