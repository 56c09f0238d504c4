//! Address space with nothing behind it: a shared mapping of an empty file. Whoever may not touch it gets SIGSEGV, whoever may gets
//! SIGBUS, a system call gets EFAULT, a debugger an error: never zeros. Neighbours merge, however often a part is mapped anew.
//! Called by the pager's backends only.

use super::vm::{self, errno};
use crate::error::Error;
use crate::fail;

/// What an access to the mapping raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raises {
    /// SIGSEGV: no access is allowed.
    Segv,
    /// SIGBUS: all accesses are allowed, and there is nothing.
    Bus,
}

/// The empty file.
pub struct Hollow {
    fd: i32,
}

impl Hollow {
    /// Makes it.
    pub fn open() -> Result<Self, Error> {
        // SAFETY: creates a descriptor or fails.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_create, c"qmem-absent".as_ptr(), libc::MFD_CLOEXEC) } as i32;
        if fd < 0 {
            return Err(fail!(Unsupported, "memfd_create fails (errno {}): check ulimit -n and the seccomp profile", errno()));
        }
        Ok(Self { fd })
    }

    /// Puts it in the place of whatever is mapped in the range, in one step. The error number on failure, with the range as it was.
    ///
    /// # Safety
    /// The range is page-aligned and the caller's, and its contents are not missed.
    pub unsafe fn cover(&self, start: usize, len: usize, raises: Raises) -> Result<(), i32> {
        let access = if raises == Raises::Segv { libc::PROT_NONE } else { libc::PROT_READ | libc::PROT_WRITE };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // The offset is the address, so that parts mapped one by one are one mapping in the end.
        // SAFETY: the caller's promise.
        let at = unsafe { libc::syscall(libc::SYS_mmap, start, len, access, flags, self.fd, start) };
        if at == -1 {
            return Err(errno());
        }
        // A child behind the C library's back has no part of it.
        // SAFETY: the mapping just made.
        let _ = unsafe { vm::advise(start as *mut u8, len, libc::MADV_DONTFORK) };
        Ok(())
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours; mappings keep the file.
        unsafe { libc::close(self.fd) };
    }
}
