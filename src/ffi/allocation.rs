//! Chapter "allocation" of <quantum_memory.h>: the life cycle of memory allocation. Called by C only.

use super::guard::{enumerator, flag, operation, reference, status, zero};
use super::types::*;
use crate::error::{Class, Error};
use crate::paged::{Options, Strategy};
use crate::system::allocation::{self, Config, Kind};

fn checked(config: &memory_allocation_config_t) -> Result<Config, Error> {
    let kind = enumerator(config.allocation_type, "allocation_type")?;
    let strategy = match enumerator(config.strategy, "strategy")? {
        memory_strategy_t::STRATEGY_ADAPTIVE => Strategy::Adaptive,
        memory_strategy_t::STRATEGY_LATENCY => Strategy::Latency,
        memory_strategy_t::STRATEGY_THROUGHPUT => Strategy::Throughput,
        memory_strategy_t::STRATEGY_COMPACT => Strategy::Compact,
    };
    let options = Options {
        strategy,
        compression: flag(config.enable_compression, "enable_compression")?,
        deduplication: flag(config.enable_deduplication, "enable_deduplication")?,
        swapping: flag(config.enable_swapping, "enable_swapping")?,
    };
    zero(&config.reserved, "reserved")?;
    let kind = match kind {
        allocation_type_t::ALLOC_CLASSICAL => Kind::Classical,
        allocation_type_t::ALLOC_QUANTUM => Kind::Quantum,
        allocation_type_t::ALLOC_HYBRID => Kind::Hybrid,
        allocation_type_t::ALLOC_CUSTOM => Kind::Custom,
        allocation_type_t::ALLOC_GPU => allocation::instead_of_device()?,
    };
    Ok(Config { kind, max_memory: config.max_memory, options })
}

/// Starts memory allocation: sets the budget, and how blocks are given from now on. `config` is copied. Settings of the
/// environment (QMEM_*) are read. MEMORY_STATUS_ALREADY_INITIALIZED while it runs, MEMORY_STATUS_BUSY while it is stopped but not
/// cleaned up, MEMORY_STATUS_LIMIT if live blocks do not fit into the new budget. A failure changes nothing.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn initialize_memory_allocation(config: *const memory_allocation_config_t) -> memory_status_t {
    operation("initialize_memory_allocation", Class::of, || {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config, "config")? };
        allocation::start(&checked(config)?)
    })
}

/// No new blocks, prefetch or background eviction from now on; existing blocks stay readable, writable and freeable. Stops the
/// unified pool too. MEMORY_STATUS_NOT_INITIALIZED if it never ran; a second stop is OK.
#[unsafe(no_mangle)]
pub extern "C" fn stop_memory_allocation() -> memory_status_t {
    status(allocation::stop)
}

/// Frees what was given since initialisation, each leftover reported as a leak on stderr, and lifts the budget. Cleans up the
/// unified pool too. MEMORY_STATUS_BUSY while it runs; a second cleanup is OK. Pointers to leftovers dangle afterwards.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_allocation_resources() -> memory_status_t {
    status(allocation::clean)
}
