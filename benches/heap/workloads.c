/* One workload of a general allocator, timed: `heap WORKLOAD` prints nanoseconds per operation (or what the workload's line says)
   and the peak of resident memory in KiB. benches/heap/compare runs it under each allocator. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <malloc.h>

static double now(void) {
  struct timespec t;
#ifdef CPU_TIME /* on a busy machine */
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
#else
  clock_gettime(CLOCK_MONOTONIC, &t);
#endif
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static uint64_t state = 88172645463325252u;
static uint64_t random64(void) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}
static size_t below(size_t n) { return (size_t)(random64() % n); }

/* Sizes as programs have them: mostly small, a few large. */
static size_t mixed(void) {
  switch (below(16)) {
    case 0: return 256 + below(4096);
    case 1: return 128 + below(1024);
    case 2: case 3: case 4: return 64 + below(256);
    default: return 8 + below(120);
  }
}

static void touch(void *block, size_t size) {
  if (!block) abort();
  ((volatile char *)block)[0] = 1;
  ((volatile char *)block)[size - 1] = 1;
}

static double pairs(size_t size, size_t rounds) {
  void *others[100];
  for (int i = 0; i < 100; i++) touch(others[i] = malloc(size), size);
  double start = now();
  for (size_t i = 0; i < rounds; i++) {
    void *block = malloc(size);
    ((volatile char *)block)[0] = 1;
    free(block);
  }
  double time = (now() - start) / (double)rounds;
  for (int i = 0; i < 100; i++) free(others[i]);
  return time;
}

/* `live` blocks; at each step a random one is replaced. */
static double churn(size_t size, size_t live, size_t rounds) {
  void **blocks = malloc(live * sizeof *blocks);
  for (size_t i = 0; i < live; i++) {
    size_t bytes = size ? size : mixed();
    touch(blocks[i] = malloc(bytes), bytes);
  }
  double start = now();
  for (size_t i = 0; i < rounds; i++) {
    size_t at = below(live), bytes = size ? size : mixed();
    free(blocks[at]);
    touch(blocks[at] = malloc(bytes), bytes);
  }
  double time = (now() - start) / (double)rounds;
  for (size_t i = 0; i < live; i++) free(blocks[i]);
  free(blocks);
  return time;
}

/* Many at once, freed in another order. */
static double burst(size_t live, size_t rounds) {
  void **blocks = malloc(live * sizeof *blocks);
  double start = now();
  for (size_t round = 0; round < rounds; round++) {
    for (size_t i = 0; i < live; i++) {
      size_t bytes = mixed();
      touch(blocks[i] = malloc(bytes), bytes);
    }
    for (size_t i = live - 1; i > 0; i--) {
      size_t j = below(i + 1);
      void *block = blocks[i];
      blocks[i] = blocks[j], blocks[j] = block;
    }
    for (size_t i = 0; i < live; i++) free(blocks[i]);
  }
  double time = (now() - start) / (double)(rounds * live);
  free(blocks);
  return time;
}

enum { QUEUE = 4096 };
static struct { void *volatile slots[QUEUE]; } ring;
static size_t item_size, items;
static void *consumer(void *arg) {
  for (size_t i = 0; i < items; i++) {
    void *volatile *slot = &ring.slots[i % QUEUE], *block;
    while (!(block = __atomic_load_n(slot, __ATOMIC_ACQUIRE))) sched_yield();
    __atomic_store_n(slot, NULL, __ATOMIC_RELEASE);
    free(block);
  }
  return arg;
}
static double passed_on(size_t size, size_t count) {
  pthread_t thread;
  item_size = size, items = count;
  double start = now();
  pthread_create(&thread, NULL, consumer, NULL);
  for (size_t i = 0; i < items; i++) {
    void *volatile *slot = &ring.slots[i % QUEUE];
    void *block = malloc(size);
    ((volatile char *)block)[0] = 1;
    while (__atomic_load_n(slot, __ATOMIC_ACQUIRE)) sched_yield();
    __atomic_store_n(slot, block, __ATOMIC_RELEASE);
  }
  pthread_join(thread, NULL);
  return (now() - start) / (double)count;
}

static double growth(size_t blocks, size_t rounds) {
  double start = now();
  for (size_t round = 0; round < rounds; round++) {
    char *grown[16] = {0};
    for (size_t size = 16; size <= 1 << 20; size *= 2)
      for (size_t i = 0; i < blocks; i++) {
        grown[i] = realloc(grown[i], size);
        grown[i][size - 1] = 1;
      }
    for (size_t i = 0; i < blocks; i++) free(grown[i]);
  }
  return (now() - start) / (double)rounds;
}

static void *short_life(void *arg) {
  void *blocks[50];
  for (int i = 0; i < 50; i++) touch(blocks[i] = malloc(16 + (size_t)i * 20), 16 + (size_t)i * 20);
  for (int i = 0; i < 50; i++) free(blocks[i]);
  return arg;
}
static double lives(size_t count) {
  double start = now();
  for (size_t i = 0; i < count; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, short_life, NULL);
    pthread_join(thread, NULL);
  }
  return (now() - start) / (double)count;
}

static double zeroed(size_t size, size_t rounds) {
  void *others[64] = {0};
  double start = now();
  for (size_t i = 0; i < rounds; i++) {
    free(others[i % 64]);
    touch(others[i % 64] = calloc(1, size), size);
  }
  double time = (now() - start) / (double)rounds;
  for (int i = 0; i < 64; i++) free(others[i]);
  return time;
}

static size_t resident(void) {
  size_t pages = 0, total;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%zu %zu", &total, &pages) != 2) abort();
  fclose(file);
  return pages * 4096;
}

/* MiB resident two seconds after 512 MiB were freed, while a little is allocated. */
static double given_back(size_t size, int trim) {
  size_t count = (512u << 20) / size;
  char **blocks = malloc(count * sizeof *blocks);
  for (size_t i = 0; i < count; i++) memset(blocks[i] = malloc(size), 1, size);
  for (size_t i = 0; i < count; i++) free(blocks[i]);
  free(blocks);
  if (trim) malloc_trim(0);
  else
    for (int i = 0; i < 2000; i++) {
      for (int k = 0; k < 5; k++) touch(blocks = malloc(100), 100), free(blocks);
      usleep(1000);
    }
  return (double)resident() / (1 << 20);
}

static void *worker(void *arg) {
  uint64_t own = (uint64_t)(uintptr_t)arg * 0x9e3779b97f4a7c15u | 1;
  enum { LIVE = 5000 };
  void **blocks = calloc(LIVE, sizeof *blocks);
  for (size_t i = 0; i < 2000000; i++) {
    own ^= own << 13, own ^= own >> 7, own ^= own << 17;
    size_t at = own % LIVE, size = 8 + (own >> 32) % 200;
    free(blocks[at]);
    touch(blocks[at] = malloc(size), size);
  }
  for (size_t i = 0; i < LIVE; i++) free(blocks[i]);
  free(blocks);
  return arg;
}
static double together(size_t threads) {
  pthread_t ids[64];
  double start = now();
  for (size_t i = 0; i < threads; i++) pthread_create(&ids[i], NULL, worker, (void *)(uintptr_t)(i + 1));
  for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
  return (now() - start) / 2e6 / (double)threads;
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  double result;
#define WORKLOAD(name, call) else if (strcmp(what, name) == 0) result = call
  if (strcmp(what, "list") == 0) {
    puts("pair-16 pair-1K pair-8K pair-200K pair-1M pair-16M churn-64 churn-mixed burst passed-16 passed-1K realloc-1 realloc-16 lives calloc-200 "
         "calloc-20K threads-2 kept-64 kept-1K kept-100K kept-trim");
    return 0;
  }
  WORKLOAD("pair-16", pairs(16, 20000000));
  WORKLOAD("pair-1K", pairs(1024, 20000000));
  WORKLOAD("pair-8K", pairs(8192, 5000000));
  WORKLOAD("pair-200K", pairs(200000, 1000000));
  WORKLOAD("pair-1M", pairs(1 << 20, 100000));
  WORKLOAD("pair-16M", pairs(16 << 20, 50000));
  WORKLOAD("churn-64", churn(64, 100000, 5000000));
  WORKLOAD("churn-mixed", churn(0, 100000, 5000000));
  WORKLOAD("burst", burst(100000, 10));
  WORKLOAD("passed-16", passed_on(16, 5000000));
  WORKLOAD("passed-1K", passed_on(1024, 2000000));
  WORKLOAD("realloc-1", growth(1, 3000));
  WORKLOAD("realloc-16", growth(16, 100));
  WORKLOAD("lives", lives(5000));
  WORKLOAD("calloc-200", zeroed(200, 5000000));
  WORKLOAD("calloc-20K", zeroed(20000, 300000));
  WORKLOAD("threads-2", together(2));
  WORKLOAD("kept-64", given_back(64, 0));
  WORKLOAD("kept-1K", given_back(1024, 0));
  WORKLOAD("kept-100K", given_back(100000, 0));
  WORKLOAD("kept-trim", given_back(64, 1));
  else return fprintf(stderr, "usage: heap WORKLOAD; heap list\n"), 2;
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  printf("%.2f %ld\n", result, usage.ru_maxrss);
  return 0;
}
