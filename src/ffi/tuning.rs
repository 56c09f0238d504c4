//! Chapter "tuning" of <quantum_memory.h>. This version has no tuner: arguments are checked, then refused.

use super::guard::{absent, enumerator, flag, never_started, reference, status, zero};
use super::types::*;

/// Starts the tuner. MEMORY_STATUS_UNSUPPORTED in this version, once the config has been checked.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_memory_tuning(config: *const memory_tuning_config_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        enumerator(config.tuning_type, "tuning_type")?;
        enumerator(config.optimization_level, "optimization_level")?;
        flag(config.target_metrics.latency, "target_metrics.latency")?;
        flag(config.target_metrics.throughput, "target_metrics.throughput")?;
        flag(config.target_metrics.efficiency, "target_metrics.efficiency")?;
        flag(config.enable_learning, "enable_learning")?;
        zero(&config.reserved, "reserved")?;
        Err(absent("initialize_memory_tuning"))
    })
}

/// Stops the tuner; MEMORY_STATUS_NOT_INITIALIZED where it does not run.
#[unsafe(no_mangle)]
pub extern "C" fn stop_performance_tuning() -> memory_status_t {
    status(|| Err(never_started("stop_performance_tuning", "memory tuning")))
}

/// Frees what the tuner holds; MEMORY_STATUS_NOT_INITIALIZED where it never ran.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_tuning_resources() -> memory_status_t {
    status(|| Err(never_started("cleanup_tuning_resources", "memory tuning")))
}
