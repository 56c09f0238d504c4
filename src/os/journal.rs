//! A log file that is appended to record by record and turned over at a size: `PATH`, and `PATH.1` for what was before. Every
//! call here is async-signal-safe and nothing is kept between records: no lock, no allocation, no open descriptor. Several threads and
//! processes may write to one path. Called by the error log.

use super::vm::errno;
use core::ffi::CStr;

const PATH: usize = 4096;

/// Appends `record` in one write. A file that has `bound` bytes or more afterwards becomes `PATH.1`, in place of an older one.
/// Err: the error number.
pub fn append(path: &CStr, record: &[u8], bound: u64) -> Result<(), i32> {
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: a NUL-terminated path; the mode is passed because O_CREAT may create.
    let file = unsafe { libc::open(path.as_ptr(), flags, 0o644) };
    if file < 0 {
        return Err(errno());
    }
    // SAFETY: the record is readable for its length.
    let written = unsafe { libc::write(file, record.as_ptr().cast(), record.len()) };
    let result = match usize::try_from(written) {
        Ok(n) if n == record.len() => Ok(()),
        Ok(_) => Err(libc::ENOSPC),
        Err(_) => Err(errno()),
    };
    turn_over(file, path, bound);
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    result
}

/// Of all who see the file full at the same time one renames it: whoever has its lock and finds it still under its name.
fn turn_over(file: i32, path: &CStr, bound: u64) {
    let Some(ours) = status(|to| {
        // SAFETY: an open descriptor, and room for its status.
        unsafe { libc::fstat(file, to) }
    }) else {
        return;
    };
    let regular = ours.st_mode & libc::S_IFMT == libc::S_IFREG;
    // SAFETY: an open descriptor; the lock goes with it.
    if !regular || (ours.st_size as u64) < bound || unsafe { libc::flock(file, libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return;
    }
    let named = status(|to| {
        // SAFETY: a NUL-terminated path, and room for the status.
        unsafe { libc::stat(path.as_ptr(), to) }
    });
    let same = named.is_some_and(|named| (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino));
    let mut older = [0u8; PATH];
    let bytes = path.to_bytes();
    if let Some(to) = older.get_mut(..bytes.len() + 3).filter(|_| same) {
        to[..bytes.len()].copy_from_slice(bytes);
        to[bytes.len()..].copy_from_slice(b".1\0");
        // SAFETY: two NUL-terminated paths. If it fails the file grows on: a log is better than none.
        unsafe { libc::rename(path.as_ptr(), older.as_ptr().cast()) };
    }
}

fn status(ask: impl FnOnce(*mut libc::stat) -> i32) -> Option<libc::stat> {
    // SAFETY: stat is plain data.
    let mut found: libc::stat = unsafe { core::mem::zeroed() };
    (ask(&raw mut found) == 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn turns_over_and_loses_nothing_among_threads() {
        let path = std::env::temp_dir().join(format!("qmem-journal-{}", std::process::id()));
        let name = CString::new(path.to_str().unwrap()).unwrap();
        let older = path.with_extension("1");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let name = &name;
                scope.spawn(move || {
                    for n in 0..100 {
                        append(name, format!("{thread} {n:>60}\n").as_bytes(), 16 << 10).unwrap();
                    }
                });
            }
        });
        let old = std::fs::read_to_string(&older).unwrap();
        let new = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(old.len() >= 16 << 10 && new.len() < 16 << 10);
        // 400 records of 63 bytes are 24.6 KiB: exactly one turn, and every line is whole.
        let lines: Vec<&str> = old.lines().chain(new.lines()).collect();
        assert!(lines.iter().all(|line| line.len() == 62) && lines.len() == 400, "{} lines", lines.len());
        std::fs::remove_file(older).unwrap();
        let _ = std::fs::remove_file(path);
        assert_eq!(append(c"/no/such/directory/log", b"x", 1), Err(libc::ENOENT));
    }
}
