//! Chapter "adaptive, ensemble" of <quantum_memory.h>. This version has neither: arguments are checked, then refused.

use super::guard::{absent, enumerator, flag, never_started, reference, status, within, zero};
use super::types::*;

/// Starts adaptive management. MEMORY_STATUS_UNSUPPORTED in this version, once the config has been checked.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_adaptive_memory(config: *const adaptive_memory_config_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        enumerator(config.adaptation_type, "adaptation_type")?;
        within(config.learning_rate, (0.0..=1.0).contains(&config.learning_rate), "learning_rate", "[0, 1]")?;
        within(config.threshold, (0.0..=1.0).contains(&config.threshold), "threshold", "[0, 1]")?;
        flag(config.enable_quantum, "enable_quantum")?;
        flag(config.use_gpu, "use_gpu")?;
        zero(&config.reserved, "reserved")?;
        Err(absent("initialize_adaptive_memory"))
    })
}

/// Stops adaptive management; MEMORY_STATUS_NOT_INITIALIZED where it does not run.
#[unsafe(no_mangle)]
pub extern "C" fn stop_adaptive_memory() -> memory_status_t {
    status(|| Err(never_started("stop_adaptive_memory", "adaptive memory")))
}

/// Frees what adaptive management holds; MEMORY_STATUS_NOT_INITIALIZED where it never ran.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_adaptive_memory() -> memory_status_t {
    status(|| Err(never_started("cleanup_adaptive_memory", "adaptive memory")))
}

/// Starts an ensemble of managers. MEMORY_STATUS_UNSUPPORTED in this version, once the config has been checked.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_memory_ensemble(config: *const ensemble_memory_config_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        within(config.num_managers, config.num_managers <= 16, "num_managers", "1 to 16 (0 = 5)")?;
        enumerator(config.aggregation_method, "aggregation_method")?;
        enumerator(config.diversity_measure, "diversity_measure")?;
        flag(config.enable_quantum, "enable_quantum")?;
        zero(&config.reserved, "reserved")?;
        Err(absent("initialize_memory_ensemble"))
    })
}

/// Stops the ensemble; MEMORY_STATUS_NOT_INITIALIZED where it does not run.
#[unsafe(no_mangle)]
pub extern "C" fn stop_memory_ensemble() -> memory_status_t {
    status(|| Err(never_started("stop_memory_ensemble", "memory ensemble")))
}

/// Frees what the ensemble holds; MEMORY_STATUS_NOT_INITIALIZED where it never ran.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_memory_ensemble() -> memory_status_t {
    status(|| Err(never_started("cleanup_memory_ensemble", "memory ensemble")))
}
