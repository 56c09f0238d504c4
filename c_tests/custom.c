/* valgrind: heap only */
/* ALLOC_CUSTOM: the program's own memory system behind qmem_allocate. */
#include "check.h"
#include <quantum_memory.h>

static int allocations, frees, reallocs, misalign, fail;

static void *own_allocate(size_t size, size_t alignment) {
  void *block = NULL;
  if (fail || posix_memalign(&block, alignment < sizeof(void *) ? sizeof(void *) : alignment, size + 64) != 0)
    return NULL;
  allocations++;
  memset(block, 0xCC, size);
  return misalign ? (char *)block + 8 : block;
}
static void own_free(void *block) {
  frees++;
  (void)qmem_kind(block); /* qmem may be called from here: no lock is held */
  free(misalign ? (char *)block - 8 : block);
}
static void *own_realloc(void *block, size_t size) {
  reallocs++;
  return fail ? NULL : realloc(block, size);
}
static void *own_streaming(size_t total_size, size_t chunk_size) { return own_allocate(total_size, chunk_size > 4096 ? 4096 : 64); }

static void use(bool with_realloc) {
  unified_memory_interface_t mine, other;
  memory_allocation_config_t config;
  unsigned char *block, *zeroed, *leftover;
  size_t dimensions[2] = {2, 64}, before = stats_now().current_allocated;
  qmem_layout_t layout;
  memset(&mine, 0, sizeof mine);
  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_CUSTOM;
  config.max_memory = 64 << 20;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "custom is NULL", qmem_register_interface(NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "allocate", qmem_register_interface(&mine));
  mine.allocate = own_allocate;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "free", qmem_register_interface(&mine));
  mine.free = own_free;
  mine.allocate_streaming = own_streaming;
  if (with_realloc)
    mine.realloc = own_realloc;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "own interface", qmem_register_interface(qmem_unified_interface()));
  STATUS(MEMORY_STATUS_OK, qmem_register_interface(&mine));
  other = mine;
  memset(&mine, 0xFF, sizeof mine); /* it was copied */
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));

  allocations = frees = reallocs = 0;
  block = (unsigned char *)qmem_allocate(1000, 256);
  CHECK(block != NULL && (size_t)block % 256 == 0 && allocations == 1);
  CHECK(qmem_kind(block) == QMEM_MEMORY_CUSTOM && qmem_usable_size(block) >= 1000);
  CHECK(stats_now().current_allocated == before + 1000);
  zeroed = (unsigned char *)qmem_allocate_zeroed(100, 0);
  CHECK(zeroed[0] == 0 && zeroed[99] == 0);
  block[999] = 42;
  block = (unsigned char *)qmem_realloc(block, 5000);
  CHECK(block != NULL && block[999] == 42 && reallocs == (with_realloc ? 1 : 0));
  CHECK(stats_now().current_allocated == before + 5100);
  fail = 1;
  CHECK(qmem_realloc(block, 10000) == NULL && block[999] == 42);
  REFUSED("returned NULL", qmem_allocate(10, 0));
  fail = 0;
  misalign = 1;
  REFUSED("not aligned", qmem_allocate(10, 0));
  misalign = 0;
  qmem_retain(block);
  qmem_free(block);
  CHECK(qmem_kind(block) == QMEM_MEMORY_CUSTOM);
  qmem_free(block);
  CHECK(qmem_kind(block) == QMEM_MEMORY_UNKNOWN);
  block = (unsigned char *)qmem_allocate_geometric(dimensions, 2);
  STATUS(MEMORY_STATUS_OK, qmem_get_layout(block, &layout));
  CHECK(qmem_kind(block) == QMEM_MEMORY_CUSTOM && layout.strides[0] == 68);
  qmem_free(block);
  block = (unsigned char *)qmem_allocate_streaming(1 << 20, 0);
  CHECK(qmem_kind(block) == QMEM_MEMORY_CUSTOM);
  qmem_free(block);
  qmem_free(zeroed);
  CHECK(stats_now().current_allocated == before);

  leftover = (unsigned char *)qmem_allocate(321, 0);
  CHECK(leftover != NULL);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  FAILS(MEMORY_STATUS_BUSY, "live", qmem_register_interface(&other));
  fprintf(stderr, "(one leak of 321 bytes is to be reported here)\n");
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  CHECK(frees == allocations);
}

int main(void) {
  use(false);
  use(true);
  return finish();
}
