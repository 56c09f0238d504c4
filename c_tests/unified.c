/* valgrind: heap only */
/* The unified pool on the heap: life cycle, bounds, reservation, and that it needs no memory allocation to be initialised. */
#include "check.h"
#include <quantum_memory.h>

static unified_pool_config_t pool(size_t initial_size, size_t max_size, bool growth) {
  unified_pool_config_t config;
  memset(&config, 0, sizeof config);
  config.initial_size = initial_size;
  config.max_size = max_size;
  config.enable_growth = growth;
  config.use_geometric_layout = true;
  config.enable_streaming = true;
  return config;
}

static void end(void) {
  STATUS(MEMORY_STATUS_OK, stop_unified_memory());
  STATUS(MEMORY_STATUS_OK, cleanup_unified_memory());
}

static void life(unified_memory_interface_t *memory) {
  unified_pool_config_t config = pool(0, 0, true);
  void *block, *leftover;
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "never initialised", stop_unified_memory());
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "never initialised", cleanup_unified_memory());
  block = memory->allocate(100, 0); /* works before initialisation too */
  CHECK(block != NULL);
  memory->free(block);

  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
  FAILS(MEMORY_STATUS_ALREADY_INITIALIZED, "runs already", initialize_unified_memory(&config));
  FAILS(MEMORY_STATUS_BUSY, "stop it first", cleanup_unified_memory());
  block = memory->allocate(100, 128);
  leftover = memory->allocate(777, 0);
  CHECK(block != NULL && (size_t)block % 128 == 0 && leftover != NULL);
  STATUS(MEMORY_STATUS_OK, stop_unified_memory());
  STATUS(MEMORY_STATUS_OK, stop_unified_memory());
  FAILS(MEMORY_STATUS_BUSY, "not cleaned up", initialize_unified_memory(&config));
  REFUSED("stopped", memory->allocate(1, 0));
  REFUSED("stopped", memory->realloc(block, 1000));
  memset(block, 1, 100);
  memory->free(block);
  fprintf(stderr, "(one leak of 777 bytes is to be reported here)\n");
  STATUS(MEMORY_STATUS_OK, cleanup_unified_memory());
  CHECK(qmem_kind(leftover) == QMEM_MEMORY_UNKNOWN);
  STATUS(MEMORY_STATUS_OK, cleanup_unified_memory());
  REFUSED("cleaned up", memory->allocate(1, 0));
  block = qmem_allocate(1, 0); /* memory allocation itself was never initialised, so it gives */
  CHECK(block != NULL);
  qmem_free(block);
}

static void bounds(unified_memory_interface_t *memory) {
  unified_pool_config_t config = pool(1 << 20, 4 << 20, false);
  void *a, *b;
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config)); /* no growth: initial_size is all */
  a = memory->allocate(1 << 19, 0);
  b = memory->allocate(1 << 19, 0);
  CHECK(a != NULL && b != NULL);
  REFUSED("enable_growth", memory->allocate(1, 0));
  REFUSED("enable_growth", memory->realloc(a, (1 << 19) + 1));
  a = memory->realloc(a, 1 << 18);
  CHECK(a != NULL);
  memory->free(memory->allocate(1 << 18, 0)); /* what the block gave up is there again */
  memory->free(b);
  b = memory->allocate(3 << 18, 0);
  CHECK(b != NULL);
  memory->free(a);
  memory->free(b);
  end();

  config = pool(0, 1 << 20, false); /* no growth and no initial_size: max_size is all */
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
  REFUSED("enable_growth", memory->allocate((1 << 20) + 1, 0));
  memory->free(memory->allocate(1 << 20, 0));
  end();

  config = pool(1 << 20, 2 << 20, true); /* growth up to max_size */
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
  a = memory->allocate(2 << 20, 0);
  CHECK(a != NULL);
  REFUSED("max_size", memory->allocate(1, 0));
  memory->free(a);
  end();
}

static void reservation(void) {
  memory_allocation_config_t allocation;
  unified_pool_config_t config;
  void *block, *other = NULL;
  memset(&allocation, 0, sizeof allocation);
  allocation.max_memory = 64 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&allocation));
  config = pool(65 << 20, 0, true);
  FAILS(MEMORY_STATUS_OUT_OF_MEMORY, "refused", initialize_unified_memory(&config));
  CHECK(qmem_can_allocate(32 << 20)); /* nothing was changed */
  config = pool(48 << 20, 0, true);
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
  CHECK(!qmem_can_allocate(32 << 20)); /* 48 of 64 MiB are the pool's */
  CHECK(qmem_can_allocate(4 << 20));
  REFUSED("reserved", qmem_allocate(32 << 20, 0));
  block = qmem_unified_interface()->allocate(40 << 20, 0); /* the pool's own blocks fill it */
  CHECK(block != NULL);
  REFUSED("reserved", qmem_realloc(other = qmem_allocate(1 << 20, 0), 24 << 20));
  qmem_free(other);
  qmem_free(block);
  end();
  CHECK(qmem_can_allocate(32 << 20));
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation()); /* ends the pool too, which depends on it */
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  STATUS(MEMORY_STATUS_OK, cleanup_unified_memory());
}

static void layouts(unified_memory_interface_t *memory) {
  size_t dimensions[2] = {4, 64};
  qmem_layout_t layout;
  unified_pool_config_t config = pool(0, 0, true);
  int padded;
  for (padded = 0; padded < 2; padded++) {
    void *array;
    config.use_geometric_layout = padded != 0;
    STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
    array = memory->allocate_geometric(dimensions, 2);
    STATUS(MEMORY_STATUS_OK, qmem_get_layout(array, &layout));
    CHECK(layout.strides[0] == (padded ? 68u : 64u));
    memory->free(array);
    end();
  }
}

static void streaming_off(unified_memory_interface_t *memory) {
  unified_pool_config_t config = pool(0, 0, true);
  config.enable_streaming = false;
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
  REFUSED("enable_streaming", memory->allocate_streaming(1 << 20, 0));
  REFUSED("enable_streaming", qmem_allocate_streaming(1 << 20, 0));
  end();
}

int main(void) {
  unified_memory_interface_t *memory = qmem_unified_interface();
  CHECK(memory != NULL);
  life(memory);
  bounds(memory);
  layouts(memory);
  streaming_off(memory);
  reservation();
  return finish();
}
