/* valgrind: heap only */
/* The life cycle of memory allocation: every call in every phase, and what blocks may do in each. */
#include "check.h"
#include <quantum_memory.h>

static memory_allocation_config_t classical(size_t max_memory) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_CLASSICAL;
  config.max_memory = max_memory;
  return config;
}

static void never_started(void) {
  void *early = qmem_allocate(100, 0);
  CHECK(early != NULL);
  CHECK(stats_now().budget_bytes == 0);
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "never initialised", stop_memory_allocation());
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "never initialised", cleanup_allocation_resources());
  qmem_free(early);
}

static void whole_life(void) {
  memory_allocation_config_t config = classical(64 << 20);
  void *before = qmem_allocate(100, 0), *during, *leftover;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  CHECK(stats_now().budget_bytes == 64 << 20);
  FAILS(MEMORY_STATUS_ALREADY_INITIALIZED, "runs already", initialize_memory_allocation(&config));
  FAILS(MEMORY_STATUS_BUSY, "stop it first", cleanup_allocation_resources());
  during = qmem_allocate(1000, 0);
  leftover = qmem_allocate(5000, 0);
  CHECK(during != NULL && leftover != NULL);

  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  FAILS(MEMORY_STATUS_BUSY, "not cleaned up", initialize_memory_allocation(&config));
  REFUSED("stopped", qmem_allocate(1, 0));
  REFUSED("stopped", qmem_allocate_zeroed(1, 0));
  REFUSED("stopped", qmem_realloc(during, 2000));
  CHECK(!qmem_can_allocate(1));
  memset(during, 7, 1000);
  CHECK(((unsigned char *)during)[999] == 7);
  qmem_free(during);

  fprintf(stderr, "(one leak of 5000 bytes is to be reported here)\n");
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  CHECK(qmem_kind(leftover) == QMEM_MEMORY_UNKNOWN);
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  REFUSED("cleaned up", qmem_allocate(1, 0));
  CHECK(stats_now().budget_bytes == 0);
  CHECK(qmem_kind(before) == QMEM_MEMORY_HEAP);
  CHECK(stats_now().current_allocated == 100);
  qmem_free(before);
  CHECK(stats_now().current_allocated == 0);
}

static void again(void) {
  int round;
  for (round = 0; round < 3; round++) {
    memory_allocation_config_t config = classical((size_t)(32 + round) << 20);
    void *block;
    STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
    CHECK(stats_now().budget_bytes == (size_t)(32 + round) << 20);
    block = qmem_allocate(10, 0);
    CHECK(block != NULL);
    qmem_free(block);
    STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
    STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  }
}

static void absent_subsystems(void) {
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_cache_optimization());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_resource_management());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_performance_tuning());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_adaptive_memory());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_memory_ensemble());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_memory_recovery());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, cleanup_cache_resources());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, cleanup_management_resources());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, cleanup_tuning_resources());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, cleanup_adaptive_memory());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, cleanup_memory_ensemble());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, cleanup_memory_recovery());
}

static void everything_at_once(void) {
  memory_allocation_config_t config = classical(64 << 20);
  cleanup_memory_system(); /* nothing runs: nothing happens */
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  cleanup_memory_system();
  REFUSED("cleaned up", qmem_allocate(1, 0));
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  cleanup_memory_system();
}

int main(void) {
  never_started();
  absent_subsystems();
  whole_life();
  again();
  everything_at_once();
  return finish();
}
