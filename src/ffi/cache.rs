//! Chapter "cache" of <quantum_memory.h>. This version has no cache: arguments are checked, then refused.

use super::guard::{absent, enumerator, flag, never_started, reference, status, within, zero};
use super::types::*;

/// Starts the caches. MEMORY_STATUS_UNSUPPORTED in this version, once the config has been checked.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_cache_optimization(config: *const cache_optimization_config_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        enumerator(config.optimization_type, "optimization_type")?;
        within(config.cache_size, config.cache_size <= isize::MAX as usize, "cache_size", "0 to PTRDIFF_MAX")?;
        enumerator(config.strategy, "strategy")?;
        flag(config.enable_prefetching, "enable_prefetching")?;
        flag(config.enable_monitoring, "enable_monitoring")?;
        zero(&config.reserved, "reserved")?;
        Err(absent("initialize_cache_optimization"))
    })
}

/// Stops the caches; MEMORY_STATUS_NOT_INITIALIZED where they do not run.
#[unsafe(no_mangle)]
pub extern "C" fn stop_cache_optimization() -> memory_status_t {
    status(|| Err(never_started("stop_cache_optimization", "cache optimization")))
}

/// Frees the caches; MEMORY_STATUS_NOT_INITIALIZED where they never ran.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_cache_resources() -> memory_status_t {
    status(|| Err(never_started("cleanup_cache_resources", "cache optimization")))
}
