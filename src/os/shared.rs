//! A page that this process shares with whoever watches it: a file of its own in a given directory, mapped. Called by
//! `system::status`. Raw system calls: it may run inside malloc.

use super::vm::{PAGE, errno};
use crate::ds::Text;
use crate::error::Error;
use crate::fail;
use core::ffi::CStr;
use core::fmt::Write;
use core::ptr::NonNull;

/// Names tried for one process: it may exec several programs in turn.
const NAMES: usize = 1000;

/// Makes the file PID-N (the first N that is free) in `dir`, one zero page long, and maps it. The mapping is never undone; a
/// child of fork inherits it.
pub fn page(dir: &CStr) -> Result<NonNull<u8>, Error> {
    let file = create(dir)?;
    // SAFETY: our own descriptor; a shared mapping at an address of the kernel's choice touches no existing memory.
    let base = unsafe {
        let base = if libc::syscall(libc::SYS_ftruncate, file, PAGE) == 0 {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            libc::syscall(libc::SYS_mmap, 0usize, PAGE, rights, libc::MAP_SHARED, file, 0usize)
        } else {
            -1
        };
        libc::syscall(libc::SYS_close, file);
        base
    };
    NonNull::new(base as *mut u8).filter(|_| base != -1).ok_or_else(|| refused(dir))
}

fn create(dir: &CStr) -> Result<libc::c_long, Error> {
    for n in 0..NAMES {
        let mut name = Text::<1024>::new();
        let _ = write!(name, "{}/{}-{n}\0", dir.to_str().unwrap_or(""), std::process::id());
        let Ok(path) = CStr::from_bytes_until_nul(name.as_str().as_bytes()) else { break }; // cut: too long to exist
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: a NUL-terminated path.
        let file = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) };
        if file >= 0 {
            return Ok(file);
        }
        if errno() != libc::EEXIST {
            break;
        }
    }
    Err(refused(dir))
}

#[cold]
fn refused(dir: &CStr) -> Error {
    fail!(
        Io,
        "no status page can be made in QMEM_STATUS_DIR={} (errno {}): name a directory that this user may write to",
        dir.to_str().unwrap_or("(not UTF-8)"),
        errno()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn each_page_has_a_file() {
        let dir = std::env::temp_dir().join(format!("qmem-shared-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let name = CString::new(dir.to_str().unwrap()).unwrap();
        let (first, second) = (page(&name).unwrap(), page(&name).unwrap());
        // SAFETY: two mappings of a page each.
        unsafe { (first.as_ptr().write(7), second.as_ptr().write(9)) };
        let byte = |n| std::fs::read(dir.join(format!("{}-{n}", std::process::id()))).unwrap()[0];
        assert_eq!((byte(0), byte(1)), (7, 9));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(page(&name).is_err());
    }
}
