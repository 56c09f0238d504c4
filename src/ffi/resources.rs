//! Chapter "resources" of <quantum_memory.h>: the life cycle of resource management. Called by C only.

use super::guard::{enumerator, flag, reference, status, within, zero};
use super::types::*;
use crate::config::RESOURCES;
use crate::error::Error;
use crate::system::resources::{self, Config, Measure, Placement};

fn checked(config: &resource_management_config_t) -> Result<Config, Error> {
    let measure = match enumerator(config.management_type, "management_type")? {
        management_type_t::MANAGE_CLASSICAL => Measure::Count,
        management_type_t::MANAGE_QUANTUM => Measure::Bytes,
        management_type_t::MANAGE_GPU => Measure::Free,
        management_type_t::MANAGE_NETWORK => Measure::Endpoint,
        management_type_t::MANAGE_CUSTOM => Measure::Custom,
    };
    let placement = match enumerator(config.strategy, "strategy")? {
        memory_strategy_t::STRATEGY_ADAPTIVE => Placement::LeastLoaded,
        memory_strategy_t::STRATEGY_LATENCY => Placement::Nearest,
        memory_strategy_t::STRATEGY_THROUGHPUT => Placement::Interleaved,
        memory_strategy_t::STRATEGY_COMPACT => Placement::Packed,
    };
    let (default, most) = RESOURCES;
    let asked = config.max_resources;
    within(asked, asked <= most, "max_resources", "1 to 1048576 (0 = 1024)")?;
    let monitoring = flag(config.enable_monitoring, "enable_monitoring")?;
    let optimization = flag(config.enable_optimization, "enable_optimization")?;
    zero(&config.reserved, "reserved")?;
    Ok(Config { measure, placement, max_resources: if asked == 0 { default } else { asked }, monitoring, optimization })
}

/// Starts resource management, with nothing registered: see `qmem_resource_register` of <qmem.h>. The management type says what is
/// balanced, the strategy where requests go: ADAPTIVE to the least loaded, LATENCY to the nearest NUMA node (of these the least
/// loaded), THROUGHPUT to one after the other, COMPACT to the fullest that still has room. MANAGE_CUSTOM asks the balancer of
/// `qmem_resource_set_balancer` alone. enable_monitoring keeps a history of each resource; enable_optimization moves free quota between
/// resources of a kind in the background: at once where a request waits, else gently, by what was registered and what is used.
/// MEMORY_STATUS_ALREADY_INITIALIZED while it runs.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_resource_management(config: *const resource_management_config_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        resources::start(&checked(config)?)
    })
}

/// Grants nothing new; requests that wait end with MEMORY_STATUS_NOT_INITIALIZED, and what is held can be given back. A second stop is OK.
#[unsafe(no_mangle)]
pub extern "C" fn stop_resource_management() -> memory_status_t {
    status(resources::stop)
}

/// Forgets all resources, whose handles are out of date from then on; those that are still held are reported as a leak.
/// MEMORY_STATUS_BUSY while it runs; a second cleanup is OK.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_management_resources() -> memory_status_t {
    status(resources::clean)
}
