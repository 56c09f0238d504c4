/* valgrind: heap only */
/* Blocks from the heap: sizes, alignments, contents, references, kinds, layouts, tracking, statistics, estimates. */
#include "check.h"
#include <quantum_memory.h>
#include <stdint.h>

static void sizes_and_alignments(void) {
  size_t sizes[] = {0, 1, 63, 64, 65, 4096, 100000, 3 << 20}, alignment, i;
  for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    for (alignment = 1; alignment <= 8192; alignment *= 2) {
      unsigned char *block = (unsigned char *)qmem_allocate(sizes[i], alignment);
      size_t usable = qmem_usable_size(block);
      CHECK(block != NULL && (uintptr_t)block % alignment == 0);
      CHECK(usable >= sizes[i] && usable > 0);
      memset(block, 0xEE, usable);
      qmem_free(block);
    }
  }
  {
    void *a = qmem_allocate(0, 0), *b = qmem_allocate(0, 0);
    CHECK(a != NULL && b != NULL && a != b && (uintptr_t)a % 64 == 0);
    qmem_free(a);
    qmem_free(b);
  }
  {
    size_t n = 300000;
    unsigned char *block = (unsigned char *)qmem_allocate_zeroed(n, 0);
    for (i = 0; i < n; i++)
      if (block[i] != 0)
        break;
    CHECK(i == n);
    qmem_free(block);
  }
  qmem_free(NULL);
}

static void bad_requests(void) {
  size_t bad[] = {3, 63, 96, (size_t)1 << 31, SIZE_MAX}, i;
  for (i = 0; i < sizeof bad / sizeof *bad; i++)
    REFUSED("alignment", qmem_allocate(10, bad[i]));
  REFUSED("PTRDIFF_MAX", qmem_allocate(SIZE_MAX, 0));
  REFUSED("PTRDIFF_MAX", qmem_allocate((size_t)PTRDIFF_MAX + 1, 0));
  REFUSED("PTRDIFF_MAX", qmem_allocate_zeroed(SIZE_MAX, 0));
  REFUSED("PTRDIFF_MAX", qmem_realloc(NULL, SIZE_MAX));
  REFUSED("tolerance", qmem_allocate_hierarchical(1 << 20, -0.1));
  REFUSED("tolerance", qmem_allocate_hierarchical(1 << 20, 1.0));
  REFUSED("tolerance", qmem_allocate_hierarchical(1 << 20, strtod("nan", NULL)));
  REFUSED("chunk_size", qmem_allocate_streaming(1 << 20, 12345));
  REFUSED("chunk_size", qmem_allocate_streaming(1 << 20, 32 << 10));
  REFUSED("chunk_size", qmem_allocate_streaming(1 << 20, (size_t)2 << 30));
}

static void reallocation(void) {
  size_t size, i, last = 16;
  unsigned char *block = (unsigned char *)qmem_realloc(NULL, last);
  CHECK(block != NULL);
  for (i = 0; i < last; i++)
    block[i] = (unsigned char)i;
  for (size = 32; size < 8 << 20; size = size * 3 + 1) {
    block = (unsigned char *)qmem_realloc(block, size);
    CHECK(block != NULL && qmem_usable_size(block) >= size);
    for (i = 0; i < last; i++)
      if (block[i] != (unsigned char)(i < 16 ? i : i * 7))
        break;
    CHECK(i == last);
    for (i = 16; i < size; i++)
      block[i] = (unsigned char)(i * 7);
    last = size;
  }
  block = (unsigned char *)qmem_realloc(block, 16);
  for (i = 0; i < 16; i++)
    CHECK(block[i] == i);
  CHECK(qmem_retain(block) == block);
  REFUSED("references", qmem_realloc(block, 1000));
  qmem_free(block);
  block = (unsigned char *)qmem_realloc(block, 0);
  CHECK(block != NULL);
  qmem_free(block);
}

static void references(void) {
  int local = 0;
  void *block = qmem_allocate(100, 0);
  CHECK(qmem_refcount(block) == 1);
  CHECK(qmem_retain(block) == block && qmem_retain(block) == block);
  CHECK(qmem_refcount(block) == 3);
  qmem_free(block);
  qmem_free(block);
  CHECK(qmem_refcount(block) == 1 && qmem_kind(block) == QMEM_MEMORY_HEAP);
  qmem_free(block);
  CHECK(qmem_refcount(block) == 0 && qmem_kind(block) == QMEM_MEMORY_UNKNOWN);
  CHECK(qmem_retain(&local) == NULL && qmem_retain(NULL) == NULL);
  CHECK(qmem_refcount(&local) == 0 && qmem_refcount(NULL) == 0);
  CHECK(qmem_usable_size(&local) == 0 && qmem_usable_size(NULL) == 0);
  CHECK(qmem_kind(&local) == QMEM_MEMORY_UNKNOWN && qmem_kind(NULL) == QMEM_MEMORY_UNKNOWN);
}

static void geometric(void) {
  size_t dimensions[3] = {3, 5, 128}, ones[17], i, j, k, none[1] = {0}, huge[2] = {(size_t)1 << 40, (size_t)1 << 40};
  qmem_layout_t layout;
  double *array = (double *)qmem_allocate_geometric(dimensions, 3);
  void *plain = qmem_allocate(10, 0);
  CHECK(array != NULL && (uintptr_t)array % 64 == 0);
  STATUS(MEMORY_STATUS_OK, qmem_get_layout(array, &layout));
  CHECK(layout.num_dims == 3 && layout.dimensions[0] == 3 && layout.dimensions[1] == 5 && layout.dimensions[2] == 128);
  CHECK(layout.strides[2] == 1 && layout.strides[1] == 132 && layout.strides[0] == 5 * 132 && layout.offset == 0);
  CHECK(layout.strides[1] * 16 % 4096 != 0);
  for (i = 0; i < 3; i++)
    for (j = 0; j < 5; j++)
      for (k = 0; k < 128; k++) {
        size_t at = layout.offset + i * layout.strides[0] + j * layout.strides[1] + k * layout.strides[2];
        CHECK((at + 1) * 16 <= qmem_usable_size(array));
        array[2 * at] = (double)i;
        array[2 * at + 1] = (double)k;
      }
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "layout", qmem_get_layout(array, NULL));
  FAILS(MEMORY_STATUS_NOT_FOUND, "allocate_geometric", qmem_get_layout(plain, &layout));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_get_layout(&layout, &layout));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_get_layout(NULL, &layout));
  array = (double *)qmem_realloc(array, 1 << 16);
  CHECK(array != NULL && array[1] == 0.0 && array[3] == 1.0);
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_get_layout(array, &layout));
  qmem_free(array);
  qmem_free(plain);

  for (i = 0; i < 17; i++)
    ones[i] = 1;
  array = (double *)qmem_allocate_geometric(ones, 16);
  CHECK(array != NULL);
  qmem_free(array);
  REFUSED("num_dims", qmem_allocate_geometric(ones, 17));
  REFUSED("num_dims", qmem_allocate_geometric(ones, 0));
  REFUSED("dimensions", qmem_allocate_geometric(NULL, 2));
  REFUSED("dimensions[0]", qmem_allocate_geometric(none, 1));
  REFUSED("PTRDIFF_MAX", qmem_allocate_geometric(huge, 2));
}

static void tracking(void) {
  unified_memory_interface_t *memory = qmem_unified_interface();
  size_t before = stats_now().current_allocated;
  char *foreign = (char *)malloc(1000);
  void *block = qmem_allocate(64, 0);
  CHECK(memory->track_allocation(foreign, 1000));
  CHECK(!memory->track_allocation(foreign, 1000));
  CHECK(!memory->track_allocation(foreign + 999, 10));
  CHECK(!memory->track_allocation(NULL, 10) && !memory->track_allocation(foreign, 0));
  CHECK(!memory->track_allocation(block, 10));
  CHECK(qmem_kind(foreign + 500) == QMEM_MEMORY_TRACKED);
  CHECK(qmem_retain(foreign) == NULL && qmem_refcount(foreign) == 0);
  CHECK(stats_now().current_allocated == before + 1064);
  CHECK(!memory->untrack_allocation(foreign + 1));
  CHECK(memory->untrack_allocation(foreign));
  CHECK(!memory->untrack_allocation(foreign) && !memory->untrack_allocation(NULL));
  CHECK(!memory->untrack_allocation(block));
  qmem_free(block);
  CHECK(stats_now().current_allocated == before);
  free(foreign);
}

static void statistics(void) {
  memory_stats_t before, now;
  void *a, *b;
  size_t i;
  STATUS(MEMORY_STATUS_OK, qmem_reset_peaks());
  before = stats_now();
  CHECK(before.peak_allocated == before.current_allocated);
  a = qmem_allocate(1000, 0);
  b = qmem_allocate(50 << 20, 0);
  now = stats_now();
  CHECK(now.num_allocations == before.num_allocations + 2 && now.total_allocated == before.total_allocated + 1000 + (50 << 20));
  CHECK(now.current_allocated == before.current_allocated + 1000 + (50 << 20));
  CHECK(now.largest_allocation == 50 << 20);
  memset(b, 1, 50 << 20);
  CHECK(stats_now().resident_bytes >= 50 << 20);
  qmem_free(a);
  qmem_free(b);
  now = stats_now();
  CHECK(now.num_frees == before.num_frees + 2 && now.current_allocated == before.current_allocated);
  CHECK(now.peak_allocated == before.current_allocated + 1000 + (50 << 20));
  CHECK(now.fragmentation >= 0.0 && now.fragmentation <= 1.0);
  CHECK(now.peak_resident_bytes >= 50 << 20);
  for (i = 0; i < 8; i++)
    CHECK(now.reserved[i] == 0);
  STATUS(MEMORY_STATUS_OK, qmem_reset_peaks());
  CHECK(stats_now().peak_allocated == before.current_allocated);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "stats is NULL", qmem_get_stats(NULL));
  qmem_unified_interface()->get_stats(&now);
  CHECK(now.num_allocations == stats_now().num_allocations);

  a = qmem_allocate(12345, 0);
  STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(a, &now));
  CHECK(now.current_allocated == 12345 && now.resident_bytes >= 12345);
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_get_buffer_stats(a, NULL));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_get_buffer_stats(NULL, &now));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_get_buffer_stats(&now, &now));
  FAILS(MEMORY_STATUS_NOT_FOUND, "paged", qmem_pin(a, 1));
  FAILS(MEMORY_STATUS_NOT_FOUND, "paged", qmem_unpin(a, 1));
  FAILS(MEMORY_STATUS_NOT_FOUND, "paged", qmem_prefetch(a, 1));
  FAILS(MEMORY_STATUS_NOT_FOUND, "paged", qmem_evict(a, 1));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_pin(NULL, 1));
  qmem_free(a);
}

static void estimates(void) {
  qmem_workload_t work;
  qmem_estimate_t estimate;
  memset(&work, 0, sizeof work);
  work.num_qubits = 10;
  work.bytes_per_amplitude = 16;
  STATUS(MEMORY_STATUS_OK, qmem_estimate(&work, &estimate));
  CHECK(estimate.logical_bytes == 16384 && estimate.resident_bytes == 16384 && estimate.swap_bytes == 0);
  CHECK(estimate.fits_in_memory && estimate.fits_in_budget && estimate.fits_with_swap);
  CHECK(strstr(estimate.advice, "10 qubits") != NULL && strstr(estimate.advice, "16 KiB") != NULL);
  work.copies = 3;
  work.bytes_per_amplitude = 8;
  STATUS(MEMORY_STATUS_OK, qmem_estimate(&work, &estimate));
  CHECK(estimate.logical_bytes == 3 * 8192);
  work.num_qubits = 50;
  STATUS(MEMORY_STATUS_OK, qmem_estimate(&work, &estimate));
  CHECK(!estimate.fits_in_memory && !estimate.fits_in_budget && !estimate.fits_with_swap && estimate.swap_bytes > 0);
  work.num_qubits = 61;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "num_qubits", qmem_estimate(&work, &estimate));
  work.num_qubits = 10;
  work.bytes_per_amplitude = 4;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "bytes_per_amplitude", qmem_estimate(&work, &estimate));
  work.bytes_per_amplitude = 8;
  work.expected_ratio = 0.5;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "expected_ratio", qmem_estimate(&work, &estimate));
  work.expected_ratio = strtod("nan", NULL);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "expected_ratio", qmem_estimate(&work, &estimate));
  work.expected_ratio = 2;
  work.reserved[3] = 1;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "reserved[3]", qmem_estimate(&work, &estimate));
  work.reserved[3] = 0;
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_estimate(NULL, &estimate));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_estimate(&work, NULL));
}

static void words(void) {
  char small[8];
  size_t whole;
  CHECK(strcmp(qmem_status_string(MEMORY_STATUS_LIMIT), "MEMORY_STATUS_LIMIT") == 0);
  CHECK(strcmp(qmem_status_string((memory_status_t)-11), "unknown status") == 0);
  CHECK(strchr(qmem_version(), '.') != NULL);
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_get_stats(NULL));
  whole = qmem_last_error(NULL, 0);
  CHECK(whole > 8 && qmem_last_error(small, sizeof small) == whole && strlen(small) == 7);
  small[0] = 'x';
  CHECK(qmem_last_error(small, 0) == whole && small[0] == 'x');
}

static void budget(void) {
  memory_allocation_config_t config;
  void *block;
  memset(&config, 0, sizeof config);
  config.max_memory = 16 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  CHECK(qmem_can_allocate(8 << 20) && !qmem_can_allocate(17 << 20));
  REFUSED("budget", qmem_allocate(17 << 20, 0));
  block = qmem_allocate(10 << 20, 0);
  CHECK(block != NULL && !qmem_can_allocate(8 << 20));
  REFUSED("budget", qmem_allocate(8 << 20, 0));
  qmem_free(block);
  block = qmem_allocate(10 << 20, 0);
  CHECK(block != NULL);
  qmem_free(block);
  block = qmem_allocate(7 << 20, 0); /* what the heap keeps for reuse is no obstacle */
  qmem_free(block);
  CHECK(qmem_can_allocate(12 << 20));
  block = qmem_allocate(12 << 20, 0);
  CHECK(block != NULL && stats_now().resident_bytes <= 16 << 20);
  qmem_free(block);
  stop_memory_allocation();
  cleanup_allocation_resources();

  CHECK(qmem_allocate(1, 0) == NULL);
}

int main(void) {
  CHECK(qmem_last_error(NULL, 0) == 0);
  sizes_and_alignments();
  bad_requests();
  reallocation();
  references();
  geometric();
  tracking();
  statistics();
  estimates();
  words();
  CHECK(stats_now().current_allocated == 0);
  budget();
  return finish();
}
