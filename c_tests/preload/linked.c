/* needs paged memory. A program that is linked with qmem (libqmem.so or libqmem.a) and preloaded: one registry, one budget, one
   pager, its own error handler; any pointer may be freed through either. Run with QMEM_BUDGET=64M, QMEM_PRELOAD_THRESHOLD=1M. */
#include "check.h"
#include <errno.h>
#include <malloc.h>
#include <quantum_memory.h>

#define MIB ((size_t)1 << 20)
static int handled;
void handle_memory_error(memory_error_t error) { handled += error == MEMORY_ERROR_ALLOCATION; }

static void either_way(void) {
  for (size_t size = 1; size < 8 * MIB; size *= 3) {
    memory_stats_t before = stats_now();
    char *theirs = malloc(size), *ours = qmem_allocate(size, 0);
    CHECK(qmem_kind(theirs) == (size >= MIB ? QMEM_MEMORY_PAGED : QMEM_MEMORY_HEAP) && qmem_kind(ours) != QMEM_MEMORY_UNKNOWN);
    CHECK(qmem_usable_size(theirs) >= size && malloc_usable_size(ours) >= size && qmem_refcount(theirs) == 1);
    memset(theirs, 1, size), memset(ours, 2, size);
    theirs = qmem_realloc(theirs, size * 2);
    ours = realloc(ours, size * 2);
    CHECK(theirs && ours && theirs[size - 1] == 1 && ours[size - 1] == 2);
    CHECK(stats_now().num_allocations == before.num_allocations + 1); /* the program's malloc is no block of the API's */
    qmem_free(theirs);
    free(ours);
    memory_stats_t after = stats_now();
    CHECK(after.current_allocated == before.current_allocated && after.num_frees == before.num_frees + 1);
  }
  char *block = qmem_allocate(100, 0);
  CHECK(qmem_retain(block) == block);
  free(block); /* one of two references */
  CHECK(qmem_refcount(block) == 1);
  free(block);
  block = malloc(100);
  CHECK(qmem_retain(block) == block && qmem_refcount(block) == 2);
  qmem_free(block);
  free(block);
}

static void one_budget(void) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_QUANTUM;
  config.max_memory = (size_t)1 << 40; /* more than the person at the command line allows */
  CHECK(stats_now().budget_bytes == 64 * MIB);
  char *before = malloc(2 * MIB);
  memset(before, 3, 2 * MIB);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  CHECK(stats_now().budget_bytes == 64 * MIB);
  char *state = qmem_allocate(100 * MIB, 0), *array = malloc(100 * MIB);
  CHECK(state && array); /* swap is the preload's, though the config has none */
  for (size_t i = 0; i < 100 * MIB; i += 512) state[i] = array[i] = (char)(i >> 12);
  for (size_t i = 0; i < 100 * MIB; i += 512) CHECK(state[i] == (char)(i >> 12) && array[i] == (char)(i >> 12));
  CHECK(stats_now().logical_bytes >= 202 * MIB && stats_now().peak_resident_bytes <= 64 * MIB);
  qmem_free(state);
  CHECK(qmem_allocate((size_t)1 << 46, 0) == NULL && handled == 1);
  CHECK(malloc((size_t)1 << 46) == NULL && errno == ENOMEM && handled == 1);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  char *still = malloc(2 * MIB); /* malloc does not stop with the API */
  CHECK(still && qmem_kind(still) == QMEM_MEMORY_PAGED);
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  for (size_t i = 0; i < 100 * MIB; i += 512) CHECK(array[i] == (char)(i >> 12)); /* nor is its data cleaned up */
  CHECK(before[MIB] == 3 && stats_now().budget_bytes == 64 * MIB);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  free(still), free(array), free(before);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

int main(void) {
  either_way();
  one_budget();
  return finish();
}
