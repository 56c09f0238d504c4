//! Files that have a name and are meant to stay: opening, direct I/O in whole pages, syncing, locking, replacing atomically. Called
//! by the pager's checkpoints only.

use super::vm::errno;
use crate::error::Error;
use crate::fail;
use core::ffi::CStr;

/// An open file; other processes that want to write it are kept out.
pub struct Document {
    fd: i32,
}

fn shown(path: &CStr) -> &str {
    path.to_str().unwrap_or("(not UTF-8)")
}

impl Document {
    /// Opens an existing file; None if there is none of this name. `writing`: also to be written, by nobody else.
    pub fn open(path: &CStr, writing: bool) -> Result<Option<Self>, Error> {
        let access = if writing { libc::O_RDWR } else { libc::O_RDONLY };
        let fd = open(path, access);
        match (fd, errno()) {
            (fd, _) if fd >= 0 => Self { fd }.locked(path, writing).map(Some),
            (_, libc::ENOENT) => Ok(None),
            (_, error) => Err(fail!(Io, "{} cannot be opened (errno {error})", shown(path))),
        }
    }

    /// Creates a file, or empties the one that is there.
    pub fn create(path: &CStr) -> Result<Self, Error> {
        let fd = open(path, libc::O_RDWR | libc::O_CREAT);
        if fd < 0 {
            return Err(fail!(Io, "{} cannot be created (errno {})", shown(path), errno()));
        }
        let file = Self { fd }.locked(path, true)?;
        // SAFETY: our own descriptor.
        if unsafe { libc::ftruncate(file.fd, 0) } != 0 {
            return Err(fail!(Io, "{} cannot be emptied (errno {})", shown(path), errno()));
        }
        Ok(file)
    }

    fn locked(self, path: &CStr, writing: bool) -> Result<Self, Error> {
        let kind = if writing { libc::LOCK_EX } else { libc::LOCK_SH };
        // SAFETY: our own descriptor.
        if unsafe { libc::flock(self.fd, kind | libc::LOCK_NB) } != 0 && errno() == libc::EWOULDBLOCK {
            return Err(fail!(Busy, "{} is being {} by another process", shown(path), if writing { "used" } else { "written" }));
        }
        Ok(self)
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        // SAFETY: plain data filled in by the kernel, and our own descriptor.
        unsafe {
            let mut status: libc::stat = core::mem::zeroed();
            if libc::fstat(self.fd, &raw mut status) == 0 { status.st_size as u64 } else { 0 }
        }
    }

    /// Reads up to `into.len()` bytes; how many there were. `into` begins at a page and is whole pages, and so is `offset`.
    pub fn read(&self, into: &mut [u8], offset: u64) -> Result<usize, i32> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            // SAFETY: the rest of the caller's buffer.
            let n = unsafe { libc::pread(self.fd, rest.as_mut_ptr().cast(), rest.len(), (offset + done as u64) as i64) };
            match n {
                0 => break,
                n if n > 0 => done += n as usize,
                _ if errno() == libc::EINTR => {}
                _ => return Err(errno()),
            }
            if !done.is_multiple_of(super::vm::PAGE) {
                break; // the end: direct I/O stops inside a page only there
            }
        }
        Ok(done)
    }

    /// Writes all of `from`, whole pages from a page's start to a page's start.
    pub fn write(&self, from: &[u8], offset: u64) -> Result<(), i32> {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            // SAFETY: the rest of the caller's bytes.
            let n = unsafe { libc::pwrite(self.fd, rest.as_ptr().cast(), rest.len(), (offset + done as u64) as i64) };
            match n {
                0 => return Err(libc::ENOSPC),
                n if n > 0 => done += n as usize,
                _ if errno() == libc::EINTR => {}
                _ => return Err(errno()),
            }
        }
        Ok(())
    }

    /// Returns when everything written is on the disk.
    pub fn sync(&self) -> Result<(), i32> {
        // SAFETY: our own descriptor.
        if unsafe { libc::fdatasync(self.fd) } == 0 { Ok(()) } else { Err(errno()) }
    }

    /// Cuts off what is behind `len`, as far as the file system likes.
    pub fn cut(&self, len: u64) {
        // SAFETY: our own descriptor.
        unsafe { libc::ftruncate(self.fd, len as i64) };
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours; closing it ends the lock.
        unsafe { libc::close(self.fd) };
    }
}

/// With direct I/O where the file system has it: page cache would be charged to the program's cgroup.
fn open(path: &CStr, access: i32) -> i32 {
    let flags = access | libc::O_CLOEXEC;
    // SAFETY: a plain open; the mode is passed because O_CREAT may create.
    unsafe {
        let fd = libc::open(path.as_ptr(), flags | libc::O_DIRECT, 0o600);
        if fd >= 0 || errno() != libc::EINVAL { fd } else { libc::open(path.as_ptr(), flags, 0o600) }
    }
}

/// Gives `from` the name `to` in one step, for good: whoever opens `to` sees the one or the other, also after a power failure.
pub fn rename(from: &CStr, to: &CStr, directory: &CStr) -> Result<(), Error> {
    // SAFETY: NUL-terminated paths; the directory's descriptor is closed here.
    unsafe {
        if libc::rename(from.as_ptr(), to.as_ptr()) != 0 {
            return Err(fail!(Io, "{} cannot be renamed to {} (errno {})", shown(from), shown(to), errno()));
        }
        let fd = libc::open(directory.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::fsync(fd);
            libc::close(fd);
        }
    }
    Ok(())
}

/// Removes a file that nobody needs.
pub fn remove(path: &CStr) {
    // SAFETY: a NUL-terminated path.
    unsafe { libc::unlink(path.as_ptr()) };
}
