/* The kinds of memory that are compared: anonymous pages, huge pages, a shared file mapping, and qmem. Called by the jobs.
   The only file that names qmem; with -DBENCH_WITHOUT_QMEM the program measures the peers alone. */
#define _GNU_SOURCE
#include "bench.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifndef BENCH_WITHOUT_QMEM
#include <qmem.h>
#include <quantum_memory.h>
#endif

bool memory_kind_of(const char *name, memory_kind *kind) {
  static const char *const names[] = {"plain", "huge", "mmap-file", "qmem"};
  for (unsigned i = 0; i < 4; i++)
    if (strcmp(name, names[i]) == 0) return *kind = (memory_kind)i, true;
  return false;
}

static buffer map_anonymous(size_t bytes, bool huge) {
  size_t map_bytes = bytes + (huge ? HUGE_PAGE : 0);
  void *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) fail("cannot map %zu bytes: %s", map_bytes, strerror(errno));
  void *data = map;
  if (huge) {
    data = (void *)(((uintptr_t)map + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (madvise(data, bytes, MADV_HUGEPAGE)) fail("no huge pages for %zu bytes: %s", bytes, strerror(errno));
  }
  return (buffer){data, map, map_bytes};
}

/* The file is unlinked at once, so that no way of ending leaves it behind. */
static buffer map_file(const char *directory, size_t bytes) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/qmem-bench-XXXXXX", directory) >= (int)sizeof path) fail("the directory's name is too long");
  int fd = mkstemp(path);
  if (fd < 0) fail("cannot create a file in %s: %s", directory, strerror(errno));
  unlink(path);
  int error = posix_fallocate(fd, 0, (off_t)bytes);
  if (error) fail("cannot reserve %zu bytes in %s: %s", bytes, directory, strerror(error));
  void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) fail("cannot map a file of %zu bytes: %s", bytes, strerror(errno));
  close(fd);
  return (buffer){map, map, bytes};
}

#ifndef BENCH_WITHOUT_QMEM
static void fail_qmem(const char *what) {
  char why[512];
  qmem_last_error(why, sizeof why);
  fail("%s: %s", what, why);
}

static buffer allocate_qmem(const options *o, size_t bytes, bool streaming) {
  static bool initialised;
  if (!initialised) {
    memory_allocation_config_t config = {.allocation_type = ALLOC_QUANTUM, .strategy = STRATEGY_ADAPTIVE, .max_memory = o->budget,
                                         .enable_compression = true, .enable_deduplication = true, .enable_swapping = true};
    if (initialize_memory_allocation(&config) != MEMORY_STATUS_OK) fail_qmem("initialize_memory_allocation");
    initialised = true;
  }
  void *data = streaming ? qmem_allocate_streaming(bytes, 0) : qmem_allocate_hierarchical(bytes, o->tolerance);
  if (!data) fail_qmem(streaming ? "qmem_allocate_streaming" : "qmem_allocate_hierarchical");
  return (buffer){data, NULL, bytes};
}

void memory_print_qmem_stats(void) {
  memory_stats_t s = {0};
  if (qmem_get_stats(&s) != MEMORY_STATUS_OK) return;
  printf(", \"qmem\": {\"version\": \"%s\", \"budget_bytes\": %zu, \"peak_resident_bytes\": %zu, \"resident_bytes\": %zu, "
         "\"compressed_bytes\": %zu, \"deduplicated_bytes\": %zu, \"swapped_bytes\": %zu, \"page_faults\": %zu, \"evictions\": %zu, "
         "\"error_spent\": %.3e}",
         qmem_version(), s.budget_bytes, s.peak_resident_bytes, s.resident_bytes, s.compressed_bytes, s.deduplicated_bytes,
         s.swapped_bytes, s.page_faults, s.evictions, s.error_spent);
}
size_t memory_moved_out(void) {
  memory_stats_t s = {0};
  if (qmem_get_stats(&s) != MEMORY_STATUS_OK) fail_qmem("qmem_get_stats");
  return s.evictions;
}

void *memory_geometric(size_t rows, size_t columns, size_t *stride) {
  qmem_layout_t layout;
  void *matrix = qmem_allocate_geometric((const size_t[]){rows, columns}, 2);
  if (!matrix || qmem_get_layout(matrix, &layout) != MEMORY_STATUS_OK) fail_qmem("qmem_allocate_geometric");
  *stride = layout.strides[0];
  return matrix;
}

void memory_geometric_free(void *matrix) { qmem_free(matrix); }
#else
void memory_print_qmem_stats(void) {}
size_t memory_moved_out(void) { return 0; }
void *memory_geometric(size_t rows, size_t columns, size_t *stride) {
  *stride = columns;
  fail("built without qmem: an array of %zu by %zu cannot be padded", rows, columns);
}
void memory_geometric_free(void *matrix) { (void)matrix; }
#endif

buffer memory_allocate(const options *o, memory_kind kind, size_t bytes, bool streaming) {
  switch (kind) {
  case MEMORY_PLAIN: return map_anonymous(bytes, false);
  case MEMORY_HUGE: return map_anonymous(bytes, true);
  case MEMORY_MMAP_FILE: return map_file(o->directory, bytes);
  case MEMORY_QMEM: break;
  }
#ifndef BENCH_WITHOUT_QMEM
  return allocate_qmem(o, bytes, streaming);
#else
  (void)streaming;
  fail("built without qmem: --memory qmem is not there");
#endif
}

void memory_release(buffer *b) {
  if (b->map) munmap(b->map, b->map_bytes);
#ifndef BENCH_WITHOUT_QMEM
  else qmem_free(b->data);
#endif
  *b = (buffer){0};
}

static long kib_of(const char *path, const char *key) {
  char line[256];
  long value = -1;
  FILE *file = fopen(path, "r");
  if (!file) return value;
  while (value < 0 && fgets(line, sizeof line, file))
    if (strncmp(line, key, strlen(key)) == 0) value = strtol(line + strlen(key), NULL, 10);
  fclose(file);
  return value;
}

size_t memory_available(void) {
  long kib = kib_of("/proc/meminfo", "MemAvailable:");
  return kib < 0 ? 0 : (size_t)kib << 10;
}

void memory_print_rss(void) {
  printf(", \"peak_rss_kib\": %ld, \"huge_page_kib\": %ld", kib_of("/proc/self/status", "VmHWM:"),
         kib_of("/proc/self/smaps_rollup", "AnonHugePages:"));
}
