/* needs paged memory. Private anonymous mappings as paged memory: mmap, mremap, munmap whole and in part, madvise, and the mappings that
   are not paged. Run with QMEM_BUDGET=64M, QMEM_PRELOAD_THRESHOLD=1M and QMEM_PRELOAD_MMAP=1. */
#include "check.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

#define MIB ((size_t)1 << 20)
static qmem_memory_kind_t (*kind)(const void *);
static bool paged(const void *block) { return kind(block) == QMEM_MEMORY_PAGED; }

static char *map(size_t size, int rights, int flags) {
  char *block = mmap(NULL, size, rights, flags, -1, 0);
  CHECK(block != MAP_FAILED);
  return block;
}
static void fill(char *block, size_t size) {
  for (size_t i = 0; i < size; i += 512) block[i] = (char)(i >> 9);
}
static bool holds(const char *block, size_t from, size_t to) {
  for (size_t i = from; i < to; i += 512)
    if (block[i] != (char)(i >> 9)) return false;
  return true;
}
static bool zero(const char *block, size_t from, size_t to) {
  for (size_t i = from; i < to; i += 512)
    if (block[i]) return false;
  return true;
}

int main(void) {
  int plain = MAP_PRIVATE | MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
  *(void **)&kind = dlsym(RTLD_DEFAULT, "qmem_kind");
  if (!kind) return skip("the preload is not there");
  char *block = map(100 * MIB, both, plain);
  CHECK(paged(block) && paged(block + 100 * MIB - 1));
  fill(block, 100 * MIB);
  CHECK(holds(block, 0, 100 * MIB));
  block = mremap(block, 100 * MIB, 130 * MIB, MREMAP_MAYMOVE);
  CHECK(block != MAP_FAILED && paged(block) && holds(block, 0, 100 * MIB) && zero(block, 100 * MIB, 130 * MIB));
  errno = 0;
  CHECK(mremap(block, 130 * MIB, 200 * MIB, 0) == MAP_FAILED && errno == ENOMEM);
  CHECK(madvise(block + 4 * MIB, 6 * MIB, MADV_DONTNEED) == 0 && madvise(block + 4096, 8192, MADV_DONTNEED) == 0);
  CHECK(zero(block, 4 * MIB, 10 * MIB) && zero(block, 4096, 12288) && holds(block, 12288, 4 * MIB) && holds(block, 10 * MIB, 100 * MIB));
  CHECK(madvise(block + 20 * MIB, 8 * MIB, MADV_FREE) == 0 && madvise(block, 20 * MIB, MADV_WILLNEED) == 0);
  CHECK(munmap(block + 64 * MIB, 66 * MIB) == 0 && holds(block, 10 * MIB, 20 * MIB)); /* an end */
  CHECK(munmap(block, 130 * MIB) == 0 && !paged(block));
  /* what is not paged */
  char *small = map(MIB / 2, both, plain), *none = map(8 * MIB, PROT_NONE, plain), *shared = map(8 * MIB, both, MAP_SHARED | MAP_ANONYMOUS);
  CHECK(!paged(small) && !paged(none) && !paged(shared));
  small[0] = shared[0] = 1;
  CHECK(mprotect(none, 8 * MIB, both) == 0 && munmap(small, MIB / 2) == 0 && munmap(none, 8 * MIB) == 0 && munmap(shared, 8 * MIB) == 0);
  errno = 0;
  CHECK(mmap(NULL, (size_t)1 << 46, both, plain, -1, 0) == MAP_FAILED && errno == ENOMEM);
  /* a block from malloc is advised like a mapping */
  block = malloc(80 * MIB);
  fill(block, 80 * MIB);
  CHECK(madvise(block, 80 * MIB, MADV_DONTNEED) == 0 && zero(block, 0, 80 * MIB));
  free(block);
  return finish();
}
