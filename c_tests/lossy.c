/* needs paged memory */
/* Compression with loss from C: what permits it, what it costs at most, what stays as it is. */
#include "check.h"
#include <qmem.h>
#include <quantum_memory.h>
#include <stdint.h>

#define COUNT ((size_t)1 << 20) /* doubles */
#define BYTES (COUNT * sizeof(double))

static uint64_t seed = 1;

/* Sums of uniform numbers: near enough to normal ones. */
static double noise(void) {
  double sum = 0;
  int i;
  for (i = 0; i < 12; i++) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    sum += (double)(seed >> 11) / 9007199254740992.0;
  }
  return (sum - 6) / 1000;
}

static double *exact;

static void fill(double *to) {
  size_t i;
  for (i = 0; i < COUNT; i++)
    to[i] = exact[i] = noise();
}

static double infidelity(const double *buffer) {
  memory_stats_t stats;
  STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(buffer, &stats));
  return stats.error_spent;
}

/* The square of the relative L2 error that is there. */
static double lost(const double *buffer) {
  double error = 0, whole = 0;
  size_t i;
  for (i = 0; i < COUNT; i++) {
    error += (buffer[i] - exact[i]) * (buffer[i] - exact[i]);
    whole += exact[i] * exact[i];
  }
  return error / whole;
}

static void hierarchical(void) {
  double *psi = (double *)qmem_allocate_hierarchical(BYTES, 0.01), made;
  memory_stats_t stats;
  int pass;
  CHECK(psi != NULL);
  for (pass = 0; pass < 4; pass++) {
    fill(psi);
    STATUS(MEMORY_STATUS_OK, qmem_evict(psi, BYTES));
    STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(psi, &stats));
    CHECK(stats.compressed_bytes > 0 && stats.compressed_bytes < BYTES / 3);
    made = lost(psi);
    CHECK(made > 0 && made <= infidelity(psi) && infidelity(psi) <= 1e-4);
    CHECK(stats_now().error_spent >= infidelity(psi) * (1 - 1e-9));
  }
  qmem_free(psi);
}

static void by_element(void) {
  double *psi = (double *)qmem_allocate(BYTES, 0), before;
  void *small = qmem_allocate(100, 0);
  CHECK(psi != NULL && small != NULL);
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_set_element(NULL, QMEM_ELEMENT_C128));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "element", qmem_set_element(psi, (qmem_element_t)9));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_set_element(psi + 1, QMEM_ELEMENT_C128));
  STATUS(MEMORY_STATUS_OK, qmem_set_element(small, QMEM_ELEMENT_C128)); /* it permits, and nothing uses it */
  STATUS(MEMORY_STATUS_OK, qmem_set_element(psi, QMEM_ELEMENT_C128));
  STATUS(MEMORY_STATUS_OK, qmem_set_error_budget(0));
  fill(psi);
  STATUS(MEMORY_STATUS_OK, qmem_evict(psi, BYTES));
  CHECK(lost(psi) == 0 && infidelity(psi) == 0); /* nobody has said how much may be lost */
  before = stats_now().error_spent;
  STATUS(MEMORY_STATUS_OK, qmem_set_error_budget(before + 1e-4));
  fill(psi);
  STATUS(MEMORY_STATUS_OK, qmem_evict(psi, BYTES));
  CHECK(lost(psi) > 0 && lost(psi) <= infidelity(psi) && stats_now().error_spent <= before + 1e-4);
  STATUS(MEMORY_STATUS_OK, qmem_set_error_budget(stats_now().error_spent)); /* spent: without loss from now on */
  fill(psi);
  STATUS(MEMORY_STATUS_OK, qmem_evict(psi, BYTES));
  CHECK(lost(psi) == 0);
  STATUS(MEMORY_STATUS_OK, qmem_set_error_budget(0.5));
  fill(psi);
  psi[5] = exact[5] = 1e-310; /* a subnormal number keeps its chunk as it is */
  STATUS(MEMORY_STATUS_OK, qmem_evict(psi, BYTES));
  CHECK(psi[5] == 1e-310 && psi[100] == exact[100] && lost(psi) > 0);
  STATUS(MEMORY_STATUS_OK, qmem_set_element(psi, QMEM_ELEMENT_BYTES));
  fill(psi);
  STATUS(MEMORY_STATUS_OK, qmem_evict(psi, BYTES));
  CHECK(lost(psi) == 0);
  STATUS(MEMORY_STATUS_OK, qmem_set_error_budget(0));
  qmem_free(small);
  qmem_free(psi);
}

int main(void) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_QUANTUM;
  config.max_memory = (size_t)64 << 20;
  config.enable_compression = config.enable_deduplication = config.enable_swapping = true;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  exact = (double *)malloc(BYTES);
  CHECK(exact != NULL);
  hierarchical();
  by_element();
  free(exact);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  return finish();
}
