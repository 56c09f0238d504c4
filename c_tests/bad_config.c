/* valgrind: heap only */
/* Every field of every config, one at a time beyond what it accepts: a status, a message that names it, and nothing changed. */
#include "check.h"
#include <quantum_memory.h>

static double not_a_number(void) { return strtod("nan", NULL); }
static double infinite(void) { return strtod("inf", NULL); }

/* Bytes that C may leave where the header says bool or enum. */
static void odd_byte(bool *field) {
  unsigned char two = 2;
  memcpy(field, &two, 1);
}
static void odd_number(void *field, int number) { memcpy(field, &number, sizeof number); }

#define BAD(init, config, word) FAILS(MEMORY_STATUS_INVALID_ARGUMENT, word, init(&(config)))
#define BAD_ENUM(init, good, field, beyond) \
  do { \
    config = good; \
    odd_number(&config.field, beyond); \
    BAD(init, config, #field); \
    odd_number(&config.field, -1); \
    BAD(init, config, #field); \
    odd_number(&config.field, 0x7FFFFFFF); \
    BAD(init, config, #field); \
  } while (0)
#define BAD_BOOL(init, good, field) \
  do { \
    config = good; \
    odd_byte(&config.field); \
    BAD(init, config, #field); \
  } while (0)
#define BAD_VALUE(init, good, field, value) \
  do { \
    config = good; \
    config.field = value; \
    BAD(init, config, #field); \
  } while (0)
static void allocation(void) {
  memory_allocation_config_t good, config;
  memset(&good, 0, sizeof good);
  good.max_memory = 64 << 20;
  BAD_ENUM(initialize_memory_allocation, good, allocation_type, 5);
  BAD_ENUM(initialize_memory_allocation, good, strategy, 4);
  BAD_VALUE(initialize_memory_allocation, good, max_memory, 1);
  BAD_VALUE(initialize_memory_allocation, good, max_memory, (1 << 20) - 1);
  BAD_BOOL(initialize_memory_allocation, good, enable_compression);
  BAD_BOOL(initialize_memory_allocation, good, enable_deduplication);
  BAD_BOOL(initialize_memory_allocation, good, enable_swapping);
  config = good;
  config.reserved[0] = 1;
  BAD(initialize_memory_allocation, config, "reserved[0]");
  config.reserved[0] = 0;
  config.reserved[3] = (uint64_t)1 << 63;
  BAD(initialize_memory_allocation, config, "reserved[3]");
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "config is NULL", initialize_memory_allocation(NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "not aligned",
        initialize_memory_allocation((memory_allocation_config_t *)(void *)((char *)&config + 1)));
  config = good;
  config.allocation_type = ALLOC_QUANTUM; /* paged memory needs more than the heap */
  config.max_memory = 31 << 20;
  BAD(initialize_memory_allocation, config, "33554432");
  config.allocation_type = ALLOC_HYBRID;
  BAD(initialize_memory_allocation, config, "33554432");
  config = good;
  config.allocation_type = ALLOC_CUSTOM;
  BAD(initialize_memory_allocation, config, "qmem_register_interface");
  config.allocation_type = ALLOC_GPU;
  FAILS(MEMORY_STATUS_UNSUPPORTED, "ALLOC_GPU", initialize_memory_allocation(&config));

  /* the environment is checked too */
  setenv("QMEM_BUDGET", "lots", 1);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "QMEM_BUDGET", initialize_memory_allocation(&good));
  setenv("QMEM_BUDGET", "4096", 1);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "budget", initialize_memory_allocation(&good));
  unsetenv("QMEM_BUDGET");
  setenv("QMEM_FILL_WORKERS", "1000", 1);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "fill_workers", initialize_memory_allocation(&good));
  unsetenv("QMEM_FILL_WORKERS");

  /* nothing was changed by any of it */
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "never", stop_memory_allocation());
  CHECK(stats_now().budget_bytes == 0);

  /* live blocks must fit into a new budget */
  {
    void *block = qmem_allocate(8 << 20, 0);
    config = good;
    config.max_memory = 4 << 20;
    FAILS(MEMORY_STATUS_LIMIT, "resident", initialize_memory_allocation(&config));
    CHECK(stats_now().budget_bytes == 0);
    qmem_free(block);
  }
  setenv("QMEM_BUDGET", "48M", 1);
  config = good;
  config.max_memory = 0;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  CHECK(stats_now().budget_bytes == 48 << 20);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&good)); /* a number in the config comes before the environment */
  CHECK(stats_now().budget_bytes == 64 << 20);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  unsetenv("QMEM_BUDGET");
  config.max_memory = SIZE_MAX; /* more than there is: what there is */
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  CHECK(stats_now().budget_bytes > 1 << 20 && stats_now().budget_bytes < (size_t)1 << 60);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

static void unified(void) {
  unified_pool_config_t good, config;
  memset(&good, 0, sizeof good);
  good.enable_growth = true;
  BAD_BOOL(initialize_unified_memory, good, enable_growth);
  BAD_BOOL(initialize_unified_memory, good, use_geometric_layout);
  BAD_BOOL(initialize_unified_memory, good, enable_streaming);
  BAD_VALUE(initialize_unified_memory, good, initial_size, SIZE_MAX);
  BAD_VALUE(initialize_unified_memory, good, max_size, SIZE_MAX);
  BAD_VALUE(initialize_unified_memory, good, chunk_size, 1);
  BAD_VALUE(initialize_unified_memory, good, chunk_size, 32 << 10);
  BAD_VALUE(initialize_unified_memory, good, chunk_size, 96 << 10);
  BAD_VALUE(initialize_unified_memory, good, chunk_size, (size_t)2 << 30);
  BAD_VALUE(initialize_unified_memory, good, compression_tolerance, -1e-9);
  BAD_VALUE(initialize_unified_memory, good, compression_tolerance, 1.0);
  BAD_VALUE(initialize_unified_memory, good, compression_tolerance, not_a_number());
  BAD_VALUE(initialize_unified_memory, good, compression_tolerance, infinite());
  config = good;
  config.initial_size = 2 << 20;
  config.max_size = 1 << 20;
  BAD(initialize_unified_memory, config, "initial_size");
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "config is NULL", initialize_unified_memory(NULL));
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "never", stop_unified_memory());
}

#define RESERVED_AND_NULL(init, good) \
  do { \
    config = good; \
    config.reserved[2] = 7; \
    BAD(init, config, "reserved[2]"); \
    FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "config is NULL", init(NULL)); \
    config = good; \
    FAILS(MEMORY_STATUS_UNSUPPORTED, #init, init(&config)); \
  } while (0)

static void cache(void) {
  cache_optimization_config_t good, config;
  memset(&good, 0, sizeof good);
  BAD_ENUM(initialize_cache_optimization, good, optimization_type, 5);
  BAD_VALUE(initialize_cache_optimization, good, cache_size, SIZE_MAX);
  BAD_ENUM(initialize_cache_optimization, good, strategy, 8);
  BAD_BOOL(initialize_cache_optimization, good, enable_prefetching);
  BAD_BOOL(initialize_cache_optimization, good, enable_monitoring);
  RESERVED_AND_NULL(initialize_cache_optimization, good);
}

static void resources(void) {
  resource_management_config_t good, config;
  memset(&good, 0, sizeof good);
  BAD_ENUM(initialize_resource_management, good, management_type, 5);
  BAD_ENUM(initialize_resource_management, good, strategy, 4);
  BAD_VALUE(initialize_resource_management, good, max_resources, SIZE_MAX);
  BAD_VALUE(initialize_resource_management, good, max_resources, ((size_t)1 << 20) + 1);
  BAD_BOOL(initialize_resource_management, good, enable_monitoring);
  BAD_BOOL(initialize_resource_management, good, enable_optimization);
  config = good;
  config.reserved[2] = 7;
  BAD(initialize_resource_management, config, "reserved[2]");
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "config is NULL", initialize_resource_management(NULL));
}

static void tuning(void) {
  memory_tuning_config_t good, config;
  memset(&good, 0, sizeof good);
  BAD_ENUM(initialize_memory_tuning, good, tuning_type, 6);
  BAD_ENUM(initialize_memory_tuning, good, optimization_level, 4);
  BAD_BOOL(initialize_memory_tuning, good, target_metrics.latency);
  BAD_BOOL(initialize_memory_tuning, good, target_metrics.throughput);
  BAD_BOOL(initialize_memory_tuning, good, target_metrics.efficiency);
  BAD_BOOL(initialize_memory_tuning, good, enable_learning);
  RESERVED_AND_NULL(initialize_memory_tuning, good);
}

static void adaptive(void) {
  adaptive_memory_config_t good, config;
  memset(&good, 0, sizeof good);
  BAD_ENUM(initialize_adaptive_memory, good, adaptation_type, 3);
  BAD_VALUE(initialize_adaptive_memory, good, learning_rate, -0.1);
  BAD_VALUE(initialize_adaptive_memory, good, learning_rate, 1.1);
  BAD_VALUE(initialize_adaptive_memory, good, learning_rate, not_a_number());
  BAD_VALUE(initialize_adaptive_memory, good, threshold, -0.1);
  BAD_VALUE(initialize_adaptive_memory, good, threshold, infinite());
  BAD_VALUE(initialize_adaptive_memory, good, threshold, not_a_number());
  BAD_BOOL(initialize_adaptive_memory, good, enable_quantum);
  BAD_BOOL(initialize_adaptive_memory, good, use_gpu);
  RESERVED_AND_NULL(initialize_adaptive_memory, good);
}

static void ensemble(void) {
  ensemble_memory_config_t good, config;
  memset(&good, 0, sizeof good);
  BAD_VALUE(initialize_memory_ensemble, good, num_managers, 17);
  BAD_ENUM(initialize_memory_ensemble, good, aggregation_method, 3);
  BAD_ENUM(initialize_memory_ensemble, good, diversity_measure, 3);
  BAD_BOOL(initialize_memory_ensemble, good, enable_quantum);
  RESERVED_AND_NULL(initialize_memory_ensemble, good);
}

static void whole_system(void) {
  memory_system_config_t good, config;
  memset(&good, 0, sizeof good);
  BAD_BOOL(initialize_memory_system, good, enable_all_features);
  BAD_BOOL(initialize_memory_system, good, auto_optimization);
  BAD_ENUM(initialize_memory_system, good, monitoring_level, 3);
  BAD_VALUE(initialize_memory_system, good, error_budget, -0.01);
  BAD_VALUE(initialize_memory_system, good, error_budget, 1.0);
  BAD_VALUE(initialize_memory_system, good, error_budget, not_a_number());
  config = good;
  config.reserved[2] = 7;
  BAD(initialize_memory_system, config, "reserved[2]");
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "config is NULL", initialize_memory_system(NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "infidelity", qmem_set_error_budget(1.0));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "infidelity", qmem_set_error_budget(not_a_number()));
}

static void recovery(void) {
  recovery_config_t good, config;
  memset(&good, 0, sizeof good);
  BAD_VALUE(initialize_memory_recovery, good, max_retries, 1001);
  BAD_BOOL(initialize_memory_recovery, good, enable_logging);
  BAD_ENUM(initialize_memory_recovery, good, fallback_strategy, 3);
  config = good;
  config.reserved[2] = 7;
  BAD(initialize_memory_recovery, config, "reserved[2]");
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "config is NULL", initialize_memory_recovery(NULL));
  REFUSED("nothing to retry", retry_allocation());
  FAILS(MEMORY_STATUS_NOT_FOUND, "nothing to retry", retry_operation());
  FAILS(MEMORY_STATUS_NOT_FOUND, "nothing to abort", abort_operation());
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "does not run", reallocate_resources());
  log_memory_error((memory_error_t)99);
  check_message("error = 99", __FILE__, __LINE__);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "error = 8", qmem_run_operation((memory_error_t)8, NULL, NULL, NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "MEMORY_ERROR_NONE", qmem_run_operation(MEMORY_ERROR_NONE, NULL, NULL, NULL));
}

static void tensors(void) {
  union { double align; char bytes[256]; } room;
  tree_tensor_network_t *network = (tree_tensor_network_t *)(void *)&room;
  tree_tensor_node_t *node = (tree_tensor_node_t *)(void *)&room;
  tensor_stream_t *stream = (tensor_stream_t *)(void *)&room;
  qmem_complex_t *result;
  const qmem_complex_t *chunk;
  size_t n = 2;
  memset(&room, 0, sizeof room);
  REFUSED("num_qubits", create_tree_tensor_network(0, 4, 0.0));
  REFUSED("max_rank", create_tree_tensor_network(4, 0, 0.0));
  REFUSED("tolerance", create_tree_tensor_network(4, 4, not_a_number()));
  REFUSED("create_tree_tensor_network", create_tree_tensor_network(4, 4, 1e-6));
  REFUSED("network is NULL", add_tree_tensor_node(NULL, &n, 1, NULL));
  REFUSED("dimensions is NULL", add_tree_tensor_node(network, NULL, 1, NULL));
  REFUSED("num_dimensions", add_tree_tensor_node(network, &n, 0, NULL));
  REFUSED("add_tree_tensor_node", add_tree_tensor_node(network, &n, 1, NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "parent is NULL", connect_tree_tensor_nodes(network, NULL, node));
  FAILS(MEMORY_STATUS_UNSUPPORTED, "connect_tree_tensor_nodes", connect_tree_tensor_nodes(network, node, node));
  REFUSED("b is NULL", contract_tree_tensor_nodes(network, node, NULL));
  REFUSED("contract_tree_tensor_nodes", contract_tree_tensor_nodes(network, node, node));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "result is NULL", contract_full_tree_network(network, NULL, &n));
  FAILS(MEMORY_STATUS_UNSUPPORTED, "contract_full_tree_network", contract_full_tree_network(network, &result, &n));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "network is NULL", adapt_bond_dimensions(NULL));
  FAILS(MEMORY_STATUS_UNSUPPORTED, "adapt_bond_dimensions", adapt_bond_dimensions(network));
  REFUSED("node is NULL", create_tensor_stream(NULL, 0));
  REFUSED("chunk_size", create_tensor_stream(node, 3));
  REFUSED("create_tensor_stream", create_tensor_stream(node, 0));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "chunk is NULL", stream_next_chunk(stream, NULL, &n));
  FAILS(MEMORY_STATUS_UNSUPPORTED, "stream_next_chunk", stream_next_chunk(stream, &chunk, &n));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "out is NULL", contract_tensor_streams(stream, stream, NULL));
  FAILS(MEMORY_STATUS_UNSUPPORTED, "contract_tensor_streams", contract_tensor_streams(stream, stream, node));
  destroy_tree_tensor_network(NULL);
  destroy_tensor_stream(NULL);
}

int main(void) {
  allocation();
  unified();
  cache();
  resources();
  tuning();
  adaptive();
  ensemble();
  whole_system();
  recovery();
  tensors();
  return finish();
}
