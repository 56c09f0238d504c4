/* Threads that give, change, share and free blocks through both doors while another one starts, stops and cleans up. Nothing may
   crash, and in the end nothing is live. QMEM_TEST_SECONDS sets how long (default 1). */
#include "check.h"
#include <pthread.h>
#include <quantum_memory.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

static volatile int stop;
static pthread_mutex_t exchange_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char *exchange[16];

static uint64_t next(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

/* A block carries its size's low byte in its first and last byte. */
static unsigned char *marked(unsigned char *block, size_t size) {
  if (block != NULL)
    block[0] = block[size - 1] = (unsigned char)size;
  return block;
}

static void *worker(void *seed) {
  uint64_t state = (uint64_t)(uintptr_t)seed * 0x9E3779B97F4A7C15u + 1;
  unified_memory_interface_t *memory = qmem_unified_interface();
  while (!stop) {
    size_t size = (size_t)1 << next(&state) % 17, slot = next(&state) % 16, bigger = size + next(&state) % 4096;
    unsigned char *block = (unsigned char *)(next(&state) % 2 ? qmem_allocate(size, 0) : memory->allocate(size, 16)), *other;
    memory_stats_t stats;
    if (marked(block, size) == NULL)
      continue; /* refused: the budget is small */
    if (next(&state) % 4 == 0) {
      unsigned char *moved = (unsigned char *)qmem_realloc(block, bigger);
      if (moved != NULL && (moved[0] != (unsigned char)size || moved[size - 1] != (unsigned char)size))
        abort();
      block = moved != NULL ? moved : block;
    }
    if (qmem_retain(block) != block || qmem_refcount(block) != 2 || qmem_kind(block + size / 2) == QMEM_MEMORY_UNKNOWN)
      abort();
    qmem_free(block);
    pthread_mutex_lock(&exchange_lock); /* another thread frees it */
    other = exchange[slot];
    exchange[slot] = block;
    pthread_mutex_unlock(&exchange_lock);
    qmem_free(other);
    if (qmem_get_stats(&stats) != MEMORY_STATUS_OK)
      abort();
  }
  return NULL;
}

void handle_memory_error(memory_error_t error) { (void)error; }

int main(void) {
  const char *text = getenv("QMEM_TEST_SECONDS");
  double seconds = text != NULL ? atof(text) : 1.0;
  pthread_t threads[4];
  struct timespec begin, now;
  uintptr_t i;
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.max_memory = 256 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  for (i = 0; i < 4; i++)
    if (pthread_create(&threads[i], NULL, worker, (void *)(i + 1)) != 0)
      return 2;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  do {
    unified_pool_config_t pool;
    memset(&pool, 0, sizeof pool);
    pool.initial_size = 1 << 20;
    pool.max_size = 64 << 20;
    pool.enable_growth = true;
    CHECK(initialize_memory_allocation(&config) == MEMORY_STATUS_ALREADY_INITIALIZED);
    CHECK(cleanup_allocation_resources() == MEMORY_STATUS_BUSY);
    if (qmem_can_allocate(1 << 20) && initialize_unified_memory(&pool) == MEMORY_STATUS_ALREADY_INITIALIZED)
      CHECK(cleanup_unified_memory() == MEMORY_STATUS_BUSY);
    usleep(1000);
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while ((double)(now.tv_sec - begin.tv_sec) + (double)(now.tv_nsec - begin.tv_nsec) / 1e9 < seconds);
  stop = 1;
  for (i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  for (i = 0; i < 16; i++)
    qmem_free(exchange[i]);
  {
    memory_stats_t stats = stats_now();
    CHECK(stats.current_allocated == 0 && stats.num_allocations == stats.num_frees && stats.num_allocations > 100);
    CHECK(stats.peak_resident_bytes <= 256 << 20);
  }
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  return finish();
}
