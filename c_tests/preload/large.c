/* needs paged memory. Large blocks under a budget, whichever function asked: right data in more than the budget, resident bytes
   bounded, growth and shrinking from heap to pager and back. Run with QMEM_BUDGET=48M and QMEM_PRELOAD_THRESHOLD=1M. */
#include "check.h"
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static qmem_memory_kind_t (*kind)(const void *);
static bool paged(const void *block) { return kind(block) == QMEM_MEMORY_PAGED; }

static void fill(uint64_t *words, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes / 8; i++) words[i] = (seed + i) * 0x9E3779B97F4A7C15u;
}
static bool holds(const uint64_t *words, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes / 8; i++)
    if (words[i] != (seed + i) * 0x9E3779B97F4A7C15u) return false;
  return true;
}

static size_t peak_kib(void) {
  char line[256];
  size_t peak = 0;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file)) sscanf(line, "VmHWM: %zu", &peak);
  if (file) fclose(file);
  return peak;
}

static void every_function(void) {
  void *place = NULL;
  void *blocks[] = {malloc(4 * MIB), calloc(4, MIB), realloc(NULL, 4 * MIB), reallocarray(NULL, 4, MIB), memalign(4 * MIB, 4 * MIB),
                    aligned_alloc(64, 4 * MIB), valloc(4 * MIB), pvalloc(4 * MIB - 100), NULL};
  CHECK(posix_memalign(&place, 8 * MIB, 4 * MIB) == 0 && (uintptr_t)place % (8 * MIB) == 0);
  blocks[8] = place;
  for (int i = 0; i < 9; i++) {
    CHECK(blocks[i] && paged(blocks[i]) && malloc_usable_size(blocks[i]) >= 4 * MIB - 100);
    fill(blocks[i], 4 * MIB - 104, (uint64_t)i);
  }
  CHECK((uintptr_t)blocks[4] % (4 * MIB) == 0 && (uintptr_t)blocks[6] % 4096 == 0);
  for (int i = 0; i < 9; i++) {
    CHECK(holds(blocks[i], 4 * MIB - 104, (uint64_t)i));
    free(blocks[i]);
  }
  void *small = malloc(MIB - 1);
  CHECK(kind(small) == QMEM_MEMORY_HEAP);
  free(small);
}

static void more_than_the_budget(void) {
  uint64_t *state = malloc(200 * MIB);
  CHECK(state && paged(state));
  fill(state, 200 * MIB, 1);
  CHECK(holds(state, 200 * MIB, 1));
  uint64_t *zero = calloc(100, MIB);
  CHECK(zero && paged(zero));
  for (size_t i = 0; i < 100 * MIB / 8; i += 512) CHECK(zero[i] == 0);
  free(zero);
  CHECK(holds(state, 200 * MIB, 1));
  free(state);
}

static void growing(void) {
  uint64_t *block = malloc(1000);
  size_t size = 1000;
  fill(block, size, 5);
  while (size < 60 * MIB) { /* heap, then paged, twice as large each time */
    uint64_t *grown = realloc(block, size * 2);
    CHECK(grown && holds(grown, size, 5));
    CHECK(paged(grown) == (size * 2 >= MIB));
    block = grown;
    size *= 2;
    fill(block, size, 5);
  }
  while (size > 1000) {
    size /= 2;
    block = realloc(block, size);
    CHECK(block && holds(block, size, 5));
  }
  CHECK(kind(block) == QMEM_MEMORY_HEAP);
  free(block);
}

static void refused(void) {
  errno = 0;
  void *block = malloc((size_t)1 << 46);
  CHECK(block == NULL && errno == ENOMEM);
  uint64_t *words = malloc(2 * MIB);
  fill(words, 2 * MIB, 3);
  errno = 0;
  CHECK(realloc(words, (size_t)1 << 46) == NULL && errno == ENOMEM && holds(words, 2 * MIB, 3));
  free(words);
}

int main(void) {
  *(void **)&kind = dlsym(RTLD_DEFAULT, "qmem_kind");
  if (!kind) return skip("the preload is not there");
  alarm(300);
  every_function();
  more_than_the_budget();
  growing();
  refused();
  CHECK(peak_kib() < (48 + 32) * 1024);
  return finish();
}
