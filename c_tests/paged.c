/* needs paged memory */
/* Paged buffers through the API: which requests are paged, that contents survive a budget smaller than the buffer, pins, hints,
   resizing, leaks, and the commit rule. */
#include "check.h"
#include <quantum_memory.h>

#define MIB ((size_t)1 << 20)

static memory_allocation_config_t config_of(allocation_type_t type, size_t max_memory, bool swapping) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.allocation_type = type;
  config.max_memory = max_memory;
  config.enable_compression = true;
  config.enable_deduplication = true;
  config.enable_swapping = swapping;
  return config;
}

static void end(void) {
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

static void kinds(void) {
  memory_allocation_config_t config = config_of(ALLOC_QUANTUM, 64 * MIB, false);
  void *small, *large;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  small = qmem_allocate(65535, 0);
  large = qmem_allocate(65536, 0);
  CHECK(qmem_kind(small) == QMEM_MEMORY_HEAP && qmem_kind(large) == QMEM_MEMORY_PAGED);
  qmem_free(small);
  qmem_free(large);
  end();
  config = config_of(ALLOC_HYBRID, 64 * MIB, false);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  small = qmem_allocate(MIB - 1, 0);
  large = qmem_allocate(MIB, 0);
  CHECK(qmem_kind(small) == QMEM_MEMORY_HEAP && qmem_kind(large) == QMEM_MEMORY_PAGED);
  CHECK(qmem_kind((char *)large + MIB - 1) == QMEM_MEMORY_PAGED);
  qmem_free(small);
  qmem_free(large);
  end();
  config = config_of(ALLOC_CLASSICAL, 64 * MIB, false);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  small = qmem_allocate(8 * MIB, 0);
  large = qmem_allocate_streaming(8 * MIB, 0);
  CHECK(qmem_kind(small) == QMEM_MEMORY_HEAP && qmem_kind(large) == QMEM_MEMORY_PAGED);
  qmem_free(small);
  qmem_free(large);
  end();
}

static void larger_than_memory(void) {
  memory_allocation_config_t config = config_of(ALLOC_QUANTUM, 64 * MIB, true);
  memory_stats_t stats;
  size_t n = 256 * MIB / 8, i;
  uint64_t *state;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  STATUS(MEMORY_STATUS_OK, qmem_reset_peaks());
  state = (uint64_t *)qmem_allocate(n * 8, 0);
  CHECK(state != NULL);
  if (state == NULL)
    return;
  for (i = 0; i < n; i++)
    state[i] = i * 0x9E3779B97F4A7C15u;
  for (i = 0; i < n; i++)
    if (state[i] != i * 0x9E3779B97F4A7C15u)
      break;
  CHECK(i == n);
  stats = stats_now();
  CHECK(stats.peak_resident_bytes <= 64 * MIB && stats.resident_bytes <= stats.budget_bytes);
  CHECK(stats.logical_bytes == n * 8);
  STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(state, &stats));
  CHECK(stats.logical_bytes == n * 8 && stats.resident_bytes <= 64 * MIB && stats.evictions > 0 && stats.page_faults > 0);
  qmem_free(state);
  end();
}

static void hints(void) {
  memory_allocation_config_t config = config_of(ALLOC_QUANTUM, 64 * MIB, true);
  memory_stats_t stats;
  unsigned char *state;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  state = (unsigned char *)qmem_allocate_zeroed(128 * MIB, 0);
  CHECK(state != NULL);
  memset(state, 3, 16 * MIB);
  STATUS(MEMORY_STATUS_OK, qmem_evict(state, 16 * MIB));
  STATUS(MEMORY_STATUS_OK, qmem_prefetch(state, 8 * MIB));
  STATUS(MEMORY_STATUS_OK, qmem_pin(state, 8 * MIB));
  STATUS(MEMORY_STATUS_OK, qmem_pin(state, 8 * MIB));
  CHECK(state[0] == 3 && state[8 * MIB] == 3 && state[16 * MIB] == 0);
  STATUS(MEMORY_STATUS_OK, qmem_unpin(state, 8 * MIB));
  STATUS(MEMORY_STATUS_OK, qmem_unpin(state, 8 * MIB));
  STATUS(MEMORY_STATUS_LIMIT, qmem_pin(state, 128 * MIB));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "bytes", qmem_pin(state + 1, 128 * MIB));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "bytes", qmem_prefetch(state, SIZE_MAX));
  STATUS(MEMORY_STATUS_OK, qmem_pin(state, 0));
  state = (unsigned char *)qmem_realloc(state, 160 * MIB);
  CHECK(state != NULL && state[16 * MIB - 1] == 3 && state[160 * MIB - 1] == 0);
  CHECK(qmem_kind(state) == QMEM_MEMORY_PAGED);
  STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(state, &stats));
  CHECK(stats.logical_bytes == 160 * MIB);
  state = (unsigned char *)qmem_realloc(state, 8 * MIB);
  CHECK(state != NULL && state[8 * MIB - 1] == 3);
  qmem_retain(state);
  qmem_free(state);
  CHECK(state[0] == 3);
  qmem_free(state);
  CHECK(qmem_kind(state) == QMEM_MEMORY_UNKNOWN);
  end();
}

static void commit_rule(void) {
  memory_allocation_config_t config = config_of(ALLOC_QUANTUM, 64 * MIB, false);
  void *state;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  REFUSED("budget", qmem_allocate(65 * MIB, 0));
  CHECK(!qmem_can_allocate(65 * MIB) && qmem_can_allocate(32 * MIB));
  end();
  config.strategy = STRATEGY_COMPACT; /* bets */
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  state = qmem_allocate(256 * MIB, 0);
  CHECK(state != NULL);
  qmem_free(state);
  end();
}

static void after_stop(void) {
  memory_allocation_config_t config = config_of(ALLOC_QUANTUM, 64 * MIB, true);
  unsigned char *state;
  size_t i;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  state = (unsigned char *)qmem_allocate(128 * MIB, 0);
  memset(state, 5, 100 * MIB);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  REFUSED("stopped", qmem_allocate(MIB, 0));
  REFUSED("stopped", qmem_allocate_hierarchical(MIB, 0));
  REFUSED("stopped", qmem_allocate_streaming(MIB, 0));
  for (i = 0; i < 100 * MIB; i += 4096) /* faults are still served */
    if (state[i] != 5)
      break;
  CHECK(i == 100 * MIB);
  memset(state, 6, 128 * MIB);
  CHECK(state[128 * MIB - 1] == 6);
  fprintf(stderr, "(one leak of 134217728 bytes is to be reported here)\n");
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  CHECK(qmem_kind(state) == QMEM_MEMORY_UNKNOWN && stats_now().logical_bytes == 0);
}

static void pool_bound(void) {
  memory_allocation_config_t config = config_of(ALLOC_QUANTUM, 128 * MIB, true);
  unified_pool_config_t pool;
  memory_stats_t stats;
  unsigned char *state;
  size_t i;
  memset(&pool, 0, sizeof pool);
  pool.max_size = 32 * MIB;
  pool.enable_growth = pool.enable_streaming = true;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&pool));
  state = (unsigned char *)qmem_unified_interface()->allocate_streaming(96 * MIB, 0);
  CHECK(state != NULL);
  for (i = 0; i < 96 * MIB; i += 64)
    state[i] = (unsigned char)(i * 0x9E3779B1u >> 13);
  STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(state, &stats));
  CHECK(stats.resident_bytes <= 32 * MIB);
  for (i = 0; i < 96 * MIB; i += 64)
    if (state[i] != (unsigned char)(i * 0x9E3779B1u >> 13))
      break;
  CHECK(i == 96 * MIB);
  qmem_unified_interface()->free(state);
  STATUS(MEMORY_STATUS_OK, stop_unified_memory());
  STATUS(MEMORY_STATUS_OK, cleanup_unified_memory());
  end();
}

static void without_initialisation(void) {
  unsigned char *state = (unsigned char *)qmem_allocate_hierarchical(8 * MIB, 1e-4);
  CHECK(state != NULL && qmem_kind(state) == QMEM_MEMORY_PAGED);
  CHECK(stats_now().budget_bytes > 0); /* the default one came into force */
  if (state != NULL)
    memset(state, 1, 8 * MIB);
  qmem_free(state);
}

int main(void) {
  without_initialisation();
  kinds();
  larger_than_memory();
  hints();
  commit_rule();
  after_stop();
  pool_bound();
  return finish();
}
