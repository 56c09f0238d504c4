//! The one table of settings and bounds: name, environment variable, unit, default, limits, meaning. Every tunable number of
//! qmem is here; documentation and range checks are made from it. Floor 0: read by everyone.

use crate::error::Error;
use crate::fail;
use core::ffi::CStr;
use core::sync::atomic::{AtomicUsize, Ordering};

/// How a setting's text is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// A number of bytes; suffixes K, M, G, T (powers of 1024) are understood.
    Bytes,
    /// A plain number.
    Count,
}

/// One numeric setting.
pub struct Setting {
    /// As in `qmem_tuning_get`.
    pub name: &'static str,
    /// The environment variable.
    pub env: &'static CStr,
    /// How its text is read.
    pub unit: Unit,
    /// Used when the variable is absent or 0.
    pub default: usize,
    /// Smallest accepted value.
    pub min: usize,
    /// Largest accepted value.
    pub max: usize,
    /// For a person.
    pub meaning: &'static str,
    value: AtomicUsize,
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])* $id:ident = $name:literal, $env:literal, $unit:ident, default $default:expr, $min:expr => $max:expr;)*) => {
        $($(#[doc = $doc])* pub static $id: Setting = Setting {
            name: $name, env: $env, unit: Unit::$unit, default: $default, min: $min, max: $max,
            meaning: concat!($($doc),*), value: AtomicUsize::new($default),
        };)*
        /// Every numeric setting.
        pub static SETTINGS: &[&Setting] = &[$(&$id),*];
    };
}

settings! {
    /// Bytes resident through qmem (in a preloaded program, through its paged blocks) when the program's config leaves max_memory 0; 0 = what the cgroup or machine allows less the reserve.
    BUDGET = "budget", c"QMEM_BUDGET", Bytes, default 0, 1 << 20 => usize::MAX >> 1;
    /// Bytes left to the rest of the machine when the budget is derived from it; 0 = an eighth, at most 2 GiB.
    RESERVE = "reserve", c"QMEM_RESERVE", Bytes, default 0, 0 => usize::MAX >> 1;
    /// Threads that fill chunks (faults and read-ahead).
    FILL_WORKERS = "fill_workers", c"QMEM_FILL_WORKERS", Count, default 3, 1 => 16;
    /// Threads that evict chunks in the background.
    EVICT_WORKERS = "evict_workers", c"QMEM_EVICT_WORKERS", Count, default 2, 1 => 16;
    /// Chunks read ahead of each detected stream; 0 = by strategy.
    PREFETCH_DEPTH = "prefetch_depth", c"QMEM_PREFETCH_DEPTH", Count, default 0, 0 => 64;
    /// Bytes of free heap pages kept for reuse, or a quarter of what is in use if that is more; the rest goes back to the kernel at once. More are kept while what went back is soon needed again.
    HEAP_CACHE = "heap_cache", c"QMEM_HEAP_CACHE", Bytes, default 40 << 20, 1 << 16 => usize::MAX >> 1;
    /// Bytes in use of a thread's heap from which on its small blocks are put into huge pages, while no budget is set.
    HEAP_HUGE = "heap_huge", c"QMEM_HEAP_HUGE", Bytes, default 64 << 20, 1 => usize::MAX >> 1;
    /// Bytes from which on a new block of the heap is put into huge pages. Of large blocks programs often touch little, of very large ones seldom.
    HEAP_HUGE_LARGE = "heap_huge_large", c"QMEM_HEAP_HUGE_LARGE", Bytes, default 64 << 20, 1 => usize::MAX >> 1;
    /// Milliseconds after which free heap pages that were not needed go back to the kernel.
    HEAP_IDLE = "heap_idle", c"QMEM_HEAP_IDLE", Count, default 300, 1 => 1 << 30;
    /// On a machine of several memory nodes: 1 = blocks lie where their thread runs, and the heap of an ended thread goes to one on the same node; 2 = to any thread; 3 = blocks are spread over all nodes.
    HEAP_NUMA = "heap_numa", c"QMEM_HEAP_NUMA", Count, default 1, 1 => 3;
    /// Budget of a child of fork; 0 = a quarter of its parent's if it can swap, else the same.
    FORK_BUDGET = "fork_budget", c"QMEM_FORK_BUDGET", Bytes, default 0, 32 << 20 => usize::MAX >> 1;
    /// Bytes of swap file at most; 0 = what the disk has.
    SWAP_MAX = "swap_max", c"QMEM_SWAP_MAX", Bytes, default 0, 0 => usize::MAX >> 1;
    /// Bytes from which on the error log is turned over: it becomes LOG.1, in place of an older one.
    LOG_BYTES = "log_bytes", c"QMEM_LOG_BYTES", Bytes, default 1 << 20, 4096 => usize::MAX >> 1;
    /// Milliseconds between two looks of the background rebalancing of resources.
    REBALANCE_MS = "rebalance_ms", c"QMEM_REBALANCE_MS", Count, default 100, 1 => 60_000;
    /// How much is measured, beside what the program asks for: 0 = no more, 1 = counters, 2 = histograms and events too.
    MONITOR = "monitor", c"QMEM_MONITOR", Count, default 0, 0 => 2;
    /// Bytes of a paged buffer's chunk where nothing else is asked for, a power of two, or less where one holds all of a small buffer: 2 MiB suits sweeps, 64 KiB programs that touch a little here and there.
    PAGED_CHUNK = "paged_chunk", c"QMEM_PAGED_CHUNK", Bytes, default 2 << 20, 1 << 16 => 2 << 20;
    /// Bytes from which a preloaded program's blocks are paged, where QMEM_BUDGET is set.
    PRELOAD_THRESHOLD = "preload_threshold", c"QMEM_PRELOAD_THRESHOLD", Bytes, default 16 << 20, 1 << 16 => usize::MAX >> 1;
    /// 1 = a preloaded program's private anonymous mappings from that size are paged too.
    PRELOAD_MMAP = "preload_mmap", c"QMEM_PRELOAD_MMAP", Count, default 0, 0 => 1;
    /// 1 = a preloaded program's cold chunks do not go to a swap file.
    NO_SWAP = "no_swap", c"QMEM_NO_SWAP", Count, default 0, 0 => 1;
    /// 1 = they are not compressed in memory.
    NO_COMPRESSION = "no_compression", c"QMEM_NO_COMPRESSION", Count, default 0, 0 => 1;
    /// 1 = equal ones do not share a stored copy.
    NO_DEDUPLICATION = "no_deduplication", c"QMEM_NO_DEDUPLICATION", Count, default 0, 0 => 1;
}

/// Directory of the swap file. Unset: the first usable of TMPDIR, /var/tmp, /tmp and the working directory.
pub const SWAP_DIR_ENV: &CStr = c"QMEM_SWAP_DIR";
/// The pager's mechanism: auto (or unset), move, remap, signal.
pub const BACKEND_ENV: &CStr = c"QMEM_BACKEND";
/// Infidelity that compression may lose in a preloaded program, above 0 and below 1. Together with [`ELEMENT_ENV`] only.
pub const ERROR_BUDGET_ENV: &CStr = c"QMEM_ERROR_BUDGET";
/// What the large blocks of a preloaded program are arrays of: one of [`ELEMENTS`].
pub const ELEMENT_ENV: &CStr = c"QMEM_ELEMENT";
/// Names of element types, in the order of `qmem_element_t` from 1.
pub const ELEMENTS: [&str; 4] = ["complex64", "complex128", "float32", "float64"];
/// A preloaded program's blocks whose size is a power of two, and at most so many bytes more, may be compressed with loss.
pub const ELEMENT_SLACK: usize = 64 << 10;
/// File that error records are appended to, one JSON object a line. Unset: lines on stderr.
pub const LOG_ENV: &CStr = c"QMEM_LOG";
/// Directory that recovery writes checkpoints to. Unset: it makes none.
pub const CHECKPOINT_DIR_ENV: &CStr = c"QMEM_CHECKPOINT_DIR";
/// Retries of a failed operation where recovery is not configured.
pub const RETRIES: u32 = 3;
/// The most retries that may be asked for.
pub const MAX_RETRIES: u32 = 1000;
/// Milliseconds that the second retry waits; each further one waits twice as long, up to the bound.
pub const BACK_OFF_MS: (u64, u64) = (1, 100);
/// Directory in which each process with paged memory keeps a status page (`monitor/status.rs`). Unset: none is kept.
pub const STATUS_DIR_ENV: &CStr = c"QMEM_STATUS_DIR";
/// Milliseconds between two updates of a status page.
pub const STATUS_INTERVAL: usize = 100;
/// Budget below which paged buffers cannot work: frames for faults, read-ahead and eviction in flight at the same time.
pub const MIN_PAGED_BUDGET: usize = 32 << 20;
/// Swap space kept for chunks that are in a frame and in the swap file at the same time.
pub const IN_FLIGHT: usize = 16 << 20;
/// Budget below which nothing is accepted.
pub const MIN_BUDGET: usize = 1 << 20;
/// Smallest and largest unit of streaming I/O.
pub const CHUNK_BOUNDS: (usize, usize) = (64 << 10, 1 << 30);
/// Most blocks above 1 MiB at a time; the kernel's own bound on mappings (vm.max_map_count) is usually reached first.
pub const HEAP_LARGE_BLOCKS: usize = 1 << 18;
/// Most threads with a heap of their own; further ones share one.
pub const HEAP_THREADS: usize = 1 << 16;
/// Heaps with a window of 16 GiB; those made later have one of 512 MiB and leave it for another when it is full.
pub const HEAP_WIDE: usize = 1 << 10;
/// Bytes of free heap pages that one heap keeps beyond the setting when they are needed again and again.
pub const HEAP_LEARNED: usize = 1 << 30;
/// Heaps that no thread runs and that keep memory for the next one; further ones give all of it back.
pub const HEAP_IDLE_HEAPS: usize = 64;
/// Free slices of 64 KiB whose pages a heap keeps that no thread runs.
pub const HEAP_IDLE_SLICES: usize = 16;
/// Bytes of freed blocks between 32 KiB and 1 MiB that a heap keeps as they are.
pub const HEAP_KEPT_RUNS: usize = 2 << 20;
/// Freed blocks above 1 MiB that a heap keeps mapped, and the bytes of the largest one and of all of them.
pub const HEAP_KEPT_LARGE: usize = 8;
/// See [`HEAP_KEPT_LARGE`].
pub const HEAP_KEPT_LARGE_BYTES: usize = 32 << 20;
/// Pools at a time, and object pools at a time.
pub const POOLS: usize = 1 << 16;
/// Block sizes of a pool.
pub const POOL_SIZES: usize = 1 << 10;
/// Largest block of a pool.
pub const POOL_BLOCK: usize = 1 << 40;
/// Slabs of all pools; one has 64 KiB at least.
pub const POOL_SLABS: usize = 1 << 22;
/// Block sizes of a pool whose config names none.
pub const POOL_SIZES_DEFAULT: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];
/// Blocks per size that a pool has from the start and at most, where its config says 0.
pub const POOL_CAPACITY: (usize, usize) = (1024, 1 << 16);
/// Share of what memory is left that those from the start may take where nobody asked for them.
pub const POOL_SHARE: usize = 8;
/// Objects of an object pool at most where its config says 0, and the most that may be asked for.
pub const POOL_OBJECTS: (usize, usize) = (1 << 16, 1 << 30);
/// Most foreign and custom blocks registered at a time.
pub const REGISTRY_BLOCKS: usize = 1 << 22;
/// Resources registered at a time: where nothing is asked for, and the most.
pub const RESOURCES: (usize, usize) = (1024, 1 << 20);
/// Smallest and largest chunk of a compressor.
pub const COMPRESS_CHUNK: (usize, usize) = (4096, 1 << 30);
/// A compressor's chunk if its config says 0.
pub const COMPRESS_CHUNK_DEFAULT: usize = 64 << 20;
/// Most threads of a compressor.
pub const COMPRESS_THREADS: usize = 256;
/// Most threads that visit the chunks of a state.
pub const STATE_THREADS: usize = 64;
/// Most codecs that programs register.
pub const COMPRESS_CODECS: usize = 64;
/// Smallest and largest block of a deduplicating store.
pub const DEDUP_BLOCK: (usize, usize) = (64, 16 << 20);
/// A deduplicating store's block if its config says 0.
pub const DEDUP_BLOCK_DEFAULT: usize = 4096;
/// HYBRID requests of this size and more are paged.
pub const HYBRID_THRESHOLD: usize = 1 << 20;

impl Setting {
    /// The value in force.
    pub fn get(&self) -> usize {
        self.value.load(Ordering::Relaxed)
    }

    /// Changes it; out of range is an error that names the bounds.
    pub fn set(&self, value: usize) -> Result<(), Error> {
        if value != self.default && !(self.min..=self.max).contains(&value) {
            return Err(fail!(InvalidArgument, "{} = {value} is outside {} to {}", self.name, self.min, self.max));
        }
        self.value.store(value, Ordering::Relaxed);
        Ok(())
    }
}

/// The value of an environment variable, valid until the program changes its environment.
pub fn environment(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: getenv returns null or a NUL-terminated string inside the environment; like every reader of it we rely on
    // the program not calling setenv at the same time.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: as above, and not null.
    Some(unsafe { CStr::from_ptr(value) }).filter(|v| !v.is_empty())
}

/// Is there a variable that may be a setting? Where there is none, as in most programs, their names stay untouched.
fn is_set() -> bool {
    unsafe extern "C" {
        static environ: *const *const u8;
    }
    // SAFETY: as for getenv; null, or pointers to strings up to a null one.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            if CStr::from_ptr((*next).cast()).to_bytes().starts_with(b"QMEM_") {
                return true;
            }
            next = next.add(1);
        }
    }
    false
}

/// Reads every setting from the environment. The first bad one is the error; the others keep their values.
pub fn load() -> Result<(), Error> {
    if !is_set() {
        return Ok(());
    }
    for setting in SETTINGS {
        let Some(text) = environment(setting.env) else { continue };
        let name = setting.env.to_str().unwrap_or("?");
        let Some(value) = text.to_str().ok().and_then(|t| parse(t, setting.unit)) else {
            let kind = if setting.unit == Unit::Bytes { "a number of bytes such as 256M" } else { "a number" };
            return Err(fail!(InvalidArgument, "{name}={} is not {kind}", text.to_str().unwrap_or("(not UTF-8)")));
        };
        setting.set(if value == 0 { setting.default } else { value })?;
    }
    Ok(())
}

/// What a preloaded program permits to be lost: an infidelity, and the number of an element type. None if it permits nothing.
pub fn permitted_loss() -> Result<Option<(f64, usize)>, Error> {
    let text = |name| environment(name).map(|value| value.to_str().unwrap_or("(not UTF-8)"));
    let (budget, element) = match (text(ERROR_BUDGET_ENV), text(ELEMENT_ENV)) {
        (None, None) => return Ok(None),
        (Some(budget), Some(element)) => (budget, element),
        (Some(_), None) => {
            return Err(fail!(
                InvalidArgument,
                "QMEM_ERROR_BUDGET needs QMEM_ELEMENT, which says what the large blocks are arrays of"
            ));
        }
        (None, Some(_)) => {
            return Err(fail!(InvalidArgument, "QMEM_ELEMENT needs QMEM_ERROR_BUDGET, which says how much may be lost"));
        }
    };
    let infidelity = parse_fraction(budget)
        .ok_or_else(|| fail!(InvalidArgument, "QMEM_ERROR_BUDGET={budget} is no infidelity above 0 and below 1, such as 1e-4"))?;
    let number = ELEMENTS.iter().position(|name| *name == element);
    let number = number.ok_or_else(|| fail!(InvalidArgument, "QMEM_ELEMENT={element} is none of {}", Elements))?;
    Ok(Some((infidelity, number)))
}

/// A number above 0 and below 1.
pub fn parse_fraction(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|x| *x > 0.0 && *x < 1.0)
}

/// [`ELEMENTS`] in one line.
pub struct Elements;

impl core::fmt::Display for Elements {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        ELEMENTS.iter().enumerate().try_for_each(|(i, name)| write!(f, "{}{name}", if i > 0 { ", " } else { "" }))
    }
}

/// "256", "256M", "1.5G" (bytes only), "0x100". None if it is anything else or overflows.
pub fn parse(text: &str, unit: Unit) -> Option<usize> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x") {
        return usize::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+'));
    }
    let text = if unit == Unit::Bytes { text.strip_suffix("iB").or(text.strip_suffix('B')).unwrap_or(text) } else { text };
    let shift = match (unit, text.chars().last()?) {
        (Unit::Bytes, 'k' | 'K') => 10,
        (Unit::Bytes, 'm' | 'M') => 20,
        (Unit::Bytes, 'g' | 'G') => 30,
        (Unit::Bytes, 't' | 'T') => 40,
        _ => 0,
    };
    let number = if shift > 0 { text.get(..text.len() - 1)? } else { text };
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None; // Rust's own parsing would also take signs, exponents and "inf"
    }
    if let Ok(whole) = number.parse::<usize>() {
        return whole.checked_mul(1usize << shift);
    }
    let fraction = number.parse::<f64>().ok().filter(|_| shift > 0)?;
    let bytes = fraction * (1u64 << shift) as f64;
    (bytes < (usize::MAX >> 1) as f64).then_some(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, want) in
            [("0", 0), ("256M", 256 << 20), ("1.5G", 3 << 29), ("64KiB", 64 << 10), ("0x10", 16), (" 7 ", 7), ("2TB", 2 << 40)]
        {
            assert_eq!(parse(text, Unit::Bytes), Some(want), "{text}");
        }
        for text in ["", "M", "-1", "1.5", "12Q", "99999999999999999999", "nanG", "1e400G", "1e3K", "+5", "-0K", "0x+1", "1.2.3G"]
        {
            assert_eq!(parse(text, Unit::Bytes), None, "{text}");
        }
        assert_eq!(parse("4K", Unit::Count), None);
    }

    #[test]
    fn fractions_are_read() {
        assert_eq!((parse_fraction("1e-4"), parse_fraction(" 0.5 ")), (Some(1e-4), Some(0.5)));
        for text in ["", "0", "1", "-1e-4", "nan", "inf", "1e-4x", "2"] {
            assert_eq!(parse_fraction(text), None, "{text}");
        }
        assert_eq!(format!("{Elements}"), "complex64, complex128, float32, float64");
    }

    #[test]
    fn defaults_are_in_range_and_described() {
        for s in SETTINGS {
            assert!(s.default == 0 || (s.min..=s.max).contains(&s.default), "{}", s.name);
            assert!(s.meaning.len() > 20 && s.env.to_str().unwrap().starts_with("QMEM_"));
        }
    }
}
