//! Chapter "monitoring" of <qmem.h>: numbers over time, events, exporters. Called by C only.

use super::guard::{answer, copy_text, reference, status, value, within};
use super::memory::non_null;
use super::types::*;
use crate::error::Error;
use crate::fail;
use crate::monitor::events::{EVENTS, Event};
use crate::system::sampler::{self, Wanted};
use crate::system::{export, serve, whole};
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;
use libc::FILE;

/// What the last `initialize_memory_system` did with each subsystem, a line each: "NAME: started", "NAME: adopted as it runs", "NAME: skipped:
/// WHY" or "NAME: not started: not asked for". Writes at most `cap` bytes with the closing NUL to `buf` (NULL: none) and returns the full
/// length; 0 before the first.
///
/// # Safety
/// `buf` is NULL or has room for `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_system_summary(buf: *mut c_char, cap: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { copy_text(whole::summary().as_str(), buf, cap) }
}

/// One look at the process.
#[repr(C)]
pub struct qmem_metrics_t {
    /// Resident bytes of the budget, or, where none is set, of what this machine allows.
    pub memory_usage_percent: f64,
    /// Processor time of the process since the look before, of one processor: 200 for two busy ones.
    pub cpu_percent: f64,
    /// Share of the page faults since the look before whose chunk had been read ahead, 0 to 1.
    pub cache_hit_rate: f64,
    /// Milliseconds of reads and writes of the swap file since the look before, all threads together.
    pub io_wait_ms: f64,
    /// As `qmem_get_stats` would have given.
    pub memory: memory_stats_t,
    /// Nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// A running monitor: a handle that can be compared, but not looked into.
pub enum qmem_monitor {}
/// As above.
pub type qmem_monitor_t = qmem_monitor;

/// Starts a thread that looks at the process every `sampling_interval_ms` (1 to 3600000), at what `metrics` names: any of "memory", "cpu" and "io",
/// separated by commas (NULL or "": all); numbers that are not named stay 0. While a monitor runs, counters are kept as at MONITOR_BASIC.
/// NULL on failure; 64 can run.
///
/// # Safety
/// `metrics` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_monitor_start(sampling_interval_ms: u32, metrics: *const c_char) -> *mut qmem_monitor_t {
    value(core::ptr::null_mut(), || {
        let range = "1 to 3600000 ms";
        within(sampling_interval_ms, (1..=3_600_000).contains(&sampling_interval_ms), "sampling_interval_ms", range)?;
        // SAFETY: the caller's promise.
        let names = unsafe { text(metrics, "metrics")? };
        let mut wanted = Wanted::default();
        if names.trim().is_empty() {
            wanted = Wanted { memory: true, cpu: true, io: true };
        } else {
            for name in names.split(',') {
                match name.trim() {
                    "memory" => wanted.memory = true,
                    "cpu" => wanted.cpu = true,
                    "io" => wanted.io = true,
                    other => {
                        return Err(fail!(InvalidArgument, "metrics names \"{other}\": memory, cpu and io can be looked at"));
                    }
                }
            }
        }
        sampler::start(sampling_interval_ms, wanted).map(|number| core::ptr::without_provenance_mut(number * HANDLE))
    })
}

/// Handles are no addresses of anything, and look like none.
const HANDLE: usize = 16;

fn monitor_number(monitor: *const qmem_monitor_t) -> Result<usize, Error> {
    non_null(monitor.cast(), "monitor")?;
    let number = monitor.addr();
    if number.is_multiple_of(HANDLE) { Ok(number / HANDLE) } else { Ok(0) }
}

/// The monitor's last look. MEMORY_STATUS_NOT_FOUND for one that was stopped.
///
/// # Safety
/// `metrics` is NULL or points to room for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_monitor_get(monitor: *const qmem_monitor_t, metrics: *mut qmem_metrics_t) -> memory_status_t {
    status(|| {
        let look = sampler::last(monitor_number(monitor)?)?;
        let found = qmem_metrics_t {
            memory_usage_percent: look.memory_percent,
            cpu_percent: look.cpu_percent,
            cache_hit_rate: look.hit_rate,
            io_wait_ms: look.io_ms,
            memory: look.numbers.into(),
            timestamp_ns: look.time,
            reserved: [0; 4],
        };
        // SAFETY: the caller's promise.
        unsafe { answer(metrics, "metrics", found) }
    })
}

/// Ends a monitor; NULL is fine, and so is one that was stopped already.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_monitor_stop(monitor: *mut qmem_monitor_t) {
    if !monitor.is_null() {
        value((), || sampler::stop(monitor_number(monitor)?));
    }
}

/// The string that C passes; "" for NULL.
///
/// # Safety
/// `pointer` is NULL or a NUL-terminated string that nobody writes during the call.
unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Error> {
    if pointer.is_null() {
        return Ok("");
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| fail!(InvalidArgument, "{name} is not UTF-8"))
}

/// Writes what is known to `out`: as "openmetrics" text or as "json". What is in it grows with the monitoring level: memory and failures;
/// from MONITOR_BASIC on the pager's counters, tags and resources; at MONITOR_DETAILED latencies, numbers per buffer and (JSON) the latest events.
/// MEMORY_STATUS_IO if it cannot be written.
///
/// # Safety
/// `out` is NULL or an open stream; `format` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_write_metrics(out: *mut FILE, format: *const c_char) -> memory_status_t {
    status(|| {
        non_null(out.cast(), "out")?;
        // SAFETY: the caller's promise.
        let metrics = match unsafe { text(format, "format")? } {
            "openmetrics" => export::openmetrics(),
            "json" => export::json(),
            other => return Err(fail!(InvalidArgument, "format = \"{other}\": openmetrics and json are known")),
        };
        // SAFETY: the text is readable for its length, and the stream is the caller's.
        let written = unsafe { libc::fwrite(metrics.as_ptr().cast(), 1, metrics.len(), out) };
        if written == metrics.len() {
            return Ok(());
        }
        Err(fail!(Io, "{written} of {} bytes of metrics could be written", metrics.len()))
    })
}

/// Serves the same over HTTP from a thread of its own, for this machine alone: on "unix:PATH" (an old socket there is replaced) or on a
/// loopback address with a port, such as "127.0.0.1:9464". GET /metrics is OpenMetrics, GET /json JSON. One server at a time:
/// MEMORY_STATUS_ALREADY_INITIALIZED. MEMORY_STATUS_INVALID_ARGUMENT for an address that others can reach, MEMORY_STATUS_IO if it is taken.
///
/// # Safety
/// `address` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_serve_metrics(address: *const c_char) -> memory_status_t {
    status(|| {
        non_null(address.cast(), "address")?;
        // SAFETY: the caller's promise.
        serve::start(unsafe { text(address, "address")? })
    })
}

/// Ends `qmem_serve_metrics`, and removes its Unix socket. MEMORY_STATUS_NOT_INITIALIZED if nothing is served.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_stop_metrics() -> memory_status_t {
    status(serve::stop)
}

/// What kind of thing happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum qmem_event_kind_t {
    /// A failure was dispatched; subject: its memory_error_t.
    QMEM_EVENT_FAILURE = 0,
    /// A failed operation was done after all; subject: its memory_error_t, amount: retries.
    QMEM_EVENT_REPAIR,
    /// A fallback strategy saved an operation; subject: its memory_error_t.
    QMEM_EVENT_FALLBACK,
    /// Swapping was enabled; amount: bytes of swap space.
    QMEM_EVENT_SWAPPING,
    /// A paged buffer began; subject: its address, amount: its bytes.
    QMEM_EVENT_BUFFER_BEGIN,
    /// A paged buffer ended; as above.
    QMEM_EVENT_BUFFER_END,
    /// A chunk was given up; subject: its address, amount: its bytes.
    QMEM_EVENT_CHUNK_LOST,
    /// A checkpoint was made.
    QMEM_EVENT_CHECKPOINT,
    /// Quotas of resources were moved on request.
    QMEM_EVENT_REBALANCE,
    /// The monitoring level changed; subject: the new one.
    QMEM_EVENT_LEVEL,
}

/// One event.
#[repr(C)]
pub struct qmem_event_t {
    /// Its number, from 0.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// What happened.
    pub kind: qmem_event_kind_t,
    /// The kernel's number of the thread.
    pub thread: u32,
    /// What it is about.
    pub subject: u64,
    /// How much.
    pub amount: u64,
}

/// Events from number `from` on, oldest first, at most `max`; they are noted at MONITOR_DETAILED, and the last 1024 are kept. Stores how many
/// were written in `count`, and in `next` (may be NULL) the number to go on from.
///
/// # Safety
/// `events` has room for `max`, `count` and `next` for a number each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_read_events(
    from: u64,
    events: *mut qmem_event_t,
    max: usize,
    count: *mut usize,
    next: *mut u64,
) -> memory_status_t {
    status(|| {
        if max > 0 {
            // SAFETY: the caller's promise; nothing is read.
            unsafe { reference(events.cast::<MaybeUninit<qmem_event_t>>(), "events")? };
        }
        let mut written = 0;
        let end = EVENTS.since(from, &mut |event| {
            let Some(kind) = EVENT_KINDS.get(event.kind as usize).copied().filter(|_| written < max) else { return false };
            let Event { number, time, thread, subject, amount, .. } = event;
            // SAFETY: written < max, and the caller's promise.
            unsafe { events.add(written).write(qmem_event_t { number, time_ns: time, kind, thread, subject, amount }) };
            written += 1;
            true
        });
        if !next.is_null() {
            // SAFETY: the caller's promise.
            unsafe { answer(next, "next", end)? };
        }
        // SAFETY: the caller's promise.
        unsafe { answer(count, "count", written) }
    })
}

const EVENT_KINDS: [qmem_event_kind_t; 10] = {
    use qmem_event_kind_t::*;
    [
        QMEM_EVENT_FAILURE,
        QMEM_EVENT_REPAIR,
        QMEM_EVENT_FALLBACK,
        QMEM_EVENT_SWAPPING,
        QMEM_EVENT_BUFFER_BEGIN,
        QMEM_EVENT_BUFFER_END,
        QMEM_EVENT_CHUNK_LOST,
        QMEM_EVENT_CHECKPOINT,
        QMEM_EVENT_REBALANCE,
        QMEM_EVENT_LEVEL,
    ]
};
