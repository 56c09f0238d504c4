/* needs paged memory */
/* The page's own handle_memory_error, word for word: an allocation over the budget succeeds through swapping, and the caller never
   notices; whatever the allocation type. And what the handler's other cases do to an operation that fails. */
#include "check.h"
#include <quantum_memory.h>

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

static void over_the_budget(allocation_type_t type, bool zeroed) {
  const size_t size = (size_t)192 << 20;
  memory_allocation_config_t config;
  size_t i;
  unsigned char *block;
  memset(&config, 0, sizeof config);
  config.allocation_type = type;
  config.max_memory = (size_t)64 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  CHECK(!qmem_can_allocate(size));
  block = (unsigned char *)(zeroed ? qmem_allocate_zeroed(size, 4096) : qmem_allocate(size, 4096));
  CHECK(block != NULL && qmem_kind(block) == QMEM_MEMORY_PAGED && (size_t)block % 4096 == 0);
  if (block != NULL) {
    CHECK(qmem_usable_size(block) >= size);
    for (i = 0; i < size; i += 4096)
      memcpy(block + i, &i, sizeof i);
    for (i = 0; i < size; i += 4096)
      if (memcmp(block + i, &i, sizeof i) != 0 || (zeroed && block[i + 4095] != 0))
        break;
    CHECK(i == size);
    CHECK(stats_now().peak_resident_bytes <= (size_t)64 << 20);
    CHECK(stats_now().num_allocations - stats_now().num_frees == 1);
    qmem_free(block);
  }
  CHECK(stats_now().current_allocated == 0);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

static int runs;
static memory_status_t succeeds_the_second_time(void *user) {
  (void)user;
  return ++runs == 2 ? MEMORY_STATUS_OK : MEMORY_STATUS_BUSY;
}

int main(void) {
  over_the_budget(ALLOC_QUANTUM, true);
  over_the_budget(ALLOC_HYBRID, false);
  over_the_budget(ALLOC_CLASSICAL, true);
  over_the_budget(ALLOC_QUANTUM, false); /* swapping is off again with the new config, until the handler enables it */
  STATUS(MEMORY_STATUS_OK, qmem_run_operation(MEMORY_ERROR_CACHE, "a full cache", succeeds_the_second_time, NULL));
  CHECK(runs == 2);
  runs = 2;
  FAILS(MEMORY_STATUS_ABORTED, "a device", qmem_run_operation(MEMORY_ERROR_DEVICE, "a device", succeeds_the_second_time, NULL));
  CHECK(runs == 3); /* aborted: not retried */
  return finish();
}
