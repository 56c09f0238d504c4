/* One job under the monitoring level of QMEM_MONITOR, timed: "churn" of heap blocks, or a "sweep" over twice the budget in paged memory.
   Prints seconds. Called by benches/monitoring/run, which compares levels. */
#include <quantum_memory.h>
#include <qmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void churn(unsigned rounds) {
  enum { LIVE = 4096 };
  static void *blocks[LIVE];
  unsigned seed = 1, n;
  for (n = 0; n < rounds; n++) {
    unsigned at = (seed = seed * 1664525 + 1013904223) >> 20;
    qmem_free(blocks[at]);
    blocks[at] = qmem_allocate(16 + (seed >> 8 & 2047), 0);
    if (blocks[at] == NULL)
      exit(2);
    *(unsigned *)blocks[at] = seed;
  }
  for (n = 0; n < LIVE; n++)
    qmem_free(blocks[n]);
}

static void sweep(unsigned rounds) {
  size_t size = (size_t)512 << 20, i;
  double *state = (double *)qmem_allocate(size, 0);
  if (state == NULL)
    exit(2);
  while (rounds-- > 0)
    for (i = 0; i < size / sizeof *state; i++)
      state[i] += (double)(i & 1023);
  qmem_free(state);
}

int main(int argc, char **argv) {
  memory_allocation_config_t config;
  double before;
  if (argc != 3)
    return 2;
  memset(&config, 0, sizeof config);
  config.max_memory = (size_t)256 << 20;
  if (strcmp(argv[1], "sweep") == 0) {
    config.allocation_type = ALLOC_QUANTUM;
    config.enable_compression = config.enable_swapping = true;
  }
  if (initialize_memory_allocation(&config) != MEMORY_STATUS_OK)
    return 3;
  before = seconds();
  (strcmp(argv[1], "sweep") == 0 ? sweep : churn)((unsigned)atoi(argv[2]));
  printf("%.6f\n", seconds() - before);
  return 0;
}
