/* needs paged memory */
/* The code of the page "Quantum Memory Management", each snippet as written in a function of its own, with the program's own
   cleanup_memory_system and handle_memory_error. Then what the page does, with statuses looked at. */
#include "check.h"
#include <quantum_memory.h>

static void configure_allocation(void) {
// Configure memory allocation
memory_allocation_config_t config = {
    .allocation_type = ALLOC_QUANTUM,
    .strategy = STRATEGY_ADAPTIVE,
    .max_memory = 128 * 1024 * 1024 * 1024ull,  // 128GB
    .enable_compression = true,
    .enable_deduplication = true,
    .enable_swapping = true
};

// Initialize allocation
initialize_memory_allocation(&config);
}

static void configure_cache(void) {
// Configure cache optimization
cache_optimization_config_t config = {
    .optimization_type = OPT_QUANTUM,
    .cache_size = 32 * 1024 * 1024,  // 32MB
    .strategy = CACHE_ADAPTIVE,
    .enable_prefetching = true,
    .enable_monitoring = true
};

// Initialize optimization
initialize_cache_optimization(&config);
}

static void configure_resources(void) {
// Configure resource management
resource_management_config_t config = {
    .management_type = MANAGE_QUANTUM,
    .strategy = STRATEGY_ADAPTIVE,
    .max_resources = 1024,
    .enable_monitoring = true,
    .enable_optimization = true
};

// Initialize management
initialize_resource_management(&config);
}

static void configure_tuning(void) {
// Configure performance tuning
memory_tuning_config_t config = {
    .tuning_type = TUNE_QUANTUM,
    .optimization_level = OPT_AGGRESSIVE,
    .target_metrics = {
        .latency = true,
        .throughput = true,
        .efficiency = true
    },
    .enable_learning = true
};

// Initialize tuning
initialize_memory_tuning(&config);
}

static void configure_adaptive(void) {
// Configure adaptive management
adaptive_memory_config_t config = {
    .adaptation_type = ADAPT_QUANTUM,
    .learning_rate = 0.01,
    .threshold = 0.001,
    .enable_quantum = true,
    .use_gpu = true
};

// Initialize adaptive management
initialize_adaptive_memory(&config);
}

static void configure_ensemble(void) {
// Configure memory ensemble
ensemble_memory_config_t config = {
    .num_managers = 5,
    .aggregation_method = ENSEMBLE_WEIGHTED,
    .diversity_measure = DIVERSITY_QUANTUM,
    .enable_quantum = true
};

// Initialize ensemble
initialize_memory_ensemble(&config);
}

static void configure_system(void) {
// Configure memory system
memory_system_config_t config = {
    .enable_all_features = true,
    .auto_optimization = true,
    .monitoring_level = MONITOR_DETAILED,
    .error_budget = 0.01
};

// Initialize memory system
initialize_memory_system(&config);
}

// Cleanup memory system
void cleanup_memory_system() {
    // Stop management
    stop_memory_allocation();
    stop_cache_optimization();
    stop_resource_management();
    stop_performance_tuning();
    
    // Clean resources
    cleanup_allocation_resources();
    cleanup_cache_resources();
    cleanup_management_resources();
    cleanup_tuning_resources();
}

// Handle memory errors
void handle_memory_error(memory_error_t error) {
    switch (error) {
        case MEMORY_ERROR_ALLOCATION:
            enable_swapping();
            retry_allocation();
            break;
            
        case MEMORY_ERROR_CACHE:
            optimize_cache_usage();
            retry_operation();
            break;
            
        case MEMORY_ERROR_RESOURCES:
            reallocate_resources();
            break;
            
        default:
            log_memory_error(error);
            abort_operation();
    }
}

static void configure_recovery(void) {
// Configure memory recovery
recovery_config_t config = {
    .max_retries = 3,
    .checkpoint_interval = 100,
    .enable_logging = true,
    .fallback_strategy = FALLBACK_CLASSICAL
};

// Initialize recovery
initialize_memory_recovery(&config);
}

int main(void) {
  unsigned char *state;
  size_t i;
  configure_allocation();
  configure_cache();
  configure_resources();
  configure_tuning();
  configure_adaptive();
  configure_ensemble();
  configure_recovery();
  configure_system();

  CHECK(stats_now().budget_bytes > 0); /* 128 GB, or what this machine has */
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  configure_allocation();
  state = (unsigned char *)qmem_allocate((size_t)16 << 20, 0);
  CHECK(state != NULL && qmem_kind(state) == QMEM_MEMORY_PAGED);
  if (state != NULL) {
    for (i = 0; i < (size_t)16 << 20; i += 4096)
      state[i] = (unsigned char)(i >> 12);
    for (i = 0; i < (size_t)16 << 20; i += 4096)
      if (state[i] != (unsigned char)(i >> 12))
        break;
    CHECK(i == (size_t)16 << 20);
    qmem_free(state);
  }
  handle_memory_error(MEMORY_ERROR_CACHE);
  handle_memory_error(MEMORY_ERROR_RESOURCES);
  handle_memory_error(MEMORY_ERROR_LEAK);
  cleanup_memory_system();
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_cache_optimization());
  REFUSED("cleaned up", qmem_allocate(1, 0));
  return finish();
}
