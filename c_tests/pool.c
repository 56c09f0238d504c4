/* valgrind: heap only */
/* Pools and object pools: every field, bounds, statistics, misuse, callbacks, waiting, what is left at the end. */
#include "check.h"
#include <pthread.h>
#include <quantum_memory.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

static int dispatched;
static memory_error_t last_dispatched;
void handle_memory_error(memory_error_t error) {
  dispatched++;
  last_dispatched = error;
}

static memory_stats_t pool_stats(const qmem_pool_t *pool) {
  memory_stats_t stats;
  memset(&stats, 0xAA, sizeof stats);
  STATUS(MEMORY_STATUS_OK, qmem_pool_get_stats(pool, &stats));
  return stats;
}

static qmem_pool_t *pool_of(const size_t *sizes, size_t count, size_t initial, size_t most, bool cache) {
  qmem_pool_config_t config;
  memset(&config, 0, sizeof config);
  config.block_sizes = sizes;
  config.num_block_sizes = count;
  config.initial_capacity = initial;
  config.max_capacity = most;
  config.thread_cache = cache;
  return qmem_pool_create(&config);
}

static void defaults(void) {
  qmem_pool_t *pool = qmem_pool_create(NULL);
  size_t size;
  CHECK(pool != NULL);
  for (size = 1; size <= 8192; size = size * 3 / 2 + 1) {
    unsigned char *block = (unsigned char *)qmem_pool_allocate(pool, size), *other = (unsigned char *)qmem_pool_allocate(pool, size);
    size_t want = 64;
    while (want < size)
      want *= 2;
    CHECK(block != NULL && other != NULL && (block + want <= other || other + want <= block));
    CHECK(qmem_pool_block_size(pool, size) == want && qmem_usable_size(block) == want && (uintptr_t)block % want == 0);
    CHECK(qmem_kind(block) == QMEM_MEMORY_HEAP && qmem_kind(block + want - 1) == QMEM_MEMORY_HEAP && qmem_refcount(block) == 1);
    memset(block, 1, want);
    memset(other, 2, want);
    CHECK(block[0] == 1 && block[want - 1] == 1);
    qmem_pool_release(pool, block);
    qmem_pool_release(pool, other);
    CHECK(qmem_usable_size(block) == 0);
  }
  REFUSED("largest block, which has 8192", qmem_pool_allocate(pool, 8193));
  CHECK(qmem_pool_block_size(pool, 8193) == 0 && qmem_pool_block_size(pool, 0) == 64);
  qmem_pool_release(pool, NULL);
  STATUS(MEMORY_STATUS_OK, qmem_pool_destroy(pool));
  FAILS(MEMORY_STATUS_NOT_FOUND, "destroyed already", qmem_pool_destroy(pool));
  REFUSED("destroyed already", qmem_pool_allocate(pool, 1));
}

/* The faults of a pool that people had: 90 bytes in a 64-byte block, a second live block that deadlocks, statistics that never fall. */
static void numbers(bool cache) {
  static const size_t sizes[] = {4000, 90, 64};
  qmem_pool_t *pool = pool_of(sizes, 3, 10, 1000, cache);
  void *blocks[1000], *larger;
  memory_stats_t stats;
  int i;
  stats = pool_stats(pool);
  CHECK(stats.resident_bytes >= 10 * 4154 && stats.current_allocated == 0 && stats.num_allocations == 0 && stats.fragmentation == 1.0);
  blocks[0] = qmem_pool_allocate(pool, 65);
  CHECK(qmem_usable_size(blocks[0]) == 90 && pool_stats(pool).current_allocated == 90);
  for (i = 1; i < 1000; i++)
    blocks[i] = qmem_pool_allocate(pool, 90);
  CHECK(blocks[999] != NULL);
  dispatched = 0;
  REFUSED("all 1000 blocks of 90 bytes", qmem_pool_allocate(pool, 70));
  CHECK(dispatched == 0);
  larger = qmem_pool_allocate(pool, 91); /* other sizes have their own bound */
  stats = pool_stats(pool);
  CHECK(larger != NULL && stats.num_allocations == 1001 && stats.num_frees == 0 && stats.current_allocated == 90000 + 4000);
  CHECK(stats.peak_allocated == 94000 && stats.total_allocated == 94000 && stats.largest_allocation == 4000);
  CHECK(stats.resident_bytes > 94000 && stats.peak_resident_bytes >= stats.resident_bytes && stats.fragmentation < 1.0);
  CHECK(cache ? stats.cache_hits > 900 && stats.cache_hits + stats.cache_misses == 1001 : stats.cache_hits == 0);
  qmem_pool_release(pool, blocks[500]);
  blocks[500] = qmem_pool_allocate(pool, 90);
  CHECK(blocks[500] != NULL && qmem_pool_allocate(pool, 90) == NULL);
  for (i = 0; i < 1000; i++) {
    if (i % 2)
      qmem_pool_release(pool, blocks[i]);
    else
      qmem_free(blocks[i]); /* any free finds the pool */
  }
  qmem_pool_release(pool, larger);
  stats = pool_stats(pool);
  CHECK(stats.current_allocated == 0 && stats.num_allocations == 1002 && stats.num_frees == 1002 && stats.peak_allocated == 94000);
  STATUS(MEMORY_STATUS_OK, qmem_pool_warm(pool, 90, 600));
  CHECK(pool_stats(pool).resident_bytes >= 600 * 90);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "1001 blocks of 90 bytes", qmem_pool_warm(pool, 90, 1001));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "4001 bytes", qmem_pool_warm(pool, 4001, 1));
  STATUS(MEMORY_STATUS_OK, qmem_pool_trim(pool));
  CHECK(pool_stats(pool).resident_bytes == 0);
  CHECK((larger = qmem_pool_allocate(pool, 1)) != NULL);
  qmem_pool_release(pool, larger);
  STATUS(MEMORY_STATUS_OK, qmem_pool_destroy(pool));
}

static void reallocated(void) {
  static const size_t sizes[] = {64, 256, 1024};
  qmem_pool_t *pool = pool_of(sizes, 3, 0, 4, false);
  char *block = (char *)qmem_pool_allocate(pool, 60), *same;
  strcpy(block, "kept");
  same = (char *)qmem_realloc(block, 64);
  CHECK(same == block);
  block = (char *)qmem_realloc(block, 700);
  CHECK(block != NULL && strcmp(block, "kept") == 0 && qmem_usable_size(block) == 1024 && qmem_kind(block) == QMEM_MEMORY_HEAP);
  REFUSED("largest block, which has 1024", qmem_realloc(block, 1025));
  CHECK(strcmp(block, "kept") == 0);
  CHECK(qmem_retain(block) == NULL);
  block = (char *)qmem_realloc(block, 3);
  CHECK(strcmp(block, "kept") == 0 && qmem_usable_size(block) == 64);
  qmem_pool_release(pool, block);
  CHECK(pool_stats(pool).current_allocated == 0);
  STATUS(MEMORY_STATUS_OK, qmem_pool_destroy(pool));
}

static void bad_arguments(void) {
  static const size_t zero_size[] = {64, 0}, twice[] = {64, 128, 64}, good[] = {64};
  static size_t many[1025];
  qmem_pool_config_t config;
  qmem_pool_t *pool = pool_of(good, 1, 1, 1, false);
  memory_stats_t stats;
  size_t i;
  for (i = 0; i < 1025; i++)
    many[i] = i + 1;
  REFUSED("block_sizes[1] = 0", pool_of(zero_size, 2, 0, 0, false));
  REFUSED("64 more than once", pool_of(twice, 3, 0, 0, false));
  REFUSED("block_sizes is NULL", pool_of(NULL, 1, 0, 0, false));
  REFUSED("num_block_sizes = 1025", pool_of(many, 1025, 0, 0, false));
  REFUSED("initial_capacity = 5 and max_capacity = 4", pool_of(good, 1, 5, 4, false));
  REFUSED("4294967295", pool_of(good, 1, 1, (size_t)1 << 32, false));
  memset(&config, 0, sizeof config);
  config.reserved[2] = 7;
  REFUSED("reserved[2] = 7", qmem_pool_create(&config));
  config.reserved[2] = 0;
  memset(&config.thread_cache, 2, 1);
  REFUSED("thread_cache holds the byte 2", qmem_pool_create(&config));
  REFUSED("the pool is NULL", qmem_pool_allocate(NULL, 1));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "the pool is NULL", qmem_pool_trim(NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "the pool is NULL", qmem_pool_warm(NULL, 1, 1));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "the pool is NULL", qmem_pool_destroy(NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "the pool is NULL", qmem_pool_get_stats(NULL, &stats));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "stats is NULL", qmem_pool_get_stats(pool, NULL));
  FAILS(MEMORY_STATUS_NOT_FOUND, "is no pool", qmem_pool_trim((qmem_pool_t *)&config));
  STATUS(MEMORY_STATUS_OK, qmem_pool_destroy(pool));
}

/* Misuse, each in a child. */
static qmem_pool_t *victim;
static void released_twice(void) {
  void *block = qmem_pool_allocate(victim, 64);
  qmem_pool_release(victim, block);
  qmem_pool_release(victim, block);
}
static void freed_twice(void) {
  void *block = qmem_pool_allocate(victim, 64);
  qmem_free(block);
  qmem_free(block);
}
static void released_inside(void) { qmem_pool_release(victim, (char *)qmem_pool_allocate(victim, 64) + 8); }
static void released_foreign(void) { qmem_pool_release(victim, &victim); }
static void released_heap_block(void) { qmem_pool_release(victim, qmem_allocate(64, 0)); }
static void released_elsewhere(void) { qmem_pool_release(qmem_pool_create(NULL), qmem_pool_allocate(victim, 64)); }
static void *make_object(void *user) { return ++*(char **)user; }
static void object_twice(void) {
  static char objects[8], *next = objects;
  qmem_object_pool_config_t config;
  void *object;
  memset(&config, 0, sizeof config);
  config.create = make_object;
  config.user = &next;
  qmem_object_pool_t *pool = qmem_object_pool_create(&config);
  object = qmem_object_pool_acquire(pool, 0);
  qmem_object_pool_release(pool, object);
  qmem_object_pool_release(pool, object);
}
static void left_over(void) {
  qmem_pool_allocate(victim, 10);
  qmem_pool_allocate(victim, 10);
  if (qmem_pool_destroy(victim) != MEMORY_STATUS_OK || dispatched != 1 || last_dispatched != MEMORY_ERROR_LEAK)
    abort();
}

static int run(void (*act)(void), char *text, size_t cap) {
  int pipes[2], status = 0;
  ssize_t n;
  size_t len = 0;
  if (pipe(pipes) != 0)
    exit(2);
  pid_t child = fork();
  if (child == 0) {
    dup2(pipes[1], 2);
    dispatched = 0;
    act();
    _exit(0);
  }
  close(pipes[1]);
  while (len + 1 < cap && (n = read(pipes[0], text + len, cap - 1 - len)) > 0)
    len += (size_t)n;
  text[len] = 0;
  close(pipes[0]);
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static void dies(const char *name, void (*act)(void), const char *word) {
  char text[4096];
  int ended = run(act, text, sizeof text);
  if (ended != SIGABRT || strncmp(text, "qmem: ", 6) != 0 || strstr(text, word) == NULL) {
    fprintf(stderr, "%s: ended with %d and said: %s\n", name, ended, text);
    checks_failed++;
  }
}

static void misuse(void) {
  static const size_t sizes[] = {64};
  char text[4096];
  victim = pool_of(sizes, 1, 1, 100, true);
  dies("released twice", released_twice, "released already");
  dies("freed twice", freed_twice, "released already");
  dies("inside a block", released_inside, "pass the start");
  dies("foreign pointer", released_foreign, "no block of a pool");
  dies("heap block", released_heap_block, "no block of a pool");
  dies("another pool's", released_elsewhere, "another pool");
  dies("object released twice", object_twice, "released already");
  CHECK(run(left_over, text, sizeof text) == 0);
  CHECK(strstr(text, "leak: pool block of 64 bytes at 0x") != NULL);
  qmem_pool_release(NULL, &victim); /* an error, no more */
  check_message("the pool is NULL", __FILE__, __LINE__);
  STATUS(MEMORY_STATUS_OK, qmem_pool_destroy(victim));
}

/* Object pools. */
typedef struct {
  int made, reset, destroyed, values[4];
} objects_t;
static void *create_object(void *user) {
  objects_t *all = (objects_t *)user;
  return all->made < 4 ? &all->values[all->made++] : NULL;
}
static void reset_object(void *object, void *user) {
  *(int *)object = 0;
  ((objects_t *)user)->reset++;
}
static void destroy_object(void *object, void *user) {
  *(int *)object = -1;
  ((objects_t *)user)->destroyed++;
}
static void *give_back_later(void *argument) {
  void **both = (void **)argument;
  usleep(20000);
  qmem_object_pool_release((qmem_object_pool_t *)both[0], both[1]);
  return NULL;
}

static void objects(void) {
  objects_t all;
  qmem_object_pool_config_t config;
  qmem_object_pool_t *pool;
  void *one, *two, *both[2];
  pthread_t thread;
  memset(&all, 0, sizeof all);
  memset(&config, 0, sizeof config);
  REFUSED("config is NULL", qmem_object_pool_create(NULL));
  REFUSED("create is NULL", qmem_object_pool_create(&config));
  config.create = create_object;
  config.reset = reset_object;
  config.destroy = destroy_object;
  config.user = &all;
  config.initial_size = 3;
  config.max_size = 2;
  REFUSED("initial_size = 3 and max_size = 2", qmem_object_pool_create(&config));
  config.reserved[0] = 1;
  REFUSED("reserved[0]", qmem_object_pool_create(&config));
  config.reserved[0] = 0;
  CHECK(all.made == 0);
  config.initial_size = 1;
  pool = qmem_object_pool_create(&config);
  CHECK(pool != NULL && all.made == 1);
  one = qmem_object_pool_acquire(pool, 0);
  two = qmem_object_pool_acquire(pool, 0);
  CHECK(one == &all.values[0] && two == &all.values[1] && all.made == 2);
  REFUSED("all 2 objects", qmem_object_pool_acquire(pool, 0));
  REFUSED("within 5 ms", qmem_object_pool_acquire(pool, 5));
  *(int *)one = 77;
  both[0] = pool;
  both[1] = one;
  if (pthread_create(&thread, NULL, give_back_later, both) != 0)
    exit(2);
  CHECK(qmem_object_pool_acquire(pool, UINT32_MAX) == one && *(int *)one == 0 && all.reset == 1);
  pthread_join(thread, NULL);
  qmem_object_pool_release(pool, one);
  qmem_object_pool_release(pool, NULL);
  CHECK(qmem_object_pool_acquire(pool, 0) == one && all.reset == 2 && all.destroyed == 0);
  qmem_object_pool_release(pool, one);
  dispatched = 0;
  qmem_object_pool_destroy(pool); /* one object is not back */
  CHECK(all.destroyed == 1 && *(int *)one == -1 && *(int *)two == 0 && dispatched == 1 && last_dispatched == MEMORY_ERROR_LEAK);
  REFUSED("destroyed already", qmem_object_pool_acquire(pool, 0));
  qmem_object_pool_destroy(NULL);
  config.initial_size = 3; /* two are left to be made */
  config.max_size = 0;
  REFUSED("returned NULL", qmem_object_pool_create(&config));
  CHECK(all.destroyed == 3);
}

/* Pools live in the budget, and longer than what is initialised and cleaned up beside them. */
static void budget(void) {
  static const size_t sizes[] = {1 << 16};
  memory_allocation_config_t config;
  void *blocks[200];
  int n = 0;
  qmem_pool_t *pool = pool_of(sizes, 1, 1, 0, false);
  memset(&config, 0, sizeof config);
  config.max_memory = 8 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  REFUSED("initial_capacity = 200 blocks of 65536", pool_of(sizes, 1, 200, 0, false));
  dispatched = 0;
  while (n < 200 && (blocks[n] = qmem_pool_allocate(pool, 1 << 16)) != NULL)
    n++;
  CHECK(n > 90 && n < 128 && dispatched == 1 && last_dispatched == MEMORY_ERROR_ALLOCATION);
  CHECK(stats_now().resident_bytes <= 8 << 20 && pool_stats(pool).budget_bytes == 8 << 20);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  REFUSED("stopped", qmem_pool_allocate(pool, 1));
  REFUSED("stopped", qmem_pool_create(NULL));
  qmem_pool_release(pool, blocks[--n]);
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  CHECK(qmem_usable_size(blocks[0]) == 1 << 16);
  while (n > 0)
    qmem_pool_release(pool, blocks[--n]);
  CHECK(pool_stats(pool).current_allocated == 0 && pool_stats(pool).resident_bytes <= 3 << 20);
  STATUS(MEMORY_STATUS_OK, qmem_pool_destroy(pool));
}

int main(void) {
  defaults();
  numbers(false);
  numbers(true);
  reallocated();
  bad_arguments();
  misuse();
  objects();
  budget();
  return finish();
}
