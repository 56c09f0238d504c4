/* Limits by tag and for the process: in bytes and blocks, on blocks of every kind, exactly, also among threads. */
#include "check.h"
#include <pthread.h>
#include <quantum_memory.h>

static char arena[2][4096] __attribute__((aligned(64)));
static int from_arena;
static void *give(size_t size, size_t alignment) {
  (void)alignment;
  return size <= sizeof arena[0] ? arena[from_arena++ % 2] : NULL;
}
static void take(void *block) { (void)block; }

static memory_stats_t of(const char *tag) {
  memory_stats_t stats;
  STATUS(MEMORY_STATUS_OK, qmem_get_tag_stats(tag, &stats));
  return stats;
}

static void tags(void) {
  memory_stats_t stats;
  char name[80];
  const char *former;
  void *a, *b;
  FAILS(MEMORY_STATUS_NOT_FOUND, "\"gates\"", qmem_get_tag_stats("gates", &stats));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "tag is NULL", qmem_get_tag_stats(NULL, &stats));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "1 to 63", qmem_set_limit("", 1, 1));
  memset(name, 'x', 64);
  name[64] = 0;
  CHECK(qmem_set_tag(name) == NULL);
  check_message("64", __FILE__, __LINE__);
  CHECK(qmem_set_tag("gates") == NULL);
  former = qmem_set_tag("states");
  CHECK(former != NULL && strcmp(former, "gates") == 0);
  a = qmem_allocate(1000, 0);
  former = qmem_set_tag(NULL);
  CHECK(former != NULL && strcmp(former, "states") == 0);
  b = qmem_allocate(500, 0);
  CHECK(of("states").current_allocated == 1000 && of("states").num_allocations == 1 && of("gates").current_allocated == 0);
  a = qmem_realloc(a, 3000); /* a block keeps its tag */
  CHECK(of("states").current_allocated == 3000 && of("states").peak_allocated == 3000 && of("states").largest_allocation == 3000);
  a = qmem_realloc(a, 10);
  CHECK(of("states").current_allocated == 10);
  qmem_free(a);
  qmem_free(b);
  CHECK(of("states").current_allocated == 0 && of("states").num_frees == 1);
}

/* Under a tag with room for 10000 bytes in 3 blocks. */
static void enforced(const char *tag, void *(*allocate)(size_t), void (*release)(void *), bool resizes) {
  void *blocks[4];
  STATUS(MEMORY_STATUS_OK, qmem_set_limit(tag, 10000, 3));
  qmem_set_tag(tag);
  blocks[0] = allocate(4000);
  blocks[1] = allocate(4000);
  CHECK(blocks[0] != NULL && blocks[1] != NULL);
  REFUSED("holds 8000 bytes in 2 blocks", allocate(4000));
  check_message(tag, __FILE__, __LINE__);
  if (resizes) {
    CHECK(!qmem_can_allocate(2001) && qmem_can_allocate(2000));
    REFUSED("holds 8000", qmem_realloc(blocks[0], 6001));
    blocks[0] = qmem_realloc(blocks[0], 6000);
    CHECK(blocks[0] != NULL && of(tag).current_allocated == 10000);
    REFUSED("holds 10000", allocate(1));
    blocks[0] = qmem_realloc(blocks[0], 4000);
  }
  blocks[2] = allocate(1000);
  CHECK(blocks[2] != NULL);
  REFUSED("3 blocks", allocate(1));
  release(blocks[1]);
  blocks[3] = allocate(1);
  CHECK(blocks[3] != NULL);
  STATUS(MEMORY_STATUS_OK, qmem_set_limit(tag, 0, 0));
  blocks[1] = allocate(4000);
  CHECK(blocks[1] != NULL && of(tag).num_allocations - of(tag).num_frees == 4);
  release(blocks[0]), release(blocks[1]), release(blocks[2]), release(blocks[3]);
  CHECK(of(tag).current_allocated == 0 && of(tag).num_allocations == of(tag).num_frees);
  qmem_set_tag(NULL);
}
static void *from_heap(size_t size) { return qmem_allocate(size, 0); }
static void *from_pool(size_t size) { return qmem_unified_interface()->allocate(size, 0); }
static void *from_pager(size_t size) { return qmem_allocate_streaming(size, 65536); }
static char foreign[8][4000];
static int next_foreign;
static void *tracked(size_t size) {
  void *block = foreign[next_foreign % 8];
  if (!qmem_unified_interface()->track_allocation(block, size))
    return NULL;
  next_foreign++;
  return block;
}
static void untrack(void *block) { CHECK(qmem_unified_interface()->untrack_allocation(block)); }

static void custom(void) {
  memory_allocation_config_t config;
  unified_memory_interface_t own;
  void *a, *b;
  memset(&config, 0, sizeof config);
  memset(&own, 0, sizeof own);
  own.allocate = give;
  own.free = take;
  STATUS(MEMORY_STATUS_OK, qmem_register_interface(&own));
  config.allocation_type = ALLOC_CUSTOM;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  STATUS(MEMORY_STATUS_OK, qmem_set_limit("custom", 5000, 0));
  qmem_set_tag("custom");
  a = qmem_allocate(4000, 0);
  REFUSED("holds 4000", qmem_allocate(1001, 0));
  b = qmem_allocate(1000, 0);
  CHECK(a != NULL && b != NULL && qmem_kind(a) == QMEM_MEMORY_CUSTOM);
  qmem_free(a);
  qmem_free(b);
  CHECK(of("custom").current_allocated == 0);
  qmem_set_tag(NULL);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

static void whole_process(void) {
  size_t before = stats_now().current_allocated, live = stats_now().num_allocations - stats_now().num_frees;
  void *a, *b;
  STATUS(MEMORY_STATUS_OK, qmem_set_limit(NULL, before + 1000, 0));
  a = qmem_allocate(600, 0);
  REFUSED("the process holds", qmem_allocate(401, 0));
  b = qmem_allocate(400, 0);
  CHECK(a != NULL && b != NULL);
  STATUS(MEMORY_STATUS_OK, qmem_set_limit(NULL, 0, live + 2));
  REFUSED("blocks", qmem_allocate(1, 0));
  qmem_free(b);
  b = qmem_allocate(100000, 0);
  CHECK(b != NULL);
  STATUS(MEMORY_STATUS_OK, qmem_set_limit(NULL, 0, 0));
  qmem_free(a);
  qmem_free(b);
}

/* Eight threads share a tag of 20 blocks and 20000 bytes: never more, and nothing is lost at the end. */
static volatile bool passed;
static void *churn(void *unused) {
  void *mine[32] = {NULL}; /* more than the limit, should one thread run alone */
  unsigned n, seed = (unsigned)(size_t)&mine;
  (void)unused;
  qmem_set_tag("shared");
  for (n = 0; n < 20000; n++) {
    memory_stats_t stats;
    unsigned at = (seed = seed * 1103515245 + 12345) >> 16 & 31;
    qmem_free(mine[at]);
    mine[at] = qmem_allocate(1000, 0);
    if (n % 64 == 0 && qmem_get_tag_stats("shared", &stats) == MEMORY_STATUS_OK && stats.peak_allocated > 20000)
      passed = true;
  }
  for (n = 0; n < 32; n++)
    qmem_free(mine[n]);
  return NULL;
}
static void silent(memory_error_t error, memory_status_t status, const char *message, void *user) { (void)error, (void)status, (void)message, (void)user; }
static void among_threads(void) {
  pthread_t threads[8];
  int n;
  STATUS(MEMORY_STATUS_OK, qmem_set_limit("shared", 20000, 20));
  for (n = 0; n < 8; n++)
    pthread_create(&threads[n], NULL, churn, NULL);
  for (n = 0; n < 8; n++)
    pthread_join(threads[n], NULL);
  CHECK(!passed && of("shared").peak_allocated == 20000 && of("shared").current_allocated == 0);
}

static void too_many(void) {
  char name[16];
  int n, made = 0;
  for (n = 0; n < 40; n++) {
    snprintf(name, sizeof name, "t%d", n);
    if (qmem_set_limit(name, 0, 0) == MEMORY_STATUS_OK)
      made++;
  }
  CHECK(made > 20 && made < 31);
  FAILS(MEMORY_STATUS_LIMIT, "31 tags", qmem_set_limit("one more", 0, 0));
  CHECK(qmem_set_tag("one more") == NULL);
  STATUS(MEMORY_STATUS_OK, qmem_set_limit("t3", 100, 0)); /* those that are there go on */
}

/* Leftovers are found and freed whatever their tag. */
static void leftovers(void) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  qmem_set_tag("left");
  CHECK(qmem_allocate(100, 0) != NULL && qmem_allocate(100000, 0) != NULL);
  qmem_set_tag(NULL);
  CHECK(qmem_allocate(100, 0) != NULL);
  fprintf(stderr, "(three leaks are to be reported here)\n");
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  CHECK(of("left").current_allocated == 0);
}

int main(void) {
  unified_pool_config_t pool;
  void *paged;
  memset(&pool, 0, sizeof pool);
  pool.enable_growth = pool.enable_streaming = true;
  qmem_set_error_handler(silent, NULL, NULL, NULL);
  tags();
  enforced("heap", from_heap, qmem_free, true);
  enforced("tracked", tracked, untrack, false);
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&pool));
  enforced("pool", from_pool, qmem_free, false);
  STATUS(MEMORY_STATUS_OK, stop_unified_memory());
  STATUS(MEMORY_STATUS_OK, cleanup_unified_memory());
  paged = qmem_allocate_streaming(100, 65536);
  if (paged != NULL)
    enforced("paged", from_pager, qmem_free, true);
  else
    printf("no paged memory on this machine: not tested\n");
  qmem_free(paged);
  whole_process();
  among_threads();
  leftovers();
  custom();
  too_many();
  return finish();
}
