//! How much memory this process may use: the machine's, or less where a cgroup says so (v1 and v2, with all ancestors).
//! Called at initialisation, by estimates and reports; reads small files into fixed buffers, allocates nothing.

use crate::ds::Text;
use core::ffi::CStr;
use core::fmt::Write;

/// Bytes this process may use at most: MemTotal, or the smallest limit of its cgroup and that cgroup's ancestors. usize::MAX
/// if the machine does not say.
pub fn allowed() -> usize {
    machine().min(cgroup())
}

/// Physical memory.
pub fn machine() -> usize {
    let mut buffer = [0u8; 512];
    let total = read(c"/proc/meminfo", &mut buffer).and_then(mem_total);
    total.unwrap_or(usize::MAX)
}

/// The smallest memory limit of the cgroups around this process; usize::MAX if there is none.
pub fn cgroup() -> usize {
    let mut buffer = [0u8; 4096];
    let Some(text) = read(c"/proc/self/cgroup", &mut buffer) else { return usize::MAX };
    let mut least = usize::MAX;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if controllers.split(',').any(|c| c == "memory") {
            least = least.min(up_the_tree("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
        } else if controllers.is_empty() {
            least = least.min(up_the_tree("/sys/fs/cgroup", path, "memory.max"));
            least = least.min(up_the_tree("/sys/fs/cgroup/unified", path, "memory.max"));
        }
    }
    least
}

/// How many mappings a process may have (vm.max_map_count); the kernel's default if it does not say.
pub fn mappings() -> usize {
    let mut buffer = [0u8; 64];
    read(c"/proc/sys/vm/max_map_count", &mut buffer).and_then(|text| text.trim().parse().ok()).unwrap_or(65530)
}

/// The smallest limit in `file` from `path` up to the root. A path that is not visible here (another namespace) counts for
/// nothing, its visible ancestors do.
fn up_the_tree(root: &str, path: &str, file: &str) -> usize {
    let mut least = usize::MAX;
    let mut path = path.trim_end_matches('/');
    loop {
        let mut name = Text::<1024>::new();
        let mut buffer = [0u8; 64];
        let whole = write!(name, "{root}{path}/{file}\0").is_ok() && name.as_str().ends_with('\0'); // cut: too long to exist
        let name = CStr::from_bytes_until_nul(name.as_str().as_bytes()).ok().filter(|_| whole);
        if let Some(limit) = name.and_then(|name| read(name, &mut buffer)).and_then(limit) {
            least = least.min(limit);
        }
        match path.rfind('/') {
            Some(cut) => path = path.get(..cut).unwrap_or(""),
            None => return least,
        }
    }
}

/// "max" and numbers beyond any machine are no limit.
fn limit(text: &str) -> Option<usize> {
    text.trim().parse::<usize>().ok().filter(|bytes| *bytes < 1 << 60)
}

fn mem_total(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// The command that this process runs, its arguments separated by spaces, cut at the buffer's size.
pub fn command(buffer: &mut [u8]) {
    let len = read_bytes(c"/proc/self/cmdline", buffer).map_or(0, <[u8]>::len);
    for byte in buffer.iter_mut().take(len) {
        if *byte == 0 {
            *byte = b' ';
        }
    }
}

/// What a small file holds, cut at the buffer's size. None if it cannot be read or is no text.
fn read<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a str> {
    core::str::from_utf8(read_bytes(path, buffer)?).ok()
}

fn read_bytes<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: the path is NUL-terminated.
    let file = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0) };
    if file < 0 {
        return None;
    }
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is ours and as long as we say.
        let n = unsafe { libc::syscall(libc::SYS_read, file, rest.as_mut_ptr(), rest.len()) };
        match usize::try_from(n) {
            Ok(0) | Err(_) => break,
            Ok(n) => len += n,
        }
    }
    // SAFETY: opened above, used by nobody else.
    unsafe { libc::syscall(libc::SYS_close, file) };
    buffer.get(..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        assert_eq!(mem_total("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 << 10));
        assert_eq!(mem_total("MemTotal: many"), None);
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("1048576\n"), Some(1 << 20));
    }

    #[test]
    fn limits_of_ancestors_count() {
        let root = std::env::temp_dir().join(format!("qmem-limits-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("memory.max"), "max\n").unwrap();
        std::fs::write(root.join("a/memory.max"), "4096\n").unwrap();
        std::fs::write(root.join("a/b/memory.max"), "8192\n").unwrap();
        let at = root.to_str().unwrap();
        assert_eq!(up_the_tree(at, "/a/b", "memory.max"), 4096);
        assert_eq!(up_the_tree(at, "/a/b/not/visible", "memory.max"), 4096);
        assert_eq!(up_the_tree(at, "/", "memory.max"), usize::MAX);
        assert_eq!(up_the_tree(at, &"/x".repeat(600), "memory.max"), usize::MAX);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn this_machine_has_memory() {
        assert!((64 << 20..usize::MAX).contains(&machine()));
        assert!(allowed() <= machine());
    }
}
