//! The swap file's system calls: an unnamed file on a real disk, direct I/O, free space. Called by the pager's swap only.

use super::vm::errno;
use crate::error::Error;
use crate::fail;
use core::ffi::CStr;

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// An open file without a name: gone when the process is, however it ends.
pub struct File {
    fd: i32,
    /// Opened with O_DIRECT: no page cache.
    pub direct: bool,
}

/// Part of a gathered write.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Address, a multiple of the page.
    pub start: usize,
    /// Bytes, a multiple of the page.
    pub len: usize,
}

impl File {
    /// Creates an unnamed file in `dir`, refusing memory-backed file systems.
    pub fn unnamed(dir: &CStr) -> Result<Self, Error> {
        let shown = dir.to_str().unwrap_or("(not UTF-8)");
        // SAFETY: statfs is plain data, and the path is NUL-terminated.
        let (kind, failed) = unsafe {
            let mut fs: libc::statfs = core::mem::zeroed();
            let r = libc::statfs(dir.as_ptr(), &raw mut fs);
            (fs.f_type, r != 0)
        };
        if failed {
            return Err(fail!(
                Io,
                "swap directory {shown} cannot be used (errno {}): give QMEM_SWAP_DIR a directory on a disk",
                errno()
            ));
        }
        if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
            return Err(fail!(
                Io,
                "swap directory {shown} is a tmpfs, so swapping there would use the memory it should save: give QMEM_SWAP_DIR a directory on a disk"
            ));
        }
        for (flags, direct) in [(libc::O_DIRECT, true), (0, false)] {
            // SAFETY: a plain open; the mode is passed because O_TMPFILE creates.
            let fd = unsafe { libc::open(dir.as_ptr(), libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC | flags, 0o600) };
            if fd >= 0 {
                return Ok(Self { fd, direct });
            }
            if let Some(fd) = create_and_unlink(dir, flags) {
                return Ok(Self { fd, direct });
            }
        }
        Err(fail!(
            Io,
            "no swap file can be made in {shown} (errno {}): give QMEM_SWAP_DIR a directory that this user may write to",
            errno()
        ))
    }

    /// Bytes that unprivileged writers may still add to this file's file system.
    pub fn free_bytes(&self) -> usize {
        // SAFETY: statvfs is plain data, and the descriptor is ours.
        unsafe {
            let mut fs: libc::statvfs = core::mem::zeroed();
            if libc::fstatvfs(self.fd, &raw mut fs) != 0 {
                return 0;
            }
            (fs.f_bavail as usize).saturating_mul(fs.f_frsize as usize)
        }
    }

    /// Reads exactly `len` bytes to `to`, or says which error number stopped it (EIO at the end of file).
    ///
    /// # Safety
    /// `to` is writable for `len` bytes.
    pub unsafe fn read(&self, to: usize, len: usize, offset: u64) -> Result<(), i32> {
        let mut done = 0;
        while done < len {
            // SAFETY: the rest of the caller's buffer.
            let n = unsafe { libc::pread(self.fd, (to + done) as *mut _, len - done, (offset + done as u64) as i64) };
            match n {
                0 => return Err(libc::EIO),
                n if n > 0 => done += n as usize,
                _ if errno() == libc::EINTR => {}
                _ => return Err(errno()),
            }
        }
        Ok(())
    }

    /// Writes the pieces one after the other at `offset`, completely or with the error number that stopped it.
    ///
    /// # Safety
    /// Each piece is readable.
    pub unsafe fn write(&self, pieces: &[Piece], offset: u64) -> Result<(), i32> {
        const BATCH: usize = 16;
        let mut at = offset;
        for group in pieces.chunks(BATCH) {
            let mut vectors = [libc::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; BATCH];
            let mut total = 0;
            for (vector, piece) in vectors.iter_mut().zip(group) {
                *vector = libc::iovec { iov_base: piece.start as *mut _, iov_len: piece.len };
                total += piece.len;
            }
            // SAFETY: the vectors describe the caller's readable pieces.
            let n = unsafe { libc::pwritev(self.fd, vectors.as_ptr(), group.len() as i32, at as i64) };
            if n != total as isize {
                // SAFETY: as above.
                unsafe { self.write_slowly(group, at, if n > 0 { n as usize } else { 0 }, if n < 0 { errno() } else { 0 })? };
            }
            at += total as u64;
        }
        Ok(())
    }

    /// After a short or failed pwritev: the rest piece by piece, so that a full disk is told by the write that meets it.
    ///
    /// # Safety
    /// As [`Self::write`].
    unsafe fn write_slowly(&self, group: &[Piece], offset: u64, mut skip: usize, error: i32) -> Result<(), i32> {
        if error != 0 && error != libc::EINTR && error != libc::EAGAIN {
            return Err(error);
        }
        let mut at = offset;
        for piece in group {
            let mut done = skip.min(piece.len);
            skip -= done;
            while done < piece.len {
                // SAFETY: the rest of one readable piece.
                let n = unsafe {
                    libc::pwrite(self.fd, (piece.start + done) as *const _, piece.len - done, (at + done as u64) as i64)
                };
                match n {
                    0 => return Err(libc::ENOSPC),
                    n if n > 0 => done += n as usize,
                    _ if errno() == libc::EINTR => {}
                    _ => return Err(errno()),
                }
            }
            at += piece.len as u64;
        }
        Ok(())
    }

    /// Gives the blocks of a range back to the file system; best effort.
    pub fn punch(&self, offset: u64, len: u64) {
        // SAFETY: only the file's own blocks are concerned.
        unsafe { libc::fallocate(self.fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset as i64, len as i64) };
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(self.fd) };
    }
}

/// For file systems without O_TMPFILE: a random name that exists only between two system calls.
fn create_and_unlink(dir: &CStr, flags: i32) -> Option<i32> {
    let mut path = [0u8; 4096];
    let dir = dir.to_bytes();
    let name = b"/qmem-swap-XXXXXX\0";
    path.get_mut(..dir.len())?.copy_from_slice(dir);
    path.get_mut(dir.len()..dir.len() + name.len())?.copy_from_slice(name);
    // SAFETY: `path` is a NUL-terminated template that mkostemp may change.
    unsafe {
        let fd = libc::mkostemp(path.as_mut_ptr().cast(), libc::O_CLOEXEC | flags);
        if fd < 0 {
            return None;
        }
        libc::unlink(path.as_ptr().cast());
        Some(fd)
    }
}
