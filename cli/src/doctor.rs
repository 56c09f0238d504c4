//! `qmem doctor`: what this machine offers to paged memory, line by line, and what would improve each. Called by `main`. Changes
//! nothing. Exit status 0 if paged memory works here, 1 if it does not.

use crate::size::bytes;
use qmem::config;
use qmem::os::{file::File, limits};
use qmem::paged::{self, Kind};
use qmem::system::allocation;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// As it should be.
    Good,
    /// Works, but could be better.
    Fair,
    /// Does not work.
    Bad,
}

struct Finding {
    mark: Mark,
    name: &'static str,
    what: String,
    /// What would improve it.
    advice: Option<String>,
}

fn good(name: &'static str, what: impl Into<String>) -> Finding {
    Finding { mark: Mark::Good, name, what: what.into(), advice: None }
}

fn poor(mark: Mark, name: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { mark, name, what: what.into(), advice: Some(advice.into()) }
}

/// Prints everything.
pub fn report() -> ExitCode {
    let findings = [
        kernel(),
        backend(),
        system_calls(),
        huge_pages(),
        memory(),
        cgroup(),
        swap(),
        address_space(),
        mappings(),
        descriptors(),
        locked(),
        numa(),
        gpu(),
    ];
    for finding in &findings {
        let mark = match finding.mark {
            Mark::Good => "ok",
            Mark::Fair => "--",
            Mark::Bad => "NO",
        };
        println!("{mark}  {:<16} {}", finding.name, finding.what);
        if let Some(advice) = &finding.advice {
            println!("    {:<16} better: {advice}", "");
        }
    }
    ExitCode::from(u8::from(findings.iter().any(|finding| finding.mark == Mark::Bad)))
}

/// What a small file says, without the space around it.
fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= (6, 8) {
        return good("kernel", release);
    }
    poor(Mark::Fair, "kernel", release, "Linux 6.8 or newer moves whole huge pages (UFFDIO_MOVE) instead of copying them")
}

fn backend() -> Finding {
    const NAME: &str = "paged memory";
    let info = match paged::backend_info() {
        Ok(info) => info,
        Err(error) => {
            return poor(Mark::Bad, NAME, error.to_string(), "unset QMEM_BACKEND; Linux 5.7 or newer; ulimit -n, ulimit -v");
        }
    };
    let what = match info.kind {
        Kind::Move => "move: userfaultfd with UFFDIO_MOVE",
        Kind::Remap => "remap: userfaultfd, pages moved by mremap",
        Kind::Signal => "signal: SIGSEGV, pages moved by mremap",
    };
    if info.forced {
        return poor(Mark::Fair, NAME, format!("{what}, by QMEM_BACKEND"), "unset QMEM_BACKEND, and the best one is used");
    }
    let reasons: Vec<String> = info.refused.iter().flatten().map(|(kind, why)| format!("for {}, {why}", kind.name())).collect();
    if reasons.is_empty() { good(NAME, what) } else { poor(Mark::Fair, NAME, what, reasons.join("; ")) }
}

/// Does a system call find a missing page, or EFAULT?
fn system_calls() -> Finding {
    const NAME: &str = "system calls";
    match paged::backend_info() {
        Err(_) => poor(Mark::Bad, NAME, "no paged memory", "see paged memory"),
        Ok(info) if info.kernel_faults => good(NAME, "any may be handed paged memory"),
        Ok(info) => poor(
            Mark::Fair,
            NAME,
            "may give EFAULT on paged memory that is not resident: qmem_pin what is handed to them",
            if info.kind == Kind::Signal {
                "see paged memory"
            } else {
                "read and write access to /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
            },
        ),
    }
}

fn huge_pages() -> Finding {
    const NAME: &str = "huge pages";
    let Some(mode) = read("/sys/kernel/mm/transparent_hugepage/enabled") else {
        return poor(Mark::Fair, NAME, "this kernel has none", "a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
    };
    if mode.contains("[never]") {
        let advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: a fault moves 512 small pages otherwise";
        return poor(Mark::Fair, NAME, "switched off", advice);
    }
    let defrag = read("/sys/kernel/mm/transparent_hugepage/defrag").unwrap_or_default();
    if defrag.contains("[never]") {
        let advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/defrag";
        return poor(Mark::Fair, NAME, "only while free ones are left, as the kernel does not make room for them", advice);
    }
    good(NAME, format!("{} (2 MiB)", if mode.contains("[always]") { "always" } else { "where advised" }))
}

fn memory() -> Finding {
    let machine = limits::machine() as u64;
    let available = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().trim_end_matches(" kB");
        line.parse::<u64>().ok()
    });
    let free = available.map_or(String::new(), |kib| format!(", {} available now", bytes(kib << 10)));
    let budget = bytes(allocation::budget_for(0) as u64);
    good("memory", format!("{}{free}; the budget is {budget} where none is given", bytes(machine)))
}

fn cgroup() -> Finding {
    let text = read("/proc/self/cgroup").unwrap_or_default();
    let version = if text.lines().any(|line| line.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == "memory"))) {
        "version 1"
    } else if text.lines().any(|line| line.starts_with("0::")) {
        "version 2"
    } else {
        return good("cgroup", "none");
    };
    let limit = limits::cgroup();
    if limit == usize::MAX {
        return good("cgroup", format!("{version}, no memory limit"));
    }
    good(
        "cgroup",
        format!("{version}, memory limit {}: leave room beside the budget for the program itself", bytes(limit as u64)),
    )
}

/// The directories that are tried, in this order: as the library does.
fn swap_candidates() -> Vec<PathBuf> {
    if let Some(dir) = config::environment(config::SWAP_DIR_ENV) {
        return vec![path(dir)];
    }
    let temporary = config::environment(c"TMPDIR").map(path);
    temporary.into_iter().chain(["/var/tmp", "/tmp", "."].map(PathBuf::from)).collect()
}

fn path(text: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(text.to_bytes()))
}

fn swap() -> Finding {
    const NAME: &str = "swap directory";
    let advice = "QMEM_SWAP_DIR or --swap-dir with a directory on a local disk";
    let mut why = String::from("none can be used");
    for dir in swap_candidates() {
        let Ok(name) = CString::new(dir.as_os_str().as_encoded_bytes()) else { continue };
        match File::unnamed(&name) {
            Ok(file) => {
                let what = format!("{}, {} free", dir.display(), bytes(file.free_bytes() as u64));
                if file.direct {
                    return good(NAME, format!("{what}, direct I/O"));
                }
                let text = format!("{what}, through the page cache, which counts in a cgroup's limit");
                return poor(Mark::Fair, NAME, text, "a file system with direct I/O (ext4, xfs, btrfs)");
            }
            Err(error) => why = error.to_string(),
        }
    }
    poor(Mark::Fair, NAME, why, advice)
}

/// A resource limit; None if it is infinite.
fn limit(which: libc::__rlimit_resource_t) -> Option<u64> {
    // SAFETY: a valid rlimit to write to.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(which, &raw mut limit);
        (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
    }
}

fn address_space() -> Finding {
    let overcommit = number("/proc/sys/vm/overcommit_memory").unwrap_or(0);
    if let Some(most) = limit(libc::RLIMIT_AS) {
        let text = format!("{} (ulimit -v): states, frames and tables must fit", bytes(most));
        return poor(Mark::Fair, "address space", text, "ulimit -v unlimited");
    }
    if overcommit == 2 {
        let text = "vm.overcommit_memory is 2: the kernel counts reserved addresses as used memory";
        return poor(Mark::Fair, "address space", text, "sysctl vm.overcommit_memory=0");
    }
    good("address space", "unlimited")
}

fn mappings() -> Finding {
    let most = number("/proc/sys/vm/max_map_count").unwrap_or(0);
    let mut text = format!("{most} (vm.max_map_count)");
    if let Ok(info) = paged::backend_info()
        && info.max_frames < usize::MAX
    {
        text += &format!(", enough for budgets up to {}", bytes(info.max_frames.saturating_mul(qmem::os::vm::HUGE) as u64));
    }
    if most >= 65530 { good("mappings", text) } else { poor(Mark::Fair, "mappings", text, "sysctl vm.max_map_count=262144") }
}

fn descriptors() -> Finding {
    match limit(libc::RLIMIT_NOFILE) {
        Some(n) if n < 64 => poor(Mark::Fair, "open files", format!("{n} (ulimit -n); the pager needs four"), "ulimit -n 1024"),
        Some(n) => good("open files", format!("{n} (ulimit -n)")),
        None => good("open files", "unlimited"),
    }
}

fn locked() -> Finding {
    match limit(libc::RLIMIT_MEMLOCK) {
        Some(n) => good("locked memory", format!("{} (ulimit -l); pinning paged memory needs none of it", bytes(n))),
        None => good("locked memory", "unlimited"),
    }
}

fn numa() -> Finding {
    let online = read("/sys/devices/system/node/online").unwrap_or_else(|| String::from("0"));
    if online == "0" {
        good("NUMA", "one node")
    } else {
        good("NUMA", format!("nodes {online}; frames lie where they are first used"))
    }
}

fn gpu() -> Finding {
    let cards = (0..64).filter(|n| Path::new(&format!("/dev/nvidia{n}")).exists()).count();
    // SAFETY: only asks whether the driver's library can be loaded; its initialisers are NVIDIA's.
    let driver = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    match (cards, driver.is_null()) {
        (0, true) => good("GPU", "none"),
        (0, false) => good("GPU", "the CUDA driver's library, but no device"),
        (n, true) => {
            poor(Mark::Fair, "GPU", format!("{n} NVIDIA devices without libcuda.so.1"), "install the driver's user-space library")
        }
        (n, false) => good("GPU", format!("{n} NVIDIA devices")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_poor_has_advice() {
        for finding in
            [kernel(), backend(), system_calls(), huge_pages(), memory(), cgroup(), swap(), address_space(), mappings()]
        {
            assert_eq!(finding.mark == Mark::Good, finding.advice.is_none(), "{}", finding.name);
            assert!(!finding.what.is_empty(), "{}", finding.name);
        }
    }
}
