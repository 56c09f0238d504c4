//! Chapter "errors and recovery" of <quantum_memory.h>: the handler that a program may define itself, what it may call, and the
//! life cycle of recovery. Called by C, and by `guard` before anything can fail.

use super::guard::{enumerator, flag, reference, remember, status, value, within, zero};
use super::types::*;
use crate::config;
use crate::error::Class;
use crate::system::dispatch::{self, Detour};
use crate::system::recovery::{self, Settings};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

/// Has failures find the handler. Cheap; called on the way into every function.
#[inline]
pub(super) fn prepare() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Relaxed) {
        // SAFETY: a C enum is an int, and the symbol takes one: the trampoline below or the program's own function.
        dispatch::install(unsafe {
            core::mem::transmute::<unsafe extern "C" fn(memory_error_t), unsafe extern "C" fn(i32)>(handle_memory_error)
        });
        crate::system::memory::prepare();
        DONE.store(true, Ordering::Relaxed);
    }
}

/// Has the preload call this handler: that of a program that is linked statically, where the dynamic linker would not find it.
pub fn adopt_handler(handler: unsafe extern "C" fn(memory_error_t)) {
    prepare();
    // SAFETY: a C enum is an int.
    dispatch::adopt(unsafe { core::mem::transmute::<unsafe extern "C" fn(memory_error_t), unsafe extern "C" fn(i32)>(handler) });
}

// The program may define these two functions itself. Ours are weak symbols that jump to ours below: in a static link the
// program's strong definition replaces them, and in the shared library calls go through the dynamic symbol, which it overrides.
macro_rules! weak {
    ($name:literal, $default:path, $jump:literal) => {
        core::arch::global_asm!(
            concat!(".pushsection .text.", $name, ",\"ax\",@progbits"),
            concat!(".weak ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            concat!($jump, " {default}"),
            concat!(".size ", $name, ", . - ", $name),
            ".popsection",
            default = sym $default,
        );
    };
}
#[cfg(target_arch = "x86_64")]
weak!("handle_memory_error", default_handle_memory_error, "jmp");
#[cfg(target_arch = "x86_64")]
weak!("qmem_default_handler", default_handle_memory_error, "jmp"); // the same by a name for abi/defer.c, not exported
#[cfg(target_arch = "x86_64")]
weak!("cleanup_memory_system", super::system::default_cleanup_memory_system, "jmp");
#[cfg(target_arch = "aarch64")]
weak!("handle_memory_error", default_handle_memory_error, "b");
#[cfg(target_arch = "aarch64")]
weak!("qmem_default_handler", default_handle_memory_error, "b");
#[cfg(target_arch = "aarch64")]
weak!("cleanup_memory_system", super::system::default_cleanup_memory_system, "b");

/// Starts recovery: until it is stopped, an operation that the error handler neither repaired nor aborted is tried again
/// max_retries times (the handler's own retries count), then by the fallback strategy. FALLBACK_CLASSICAL also lets
/// `initialize_memory_allocation` use the heap where this machine has no paged or device memory; FALLBACK_SWAP calls
/// `enable_swapping`. checkpoint_interval counts where QMEM_CHECKPOINT_DIR names a directory. With enable_logging every failure and how
/// it ended is a record (see `log_memory_error`). MEMORY_STATUS_ALREADY_INITIALIZED while it runs.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_memory_recovery(config: *const recovery_config_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        let asked = config.max_retries;
        within(asked, asked <= config::MAX_RETRIES, "max_retries", "1 to 1000 (0 = 3)")?;
        let settings = Settings {
            max_retries: if asked == 0 { config::RETRIES } else { asked },
            checkpoint_interval: config.checkpoint_interval,
            logging: flag(config.enable_logging, "enable_logging")?,
            fallback: match enumerator(config.fallback_strategy, "fallback_strategy")? {
                fallback_strategy_t::FALLBACK_NONE => Detour::None,
                fallback_strategy_t::FALLBACK_CLASSICAL => Detour::Classical,
                fallback_strategy_t::FALLBACK_SWAP => Detour::Swap,
            },
        };
        zero(&config.reserved, "reserved")?;
        recovery::start(&settings)
    })
}

/// No retries, fallbacks, records or checkpoints of recovery's own from now on; failures still go to the error handler.
/// MEMORY_STATUS_NOT_INITIALIZED if it never ran; a second stop is OK.
#[unsafe(no_mangle)]
pub extern "C" fn stop_memory_recovery() -> memory_status_t {
    status(recovery::stop)
}

/// Forgets what recovery was set to. Checkpoints on disk stay. MEMORY_STATUS_BUSY while it runs; a second cleanup is OK.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_memory_recovery() -> memory_status_t {
    status(recovery::clean)
}

unsafe extern "C" {
    /// Called once for each failure of an operation inside qmem, without a lock of qmem held: on the failing thread, or, where a
    /// background thread failed, on one of qmem's that may use any memory. Not called for a failure inside a handler. The
    /// program may define this function itself; qmem's own calls `log_memory_error`. A handler that was registered by
    /// `qmem_set_error_handler` is called instead. When it returns, the operation ends with what a retry gave, else with its error.
    /// It may leave by longjmp on the program's own threads; a C++ exception ends in qmem and aborts the operation.
    pub fn handle_memory_error(error: memory_error_t);
}

/// Lets cold chunks go to the swap file from now on, so that more can be granted; an allocation that is retried after this in the
/// same handler may become a paged buffer. Works outside handlers too. MEMORY_STATUS_IO without a place for the swap file,
/// MEMORY_STATUS_NOT_INITIALIZED while memory allocation is stopped.
#[unsafe(no_mangle)]
pub extern "C" fn enable_swapping() -> memory_status_t {
    status(dispatch::enable_swapping)
}

/// In a handler: tries the failed allocation again and gives its block, which the original call will return too; the second and
/// later retries wait, each longer than the one before. NULL if it fails again, after as many retries as recovery allows (3
/// without), and where no allocation failed.
#[unsafe(no_mangle)]
pub extern "C" fn retry_allocation() -> *mut c_void {
    value(core::ptr::null_mut(), || dispatch::retry_allocation().map(|block| block.cast()))
}

/// In a handler: tries the failed operation again, of whatever kind, as `retry_allocation` does. The failure's own status if it
/// fails again; MEMORY_STATUS_LIMIT after as many retries as recovery allows; MEMORY_STATUS_NOT_FOUND where nothing can be retried.
#[unsafe(no_mangle)]
pub extern "C" fn retry_operation() -> memory_status_t {
    status(dispatch::retry_operation)
}

/// Gives back what heap, pager and caches keep for reuse. Works outside handlers too.
#[unsafe(no_mangle)]
pub extern "C" fn optimize_cache_usage() -> memory_status_t {
    status(|| {
        crate::system::allocation::trim();
        dispatch::repaired();
        Ok(())
    })
}

/// Moves free quota between resources of a kind to where a request waits or was refused last. Works outside handlers too.
/// MEMORY_STATUS_LIMIT where even all that is free would not do, MEMORY_STATUS_NOT_INITIALIZED while resource management does not run.
#[unsafe(no_mangle)]
pub extern "C" fn reallocate_resources() -> memory_status_t {
    status(|| {
        crate::system::resources::reallocate()?;
        dispatch::repaired();
        Ok(())
    })
}

/// Writes a record of the failure being handled, or else of the thread's last one: a JSON object on a line of the file that QMEM_LOG
/// names, which is turned over to FILE.1 at QMEM_LOG_BYTES; without QMEM_LOG a line on stderr. Async-signal-safe.
#[unsafe(no_mangle)]
pub extern "C" fn log_memory_error(error: MaybeUninit<memory_error_t>) {
    match enumerator(error, "error") {
        Ok(error) => dispatch::log(error.into()),
        Err(bad) => drop(remember(&bad)),
    }
}

/// In a handler: the failed operation ends with MEMORY_STATUS_ABORTED (or NULL) without further retries. MEMORY_STATUS_NOT_FOUND elsewhere.
#[unsafe(no_mangle)]
pub extern "C" fn abort_operation() -> memory_status_t {
    status(dispatch::abort)
}

impl From<memory_error_t> for Class {
    fn from(error: memory_error_t) -> Self {
        match error {
            memory_error_t::MEMORY_ERROR_NONE => Self::None,
            memory_error_t::MEMORY_ERROR_ALLOCATION => Self::Allocation,
            memory_error_t::MEMORY_ERROR_CACHE => Self::Cache,
            memory_error_t::MEMORY_ERROR_RESOURCES => Self::Resources,
            memory_error_t::MEMORY_ERROR_CORRUPTION => Self::Corruption,
            memory_error_t::MEMORY_ERROR_LEAK => Self::Leak,
            memory_error_t::MEMORY_ERROR_IO => Self::Io,
            memory_error_t::MEMORY_ERROR_DEVICE => Self::Device,
        }
    }
}

/// Ours, where the program defines none.
extern "C" fn default_handle_memory_error(error: MaybeUninit<memory_error_t>) {
    match enumerator(error, "error") {
        Ok(error) => dispatch::handle(error.into()),
        Err(bad) => drop(remember(&bad)),
    }
}
