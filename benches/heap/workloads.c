/* One workload of a general allocator, timed: `heap WORKLOAD` prints nanoseconds per operation (or what the workload's line says)
   and the peak of resident memory in KiB. `heap peak FILE COMMAND...` runs a command and writes its peak to FILE: a program's peak counts
   that of the one that started it, so that should be small. benches/heap/compare runs both, with each allocator. */
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
#include <spawn.h>
#include <sys/wait.h>

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
static uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
  return *state;
}
static uint64_t random64(void) { return next_random(&state); }
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

/* Sizes that a workload is asked for beside numbers of bytes. */
enum { MIXED = 0, PAGES = 1 };
static size_t draw(size_t size) { return size == MIXED ? mixed() : size == PAGES ? 1024 + below(4096) : size; }

static void touch(void *block, size_t size) {
  if (!block) abort();
  ((volatile char *)block)[0] = 1;
  ((volatile char *)block)[size - 1] = 1;
}

static void touch_all(void *block, size_t size) {
  touch(block, size);
  for (size_t at = 0; at < size; at += 4096) ((volatile char *)block)[at] = 1;
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
    size_t bytes = draw(size);
    touch(blocks[i] = malloc(bytes), bytes);
  }
  double start = now();
  for (size_t i = 0; i < rounds; i++) {
    size_t at = below(live), bytes = draw(size);
    free(blocks[at]);
    touch(blocks[at] = malloc(bytes), bytes);
  }
  double time = (now() - start) / (double)rounds;
  for (size_t i = 0; i < live; i++) free(blocks[i]);
  free(blocks);
  return time;
}

/* As churn, but blocks are written when they are new and read before they are freed, and some slots are replaced much more often. */
static double used(size_t slots, size_t rounds) {
  struct slot { unsigned char *block; size_t size; } *all = calloc(slots, sizeof *all);
  volatile size_t sink = 0;
  double start = now();
  for (size_t i = 0; i < rounds; i++) {
    struct slot *slot = &all[below(1 + below(slots))];
    if (slot->block) {
      size_t sum = 0;
      for (size_t at = 0; at < slot->size; at += 8) sum += slot->block[at];
      sink += sum;
      free(slot->block);
      slot->block = NULL;
    } else {
      slot->size = mixed();
      slot->block = malloc(slot->size);
      if (!slot->block) abort();
      memset(slot->block, 1, slot->size);
    }
  }
  double time = (now() - start) / (double)rounds;
  for (size_t i = 0; i < slots; i++) free(all[i].block);
  free(all);
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

/* Nanoseconds that threads take together; each gets its number, from 1. */
static double in_threads(size_t threads, void *(*work)(void *)) {
  pthread_t ids[64];
  double start = now();
  for (size_t i = 0; i < threads; i++) pthread_create(&ids[i], NULL, work, (void *)(uintptr_t)(i + 1));
  for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
  return now() - start;
}

static void *worker(void *arg) {
  uint64_t own = (uint64_t)(uintptr_t)arg * 0x9e3779b97f4a7c15u | 1;
  enum { LIVE = 5000 };
  void **blocks = calloc(LIVE, sizeof *blocks);
  for (size_t i = 0; i < 2000000; i++) {
    next_random(&own);
    size_t at = own % LIVE, size = 8 + (own >> 32) % 200;
    free(blocks[at]);
    touch(blocks[at] = malloc(size), size);
  }
  for (size_t i = 0; i < LIVE; i++) free(blocks[i]);
  free(blocks);
  return arg;
}
static double together(size_t threads) { return in_threads(threads, worker) / 2e6 / (double)threads; }

/* As a server: slots of a thread are replaced at random; then it ends, and a new thread goes on with its blocks. */
enum { SLOTS = 1000, SERVERS = 4 };
struct serving {
  void *blocks[SLOTS];
  uint64_t random;
};
static void *server(void *arg) {
  struct serving *own = arg;
  for (int i = 0; i < 50000; i++) {
    uint64_t random = next_random(&own->random);
    size_t at = random % SLOTS, size = 8 + (random >> 32) % 1000;
    free(own->blocks[at]);
    touch(own->blocks[at] = malloc(size), size);
  }
  return arg;
}
static double served(size_t generations) {
  static struct serving all[SERVERS];
  pthread_t ids[SERVERS];
  double start = now();
  for (size_t i = 0; i < SERVERS; i++) all[i].random = i + 1;
  for (size_t round = 0; round < generations; round++) {
    for (size_t i = 0; i < SERVERS; i++) pthread_create(&ids[i], NULL, server, &all[i]);
    for (size_t i = 0; i < SERVERS; i++) pthread_join(ids[i], NULL);
  }
  double time = (now() - start) / (double)(generations * SERVERS * 50000);
  for (size_t i = 0; i < SERVERS; i++)
    for (size_t k = 0; k < SLOTS; k++) free(all[i].blocks[k]), all[i].blocks[k] = NULL;
  return time;
}

/* Threads that keep blocks, and leave every other one to whoever finds it in a shared table. */
enum { SHARED = 4096 };
static void *_Atomic shared[SHARED];
static void *exchanger(void *arg) {
  uint64_t own = (uint64_t)(uintptr_t)arg * 0x9e3779b97f4a7c15u | 1;
  void *kept[512] = {0};
  for (size_t i = 0; i < 1000000; i++) {
    next_random(&own);
    size_t size = own % 64 ? 16 + own % 256 : 1000 + own % 8192;
    void *block = malloc(size), *old;
    touch(block, size);
    if (own >> 20 & 1) old = __atomic_exchange_n(&shared[(own >> 32) % SHARED], block, __ATOMIC_ACQ_REL);
    else old = kept[(own >> 32) % 512], kept[(own >> 32) % 512] = block;
    free(old);
  }
  for (size_t i = 0; i < 512; i++) free(kept[i]);
  return arg;
}
static double exchanged(size_t threads) {
  double time = in_threads(threads, exchanger);
  for (size_t i = 0; i < SHARED; i++) free(__atomic_exchange_n(&shared[i], NULL, __ATOMIC_ACQ_REL));
  return time / 1e6 / (double)threads;
}

/* Threads that write to a block of their own; the first one was allocated by the main thread, side by side with the others'. */
static void *first_blocks[16];
static void *scratcher(void *arg) {
  char *block = first_blocks[(uintptr_t)arg - 1];
  for (int i = 0; i < 200000; i++) {
    for (int k = 0; k < 20; k++) ((volatile char *)block)[k % 8]++;
    free(block);
    block = malloc(8);
  }
  free(block);
  return NULL;
}
static double scratched(size_t threads) {
  for (size_t i = 0; i < threads; i++) first_blocks[i] = calloc(1, 8);
  return in_threads(threads, scratcher) / 2e5 / (double)threads;
}

/* Trees that are built and taken down. */
struct node { struct node *left, *right; };
static struct node *grow_tree(int depth) {
  struct node *node = malloc(sizeof *node);
  if (!node) abort();
  node->left = depth ? grow_tree(depth - 1) : NULL;
  node->right = depth ? grow_tree(depth - 1) : NULL;
  return node;
}
static size_t fell_tree(struct node *node) {
  size_t count = node->left ? fell_tree(node->left) + fell_tree(node->right) : 0;
  free(node);
  return count + 1;
}
static double trees(int depth, size_t rounds) {
  struct node *old = grow_tree(depth);
  size_t count = 0;
  double start = now();
  for (size_t i = 0; i < rounds; i++) count += fell_tree(grow_tree((int)(i % (size_t)depth)));
  double time = (now() - start) / (double)count;
  fell_tree(old);
  return time;
}

/* Batches by class, freed last first or first first, as a compiler's passes do. */
static double batches(size_t rounds) {
  enum { MOST = 4000 };
  void *blocks[MOST];
  size_t all = 0;
  double start = now();
  for (size_t round = 0; round < rounds; round++) {
    size_t count = 100 + below(MOST - 100), size = 8 + below(600);
    for (size_t i = 0; i < count; i++) touch(blocks[i] = malloc(size), size);
    if (round % 2)
      for (size_t i = 0; i < count; i++) free(blocks[i]);
    else
      for (size_t i = count; i-- > 0;) free(blocks[i]);
    all += count;
  }
  return (now() - start) / (double)all;
}

/* Phases with sizes of their own around 64 MiB of live blocks, of which a tenth stays each time, and small and mixed ones in between:
   how many bytes are resident for a live one, at the ends of the phases on average. */
static double fragmented(double seconds) {
  enum { MOST = 1 << 22 };
  void **blocks = calloc(MOST, sizeof *blocks);
  size_t *sizes = calloc(MOST, sizeof *sizes), live = 0, count = 0, phase = 0, own;
  memset(blocks, 0, MOST * sizeof *blocks), memset(sizes, 0, MOST * sizeof *sizes); /* all theirs is resident from now on */
  own = resident();
  double end = now() + seconds * 1e9, sum = 0;
  while (now() < end) {
    size_t typical = 24u << below(9);
    while (live < (64u << 20) && count < MOST) {
      size_t size = below(8) ? typical / 2 + below(typical) : mixed();
      touch_all(blocks[count] = malloc(size), size);
      live += sizes[count++] = size;
    }
    for (size_t turn = 0; turn < count; turn++) {
      size_t at = below(count), size = typical / 2 + below(typical);
      free(blocks[at]);
      live -= sizes[at];
      touch_all(blocks[at] = malloc(size), size);
      live += sizes[at] = size;
    }
    sum += (double)(resident() - own) / (double)live, phase++;
    for (size_t at = 0; at < count;)
      if (below(10)) {
        free(blocks[at]);
        live -= sizes[at], count--;
        blocks[at] = blocks[count], sizes[at] = sizes[count];
      } else at++;
  }
  for (size_t i = 0; i < count; i++) free(blocks[i]);
  free(blocks), free(sizes);
  return sum / (double)phase;
}

/* The exit status of a command, whose peak of resident KiB goes to a file. LIBRARY in the environment is what it is preloaded with. */
static int peak(const char *file, char **command) {
  const char *library = getenv("LIBRARY");
  struct rusage usage;
  int status;
  pid_t child;
  FILE *out = fopen(file, "w");
  if (library) setenv("LD_PRELOAD", library, 1), unsetenv("LIBRARY");
  if (!out || posix_spawnp(&child, command[0], NULL, NULL, command, environ) || wait4(child, &status, 0, &usage) < 0)
    return fprintf(stderr, "heap peak: %s cannot be run\n", command[0]), 2;
  fprintf(out, "%ld\n", usage.ru_maxrss);
  return fclose(out) || !WIFEXITED(status) ? 2 : WEXITSTATUS(status);
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  if (argc > 3 && strcmp(what, "peak") == 0) return peak(argv[2], argv + 3);
  double result;
#define WORKLOAD(name, call) else if (strcmp(what, name) == 0) result = call
  if (strcmp(what, "list") == 0) {
    puts("pair-16 pair-1K pair-8K pair-200K pair-1M pair-16M churn-64 churn-mixed churn-4K used burst passed-16 passed-1K realloc-1 realloc-16 lives calloc-200 "
         "calloc-20K threads-2 served exchanged-2 exchanged-8 scratched-2 trees batches kept-64 kept-1K kept-100K kept-trim");
    return 0;
  }
  WORKLOAD("pair-16", pairs(16, 20000000));
  WORKLOAD("pair-1K", pairs(1024, 20000000));
  WORKLOAD("pair-8K", pairs(8192, 5000000));
  WORKLOAD("pair-200K", pairs(200000, 1000000));
  WORKLOAD("pair-1M", pairs(1 << 20, 100000));
  WORKLOAD("pair-16M", pairs(16 << 20, 50000));
  WORKLOAD("churn-64", churn(64, 100000, 5000000));
  WORKLOAD("churn-mixed", churn(MIXED, 100000, 5000000));
  WORKLOAD("churn-4K", churn(PAGES, 5000, 5000000));
  WORKLOAD("used", used(100000, 5000000));
  WORKLOAD("burst", burst(100000, 10));
  WORKLOAD("passed-16", passed_on(16, 5000000));
  WORKLOAD("passed-1K", passed_on(1024, 2000000));
  WORKLOAD("realloc-1", growth(1, 3000));
  WORKLOAD("realloc-16", growth(16, 100));
  WORKLOAD("lives", lives(5000));
  WORKLOAD("calloc-200", zeroed(200, 5000000));
  WORKLOAD("calloc-20K", zeroed(20000, 300000));
  WORKLOAD("threads-2", together(2));
  WORKLOAD("served", served(40));
  WORKLOAD("exchanged-2", exchanged(2));
  WORKLOAD("exchanged-8", exchanged(8));
  WORKLOAD("scratched-2", scratched(2));
  WORKLOAD("trees", trees(16, 400));
  WORKLOAD("batches", batches(2000));
  WORKLOAD("fragmented", fragmented(argc > 2 ? atof(argv[2]) : 20));
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
