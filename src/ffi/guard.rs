//! The border: what every `extern "C"` function of qmem passes through. Catches panics, keeps the thread's last error,
//! dispatches refused allocations, and checks what C hands over. Called by every file of `ffi`; decides nothing else.

use super::errors;
use super::quotas::qmem_resource_kind_t;
use super::types::*;
use crate::error::{Class, Error, Status};
use crate::fail;
use crate::monitor::counters::BLOCKS;
use crate::monitor::{histogram, level};
use crate::system::dispatch::{self, Operation};
use core::ffi::c_void;
use core::fmt::{Display, Write};
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::Relaxed;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Makes `error` the thread's last failure and gives its status as C sees it.
#[cold]
pub(super) fn remember(error: &Error) -> memory_status_t {
    dispatch::remember(error);
    error.status.into()
}

#[cold]
fn panicked(payload: &(dyn core::any::Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    fail!(Internal, "a fault inside qmem was stopped at the border: {text}; please report it")
}

/// Runs a call whose answer is a status.
pub(super) fn status(call: impl FnOnce() -> Result<(), Error>) -> memory_status_t {
    match run(call) {
        Ok(()) => memory_status_t::MEMORY_STATUS_OK,
        Err(error) => remember(&error),
    }
}

/// Runs a call whose answer is a value; `otherwise` is the answer to a failure.
#[inline]
pub(super) fn value<T>(otherwise: T, call: impl FnOnce() -> Result<T, Error>) -> T {
    match run(call) {
        Ok(value) => value,
        Err(error) => {
            remember(&error);
            otherwise
        }
    }
}

/// Runs a call that gives memory: NULL on failure. A failure is dispatched to the error handler first, whose retry may give what
/// the call then answers.
#[inline]
pub(super) fn memory(name: &str, call: impl Fn() -> Result<*mut u8, Error>) -> *mut c_void {
    memory_or(name, Class::of, call)
}

/// [`memory`], whose failure is dispatched as the class that `class` says, if any.
#[inline]
pub(super) fn memory_or(
    name: &str,
    class: fn(Status) -> Option<Class>,
    call: impl Fn() -> Result<*mut u8, Error>,
) -> *mut c_void {
    // One call in 64 is measured, where the level asks for it.
    let sampled = level::detailed() && BLOCKS.allocations.load(Relaxed).is_multiple_of(64);
    match if sampled { measured(&call) } else { run(&call) } {
        Ok(pointer) => pointer.cast(),
        Err(error) => refused(name, class(error.status), &error, &|| run(&call).map(|block| block as usize)),
    }
}

#[cold]
fn measured<T>(call: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let running = histogram::ALLOCATIONS.start();
    let result = run(call);
    if let Some(running) = running {
        running.stop();
    }
    result
}

#[cold]
fn refused(name: &str, class: Option<Class>, error: &Error, run: &dyn Fn() -> Result<usize, Error>) -> *mut c_void {
    let operation = Operation { name, allocates: true, run };
    let result = match class {
        Some(class) => dispatch::failed(class, error, false, Some(operation)),
        None => Err(error.clone()),
    };
    match result {
        Ok(block) => block as *mut c_void,
        Err(error) => {
            remember(&error);
            core::ptr::null_mut()
        }
    }
}

/// Runs a call whose answer is a status, and whose failure is dispatched as the class that `class` says, if any.
pub(super) fn operation(
    name: &str,
    class: impl Fn(Status) -> Option<Class>,
    call: impl Fn() -> Result<(), Error>,
) -> memory_status_t {
    let Err(error) = run(&call) else { return memory_status_t::MEMORY_STATUS_OK };
    let again = || run(&call).map(|()| 0);
    let operation = Operation { name, allocates: false, run: &again };
    let result = match class(error.status) {
        Some(class) => dispatch::failed(class, &error, false, Some(operation)),
        None => Err(error),
    };
    match result {
        Ok(_) => memory_status_t::MEMORY_STATUS_OK,
        Err(error) => remember(&error),
    }
}

#[inline]
fn run<T>(call: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    errors::prepare();
    // What a panic leaves behind is only read through locks and atomics, which stay consistent.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result,
        Err(payload) => {
            let error = panicked(&*payload);
            core::mem::forget(payload); // its destructor might panic again; once is rare enough to leak a message
            Err(error)
        }
    }
}

impl From<Status> for memory_status_t {
    fn from(status: Status) -> Self {
        use memory_status_t::*;
        match status {
            Status::Ok => MEMORY_STATUS_OK,
            Status::InvalidArgument => MEMORY_STATUS_INVALID_ARGUMENT,
            Status::OutOfMemory => MEMORY_STATUS_OUT_OF_MEMORY,
            Status::NotInitialized => MEMORY_STATUS_NOT_INITIALIZED,
            Status::AlreadyInitialized => MEMORY_STATUS_ALREADY_INITIALIZED,
            Status::Busy => MEMORY_STATUS_BUSY,
            Status::Timeout => MEMORY_STATUS_TIMEOUT,
            Status::Unsupported => MEMORY_STATUS_UNSUPPORTED,
            Status::NotFound => MEMORY_STATUS_NOT_FOUND,
            Status::Limit => MEMORY_STATUS_LIMIT,
            Status::Aborted => MEMORY_STATUS_ABORTED,
            Status::Io => MEMORY_STATUS_IO,
            Status::Corrupt => MEMORY_STATUS_CORRUPT,
            Status::Device => MEMORY_STATUS_DEVICE,
            Status::Internal => MEMORY_STATUS_INTERNAL,
        }
    }
}

/// The struct or array that C points to.
///
/// # Safety
/// `pointer` is NULL, misaligned, or points to a live `T` that nobody writes during the call.
pub(super) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Error> {
    if pointer.is_null() {
        return Err(fail!(InvalidArgument, "{name} is NULL"));
    }
    if !pointer.is_aligned() {
        return Err(fail!(InvalidArgument, "{name} = {pointer:p} is not aligned to {} bytes", align_of::<T>()));
    }
    // SAFETY: not NULL and aligned; the rest is the caller's promise. Fields that may hold any bytes are MaybeUninit.
    Ok(unsafe { &*pointer })
}

/// Writes an answer to where C wants it.
///
/// # Safety
/// `pointer` is NULL, misaligned, or points to room for a `T`.
pub(super) unsafe fn answer<T>(pointer: *mut T, name: &str, value: T) -> Result<(), Error> {
    // SAFETY: the caller's promise; MaybeUninit, since the room may hold anything so far.
    unsafe { reference(pointer.cast::<MaybeUninit<T>>(), name)? };
    // SAFETY: checked not NULL and aligned just now.
    unsafe { pointer.write(value) };
    Ok(())
}

/// A bool from C.
pub(super) fn flag(raw: MaybeUninit<bool>, name: &str) -> Result<bool, Error> {
    // SAFETY: same size, and u8 takes any byte; C passed an initialised byte.
    match unsafe { core::mem::transmute::<MaybeUninit<bool>, u8>(raw) } {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(fail!(InvalidArgument, "{name} holds the byte {other}, which is neither false (0) nor true (1)")),
    }
}

/// An enum that C fills in: its enumerators are 0, 1, 2 … without gaps.
pub(super) trait Enumerators: Copy + 'static {
    /// All, in order.
    const ALL: &'static [Self];
    /// The enum's and the last enumerator's name.
    const NAMES: (&'static str, &'static str, &'static str);
}

macro_rules! enumerators {
    ($($name:ident: $($e:ident),+;)*) => {$(
        impl Enumerators for $name {
            const ALL: &'static [Self] = &[$($name::$e),+];
            const NAMES: (&'static str, &'static str, &'static str) = {
                let all = [$(stringify!($e)),+];
                (stringify!($name), all[0], all[all.len() - 1])
            };
        }
        const _: () = assert!({ let mut n = 0; $(assert!($name::$e as i32 == n); n += 1;)+ n > 0 });
    )*};
}

enumerators! {
    memory_error_t: MEMORY_ERROR_NONE, MEMORY_ERROR_ALLOCATION, MEMORY_ERROR_CACHE, MEMORY_ERROR_RESOURCES, MEMORY_ERROR_CORRUPTION,
        MEMORY_ERROR_LEAK, MEMORY_ERROR_IO, MEMORY_ERROR_DEVICE;
    allocation_type_t: ALLOC_CLASSICAL, ALLOC_QUANTUM, ALLOC_HYBRID, ALLOC_GPU, ALLOC_CUSTOM;
    memory_strategy_t: STRATEGY_ADAPTIVE, STRATEGY_LATENCY, STRATEGY_THROUGHPUT, STRATEGY_COMPACT;
    cache_optimization_type_t: OPT_CLASSICAL, OPT_QUANTUM, OPT_GPU, OPT_DISTRIBUTED, OPT_CUSTOM;
    cache_strategy_t: CACHE_ADAPTIVE, CACHE_LRU, CACHE_LFU, CACHE_FIFO, CACHE_S3FIFO, CACHE_SIEVE, CACHE_WTINYLFU, CACHE_LIRS;
    management_type_t: MANAGE_CLASSICAL, MANAGE_QUANTUM, MANAGE_GPU, MANAGE_NETWORK, MANAGE_CUSTOM;
    tuning_type_t: TUNE_PERFORMANCE, TUNE_QUANTUM, TUNE_MEMORY, TUNE_CACHE, TUNE_RESOURCE, TUNE_CUSTOM;
    optimization_level_t: OPT_NONE, OPT_BASIC, OPT_ADVANCED, OPT_AGGRESSIVE;
    adaptation_type_t: ADAPT_CLASSICAL, ADAPT_QUANTUM, ADAPT_CUSTOM;
    aggregation_method_t: ENSEMBLE_WEIGHTED, ENSEMBLE_MAJORITY, ENSEMBLE_BEST;
    diversity_measure_t: DIVERSITY_NONE, DIVERSITY_DISAGREEMENT, DIVERSITY_QUANTUM;
    monitoring_level_t: MONITOR_NONE, MONITOR_BASIC, MONITOR_DETAILED;
    qmem_resource_kind_t: QMEM_RESOURCE_MEMORY, QMEM_RESOURCE_CACHE, QMEM_RESOURCE_GPU, QMEM_RESOURCE_NETWORK, QMEM_RESOURCE_CUSTOM;
    qmem_element_t: QMEM_ELEMENT_BYTES, QMEM_ELEMENT_C64, QMEM_ELEMENT_C128, QMEM_ELEMENT_F32, QMEM_ELEMENT_F64;
    fallback_strategy_t: FALLBACK_NONE, FALLBACK_CLASSICAL, FALLBACK_SWAP;
}

/// The number that C passed for an enumerator.
pub(super) fn number<E>(raw: MaybeUninit<E>) -> i32 {
    const { assert!(size_of::<E>() == size_of::<i32>()) };
    // SAFETY: a repr(C) enum has the size of an int (asserted), and an i32 takes any bytes; C passed initialised ones.
    unsafe { core::mem::transmute_copy::<MaybeUninit<E>, i32>(&raw) }
}

/// An enumerator from C.
pub(super) fn enumerator<E: Enumerators>(raw: MaybeUninit<E>, name: &str) -> Result<E, Error> {
    let number = number(raw);
    let found = usize::try_from(number).ok().and_then(|n| E::ALL.get(n));
    let (of, first, last) = E::NAMES;
    found.copied().ok_or_else(|| {
        let most = E::ALL.len() - 1;
        fail!(InvalidArgument, "{name} = {number} is no {of}: 0 ({first}) to {most} ({last}) are")
    })
}

/// `reserved` must be zero, so that it can mean something later.
pub(super) fn zero(reserved: &[u64], name: &str) -> Result<(), Error> {
    match reserved.iter().position(|word| *word != 0) {
        None => Ok(()),
        Some(at) => Err(fail!(InvalidArgument, "{name}[{at}] = {} must be zero", reserved[at])),
    }
}

/// A number within bounds that are spelled out in `range`; NaN is in none.
pub(super) fn within<T: PartialOrd + Display + Copy>(value: T, ok: bool, name: &str, range: &str) -> Result<T, Error> {
    if ok { Ok(value) } else { Err(fail!(InvalidArgument, "{name} = {value} is outside {range}")) }
}

/// A fraction in [0, 1).
pub(super) fn fraction(value: f64, name: &str) -> Result<f64, Error> {
    within(value, (0.0..1.0).contains(&value), name, "[0, 1)")
}

/// What a function answers whose subsystem this version does not have. Its arguments were found good.
#[cold]
pub(super) fn absent(function: &str) -> Error {
    fail!(Unsupported, "{function} is not in this version of qmem ({})", env!("CARGO_PKG_VERSION"))
}

/// What stop_* and cleanup_* of such a subsystem answer: it was never started.
#[cold]
pub(super) fn never_started(function: &str, subsystem: &str) -> Error {
    fail!(NotInitialized, "{function}: {subsystem} was never initialised")
}

/// Copies `text` with a terminating NUL into a C buffer of `capacity` bytes; what does not fit is cut. The full length.
///
/// # Safety
/// `buffer` is NULL or has room for `capacity` bytes.
pub(super) unsafe fn copy_text(text: &str, buffer: *mut core::ffi::c_char, capacity: usize) -> usize {
    if !buffer.is_null() && capacity > 0 {
        let take = text.floor_char_boundary(capacity - 1);
        // SAFETY: take < capacity, and the caller has room for `capacity` bytes; a Rust string does not overlap it.
        unsafe {
            core::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), take);
            buffer.add(take).write(0);
        }
    }
    text.len()
}

/// `text` cut to a zero-padded C array.
pub(super) fn text_array<const N: usize>(arguments: core::fmt::Arguments<'_>) -> [core::ffi::c_char; N] {
    let mut text = crate::ds::Text::<N>::new();
    let _ = text.write_fmt(arguments); // a Text takes what fits and never fails
    let mut array = [0; N];
    // SAFETY: the array has N bytes.
    unsafe { copy_text(text.as_str(), array.as_mut_ptr(), N) };
    array
}
