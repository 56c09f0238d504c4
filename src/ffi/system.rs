//! Chapter "system" of <quantum_memory.h>: everything at once. Called by C only.

use super::guard::{enumerator, flag, fraction, operation, reference, status, zero};
use super::types::*;
use crate::error::Class;
use crate::monitor::level;
use crate::system::whole::{self, Config};

/// Starts the system. enable_all_features: every subsystem that does not run is started, with defaults; those that run are adopted as
/// they are; what this machine (or version) lacks is skipped, and `qmem_system_summary` says so line by line. auto_optimization
/// starts the tuner. monitoring_level and error_budget come into force for the process. MEMORY_STATUS_ALREADY_INITIALIZED while it runs:
/// until `cleanup_memory_system`, or until everything it started or adopted has been ended; MEMORY_STATUS_BUSY if a subsystem that it
/// would start is stopped but not cleaned up. On any failure what was started here is ended again.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_memory_system(config: *const memory_system_config_t) -> memory_status_t {
    operation("initialize_memory_system", Class::of, || {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        let checked = Config {
            all: flag(config.enable_all_features, "enable_all_features")?,
            tune: flag(config.auto_optimization, "auto_optimization")?,
            monitoring: match enumerator(config.monitoring_level, "monitoring_level")? {
                monitoring_level_t::MONITOR_NONE => level::NONE,
                monitoring_level_t::MONITOR_BASIC => level::BASIC,
                monitoring_level_t::MONITOR_DETAILED => level::DETAILED,
            },
            error_budget: fraction(config.error_budget, "error_budget")?,
        };
        zero(&config.reserved, "reserved")?;
        whole::start(&checked)
    })
}

unsafe extern "C" {
    /// Stops and cleans everything, what depends on others first; monitoring and error budget end too. The program may define this
    /// function itself.
    pub fn cleanup_memory_system();
}

/// Ours, where the program defines none. What does not run is left alone.
pub(super) extern "C" fn default_cleanup_memory_system() {
    status(|| {
        whole::end();
        Ok(())
    });
}
