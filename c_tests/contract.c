/* The contract of the C API: every function with its exact type, every enumerator with its value, every struct's fields with their
   types and order. A change here is a change of what programs are compiled against. */
#include "check.h"
#include <quantum_memory.h>

#ifdef __cplusplus
#define SAME(value, number) static_assert((int)(value) == (number), #value)
#else
#define SAME(value, number) _Static_assert((int)(value) == (number), #value)
#endif

/* memory_status_t */
SAME(MEMORY_STATUS_OK, 0);
SAME(MEMORY_STATUS_INVALID_ARGUMENT, -1);
SAME(MEMORY_STATUS_OUT_OF_MEMORY, -2);
SAME(MEMORY_STATUS_NOT_INITIALIZED, -3);
SAME(MEMORY_STATUS_ALREADY_INITIALIZED, -4);
SAME(MEMORY_STATUS_BUSY, -5);
SAME(MEMORY_STATUS_TIMEOUT, -6);
SAME(MEMORY_STATUS_UNSUPPORTED, -7);
SAME(MEMORY_STATUS_NOT_FOUND, -8);
SAME(MEMORY_STATUS_LIMIT, -9);
SAME(MEMORY_STATUS_ABORTED, -10);
SAME(MEMORY_STATUS_IO, -16);
SAME(MEMORY_STATUS_CORRUPT, -17);
SAME(MEMORY_STATUS_DEVICE, -18);
SAME(MEMORY_STATUS_INTERNAL, -127);
/* memory_error_t */
SAME(MEMORY_ERROR_NONE, 0);
SAME(MEMORY_ERROR_ALLOCATION, 1);
SAME(MEMORY_ERROR_CACHE, 2);
SAME(MEMORY_ERROR_RESOURCES, 3);
SAME(MEMORY_ERROR_CORRUPTION, 4);
SAME(MEMORY_ERROR_LEAK, 5);
SAME(MEMORY_ERROR_IO, 6);
SAME(MEMORY_ERROR_DEVICE, 7);
/* allocation_type_t */
SAME(ALLOC_CLASSICAL, 0);
SAME(ALLOC_QUANTUM, 1);
SAME(ALLOC_HYBRID, 2);
SAME(ALLOC_GPU, 3);
SAME(ALLOC_CUSTOM, 4);
/* memory_strategy_t */
SAME(STRATEGY_ADAPTIVE, 0);
SAME(STRATEGY_LATENCY, 1);
SAME(STRATEGY_THROUGHPUT, 2);
SAME(STRATEGY_COMPACT, 3);
/* cache_optimization_type_t */
SAME(OPT_CLASSICAL, 0);
SAME(OPT_QUANTUM, 1);
SAME(OPT_GPU, 2);
SAME(OPT_DISTRIBUTED, 3);
SAME(OPT_CUSTOM, 4);
/* cache_strategy_t */
SAME(CACHE_ADAPTIVE, 0);
SAME(CACHE_LRU, 1);
SAME(CACHE_LFU, 2);
SAME(CACHE_FIFO, 3);
SAME(CACHE_S3FIFO, 4);
SAME(CACHE_SIEVE, 5);
SAME(CACHE_WTINYLFU, 6);
SAME(CACHE_LIRS, 7);
/* management_type_t */
SAME(MANAGE_CLASSICAL, 0);
SAME(MANAGE_QUANTUM, 1);
SAME(MANAGE_GPU, 2);
SAME(MANAGE_NETWORK, 3);
SAME(MANAGE_CUSTOM, 4);
/* tuning_type_t */
SAME(TUNE_PERFORMANCE, 0);
SAME(TUNE_QUANTUM, 1);
SAME(TUNE_MEMORY, 2);
SAME(TUNE_CACHE, 3);
SAME(TUNE_RESOURCE, 4);
SAME(TUNE_CUSTOM, 5);
/* optimization_level_t */
SAME(OPT_NONE, 0);
SAME(OPT_BASIC, 1);
SAME(OPT_ADVANCED, 2);
SAME(OPT_AGGRESSIVE, 3);
/* adaptation_type_t */
SAME(ADAPT_CLASSICAL, 0);
SAME(ADAPT_QUANTUM, 1);
SAME(ADAPT_CUSTOM, 2);
/* aggregation_method_t */
SAME(ENSEMBLE_WEIGHTED, 0);
SAME(ENSEMBLE_MAJORITY, 1);
SAME(ENSEMBLE_BEST, 2);
/* diversity_measure_t */
SAME(DIVERSITY_NONE, 0);
SAME(DIVERSITY_DISAGREEMENT, 1);
SAME(DIVERSITY_QUANTUM, 2);
/* monitoring_level_t */
SAME(MONITOR_NONE, 0);
SAME(MONITOR_BASIC, 1);
SAME(MONITOR_DETAILED, 2);
/* fallback_strategy_t */
SAME(FALLBACK_NONE, 0);
SAME(FALLBACK_CLASSICAL, 1);
SAME(FALLBACK_SWAP, 2);
/* qmem_memory_kind_t */
SAME(QMEM_MEMORY_UNKNOWN, 0);
SAME(QMEM_MEMORY_HEAP, 1);
SAME(QMEM_MEMORY_PAGED, 2);
SAME(QMEM_MEMORY_DEVICE, 3);
SAME(QMEM_MEMORY_CUSTOM, 4);
SAME(QMEM_MEMORY_TRACKED, 5);

typedef void (*any_function)(void);
#define HAS(result, name, parameters) \
  do { \
    result(*function) parameters = name; \
    CHECK((any_function)function != NULL); \
  } while (0)

static void functions(void) {
  HAS(memory_status_t, initialize_memory_allocation, (const memory_allocation_config_t *config));
  HAS(memory_status_t, stop_memory_allocation, (void));
  HAS(memory_status_t, cleanup_allocation_resources, (void));
  HAS(memory_status_t, initialize_cache_optimization, (const cache_optimization_config_t *config));
  HAS(memory_status_t, stop_cache_optimization, (void));
  HAS(memory_status_t, cleanup_cache_resources, (void));
  HAS(memory_status_t, initialize_resource_management, (const resource_management_config_t *config));
  HAS(memory_status_t, stop_resource_management, (void));
  HAS(memory_status_t, cleanup_management_resources, (void));
  HAS(memory_status_t, initialize_memory_tuning, (const memory_tuning_config_t *config));
  HAS(memory_status_t, stop_performance_tuning, (void));
  HAS(memory_status_t, cleanup_tuning_resources, (void));
  HAS(memory_status_t, initialize_adaptive_memory, (const adaptive_memory_config_t *config));
  HAS(memory_status_t, stop_adaptive_memory, (void));
  HAS(memory_status_t, cleanup_adaptive_memory, (void));
  HAS(memory_status_t, initialize_memory_ensemble, (const ensemble_memory_config_t *config));
  HAS(memory_status_t, stop_memory_ensemble, (void));
  HAS(memory_status_t, cleanup_memory_ensemble, (void));
  HAS(memory_status_t, initialize_memory_system, (const memory_system_config_t *config));
  HAS(void, cleanup_memory_system, (void));
  HAS(memory_status_t, initialize_memory_recovery, (const recovery_config_t *config));
  HAS(memory_status_t, stop_memory_recovery, (void));
  HAS(memory_status_t, cleanup_memory_recovery, (void));
  HAS(void, handle_memory_error, (memory_error_t error));
  HAS(memory_status_t, enable_swapping, (void));
  HAS(void *, retry_allocation, (void));
  HAS(memory_status_t, retry_operation, (void));
  HAS(memory_status_t, optimize_cache_usage, (void));
  HAS(memory_status_t, reallocate_resources, (void));
  HAS(void, log_memory_error, (memory_error_t error));
  HAS(memory_status_t, abort_operation, (void));
  HAS(memory_status_t, initialize_unified_memory, (const unified_pool_config_t *config));
  HAS(memory_status_t, stop_unified_memory, (void));
  HAS(memory_status_t, cleanup_unified_memory, (void));
  HAS(tree_tensor_network_t *, create_tree_tensor_network, (size_t num_qubits, size_t max_rank, double tolerance));
  HAS(void, destroy_tree_tensor_network, (tree_tensor_network_t *network));
  HAS(tree_tensor_node_t *, add_tree_tensor_node, (tree_tensor_network_t *network, const size_t *dimensions, size_t num_dimensions, const qmem_complex_t *data));
  HAS(memory_status_t, connect_tree_tensor_nodes, (tree_tensor_network_t *network, tree_tensor_node_t *parent, tree_tensor_node_t *child));
  HAS(tree_tensor_node_t *, contract_tree_tensor_nodes, (tree_tensor_network_t *network, tree_tensor_node_t *a, tree_tensor_node_t *b));
  HAS(memory_status_t, contract_full_tree_network, (tree_tensor_network_t *network, qmem_complex_t **result, size_t *num_elements));
  HAS(memory_status_t, adapt_bond_dimensions, (tree_tensor_network_t *network));
  HAS(tensor_stream_t *, create_tensor_stream, (tree_tensor_node_t *node, size_t chunk_size));
  HAS(void, destroy_tensor_stream, (tensor_stream_t *stream));
  HAS(memory_status_t, stream_next_chunk, (tensor_stream_t *stream, const qmem_complex_t **chunk, size_t *num_elements));
  HAS(memory_status_t, contract_tensor_streams, (tensor_stream_t *a, tensor_stream_t *b, tree_tensor_node_t *out));
  HAS(const char *, qmem_version, (void));
  HAS(const char *, qmem_status_string, (memory_status_t status));
  HAS(size_t, qmem_last_error, (char *buf, size_t cap));
  HAS(void *, qmem_allocate, (size_t size, size_t alignment));
  HAS(void *, qmem_allocate_zeroed, (size_t size, size_t alignment));
  HAS(void *, qmem_realloc, (void *ptr, size_t size));
  HAS(void, qmem_free, (void *ptr));
  HAS(void *, qmem_retain, (void *ptr));
  HAS(size_t, qmem_refcount, (const void *ptr));
  HAS(size_t, qmem_usable_size, (const void *ptr));
  HAS(void *, qmem_allocate_geometric, (const size_t *dimensions, size_t num_dims));
  HAS(void *, qmem_allocate_hierarchical, (size_t size, double tolerance));
  HAS(void *, qmem_allocate_streaming, (size_t total_size, size_t chunk_size));
  HAS(memory_status_t, qmem_get_layout, (const void *ptr, qmem_layout_t *layout));
  HAS(qmem_memory_kind_t, qmem_kind, (const void *ptr));
  HAS(unified_memory_interface_t *, qmem_unified_interface, (void));
  HAS(memory_status_t, qmem_register_interface, (const unified_memory_interface_t *custom));
  HAS(memory_status_t, qmem_get_stats, (memory_stats_t *stats));
  HAS(memory_status_t, qmem_reset_peaks, (void));
  HAS(bool, qmem_can_allocate, (size_t size));
  HAS(memory_status_t, qmem_estimate, (const qmem_workload_t *workload, qmem_estimate_t *estimate));
  HAS(memory_status_t, qmem_prefetch, (const void *ptr, size_t bytes));
  HAS(memory_status_t, qmem_pin, (const void *ptr, size_t bytes));
  HAS(memory_status_t, qmem_unpin, (const void *ptr, size_t bytes));
  HAS(memory_status_t, qmem_evict, (const void *ptr, size_t bytes));
  HAS(memory_status_t, qmem_get_buffer_stats, (const void *buffer, memory_stats_t *stats));
  HAS(qmem_pool_t *, qmem_pool_create, (const qmem_pool_config_t *config));
  HAS(void *, qmem_pool_allocate, (qmem_pool_t * pool, size_t size));
  HAS(void, qmem_pool_release, (qmem_pool_t * pool, void *block));
  HAS(memory_status_t, qmem_pool_warm, (qmem_pool_t * pool, size_t size, size_t blocks));
  HAS(memory_status_t, qmem_pool_trim, (qmem_pool_t * pool));
  HAS(memory_status_t, qmem_pool_get_stats, (const qmem_pool_t *pool, memory_stats_t *stats));
  HAS(memory_status_t, qmem_pool_destroy, (qmem_pool_t * pool));
  HAS(qmem_object_pool_t *, qmem_object_pool_create, (const qmem_object_pool_config_t *config));
  HAS(void *, qmem_object_pool_acquire, (qmem_object_pool_t * pool, uint32_t timeout_ms));
  HAS(void, qmem_object_pool_release, (qmem_object_pool_t * pool, void *object));
  HAS(void, qmem_object_pool_destroy, (qmem_object_pool_t * pool));
}

/* Positional initialisers hold the order and the types of fields; names are held by the tests that use them. */
static void structs(void) {
  memory_allocation_config_t allocation = {ALLOC_HYBRID, STRATEGY_COMPACT, 1, true, true, true, {0, 0, 0, 0}};
  cache_optimization_config_t cache = {OPT_GPU, 1, CACHE_LIRS, true, true, {0, 0, 0, 0}};
  resource_management_config_t resources = {MANAGE_NETWORK, STRATEGY_LATENCY, 1, true, true, {0, 0, 0, 0}};
  memory_tuning_config_t tuning = {TUNE_CACHE, OPT_BASIC, {true, false, true}, true, {0, 0, 0, 0}};
  adaptive_memory_config_t adaptive = {ADAPT_CUSTOM, 0.5, 0.25, true, true, {0, 0, 0, 0}};
  ensemble_memory_config_t ensemble = {3, ENSEMBLE_BEST, DIVERSITY_DISAGREEMENT, true, {0, 0, 0, 0}};
  memory_system_config_t whole = {true, true, MONITOR_BASIC, 0.5, {0, 0, 0, 0}};
  recovery_config_t recovery = {1, 2, true, FALLBACK_SWAP, {0, 0, 0, 0}};
  unified_pool_config_t pool = {1, 2, true, true, true, 3, 0.5};
  static const size_t sizes[] = {64};
  qmem_pool_config_t blocks = {sizes, 1, 2, 3, true, {0, 0, 0, 0}};
  qmem_object_pool_config_t objects = {NULL, NULL, NULL, NULL, 1, 2, {0, 0, 0, 0}};
  memory_stats_t stats = {1, 2, 3, 4, 5, 0.5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 0.25, {0, 0, 0, 0, 0, 0, 0, 0}};
  qmem_workload_t workload = {1, 16, 2, 1.5, {0, 0, 0, 0}};
  qmem_complex_t complex_number = {1.0, 2.0};
  tree_tensor_node_t node = {1, 2, 3, 4, NULL, NULL, NULL, NULL, true, true};
  struct tree_tensor_node *same_node = &node;
  tensor_network_metrics_t metrics = {1, 2, 0.1, 0.2, 0.3};
  tree_tensor_network_t network = {&node, 1, 2, 3, 0.5, NULL, {0, 0, 0, 0, 0}};
  struct tree_tensor_network *same_network = &network;
  tensor_stream_t *stream = NULL;
  qmem_layout_t layout;
  qmem_estimate_t estimate;
  CHECK(allocation.enable_swapping && allocation.max_memory == 1 && cache.enable_monitoring && cache.strategy == CACHE_LIRS);
  CHECK(resources.enable_optimization && resources.max_resources == 1 && tuning.target_metrics.efficiency && tuning.enable_learning);
  CHECK(adaptive.threshold == 0.25 && adaptive.use_gpu && ensemble.num_managers == 3 && ensemble.enable_quantum);
  CHECK(whole.error_budget == 0.5 && whole.monitoring_level == MONITOR_BASIC && recovery.checkpoint_interval == 2);
  CHECK(blocks.max_capacity == 3 && blocks.thread_cache && objects.create == NULL && objects.max_size == 2);
  CHECK(recovery.enable_logging && pool.chunk_size == 3 && pool.compression_tolerance == 0.5);
  CHECK(stats.fragmentation == 0.5 && stats.cache_hits == 6 && stats.evictions == 17 && stats.error_spent == 0.25);
  CHECK(workload.expected_ratio == 1.5 && complex_number.im == 2.0 && sizeof complex_number == 16);
  CHECK(same_node->use_hierarchical && metrics.contraction_time == 0.3 && same_network->tolerance == 0.5 && stream == NULL);
  CHECK(sizeof layout.dimensions == 16 * sizeof(size_t) && sizeof layout.strides == 16 * sizeof(size_t));
  CHECK(sizeof estimate.advice == 256 && sizeof estimate.fits_with_swap == 1);
  {
    unified_memory_interface_t *table = qmem_unified_interface();
    void *(*allocate)(size_t, size_t) = table->allocate;
    void (*release)(void *) = table->free;
    void *(*change)(void *, size_t) = table->realloc;
    void *(*geometric)(size_t *, size_t) = table->allocate_geometric;
    void *(*hierarchical)(size_t, double) = table->allocate_hierarchical;
    void *(*streaming)(size_t, size_t) = table->allocate_streaming;
    bool (*track)(void *, size_t) = table->track_allocation;
    bool (*untrack)(void *) = table->untrack_allocation;
    void (*get)(memory_stats_t *) = table->get_stats;
    CHECK(allocate && release && change && geometric && hierarchical && streaming && track && untrack && get);
  }
}

int main(void) {
  functions();
  structs();
  return finish();
}
