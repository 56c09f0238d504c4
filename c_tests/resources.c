/* Resource management: what each management type and strategy does with the same requests, quotas, waiting, a balancer of the program's
   own, history, rebalancing, stale handles; and a handler that reallocates. */
#include "check.h"
#include <pthread.h>
#include <quantum_memory.h>
#include <time.h>
#include <unistd.h>

static resource_management_config_t base;
static void start(void) { STATUS(MEMORY_STATUS_OK, initialize_resource_management(&base)); }
static void end(void) {
  STATUS(MEMORY_STATUS_OK, stop_resource_management());
  STATUS(MEMORY_STATUS_OK, cleanup_management_resources());
}
static qmem_resource_t *add(qmem_resource_kind_t kind, const char *name, uint64_t capacity) {
  qmem_resource_t *resource = qmem_resource_register(kind, name, capacity, -1);
  CHECK(resource != NULL);
  return resource;
}
static qmem_resource_t *get(qmem_resource_kind_t kind, uint64_t amount) {
  qmem_resource_t *chosen = NULL;
  STATUS(MEMORY_STATUS_OK, qmem_resource_acquire(kind, amount, 0, &chosen));
  return chosen;
}
static uint64_t used(const qmem_resource_t *resource) {
  uint64_t n = UINT64_MAX;
  STATUS(MEMORY_STATUS_OK, qmem_resource_usage(resource, &n, NULL));
  return n;
}
static uint64_t capacity(const qmem_resource_t *resource) {
  uint64_t n = UINT64_MAX;
  STATUS(MEMORY_STATUS_OK, qmem_resource_usage(resource, NULL, &n));
  return n;
}

/* One larger request, then small ones: who gets them tells the types apart. a has 1000, b 600, c 1000. */
static void spread_of(management_type_t type, memory_strategy_t strategy, const char *want) {
  qmem_resource_t *r[3], *got;
  char text[16];
  int n, i;
  base.management_type = type;
  base.strategy = strategy;
  start();
  r[0] = add(QMEM_RESOURCE_CUSTOM, "tcp://one:1/a", 1000);
  r[1] = add(QMEM_RESOURCE_CUSTOM, "tcp://two:1/b", 600);
  r[2] = add(QMEM_RESOURCE_CUSTOM, "tcp://one:1/c", 1000);
  for (n = 0; n < 7; n++) {
    got = get(QMEM_RESOURCE_CUSTOM, n == 0 ? 300 : 50);
    for (i = 0; i < 3 && got != r[i]; i++)
      ;
    text[n] = (char)('a' + i);
  }
  text[n] = 0;
  if (strcmp(text, want) != 0) {
    fprintf(stderr, "type %d, strategy %d: %s, not %s\n", (int)type, (int)strategy, text, want);
    checks_failed++;
  }
  for (n = 0; n < 7; n++)
    STATUS(MEMORY_STATUS_OK, qmem_resource_release(r[text[n] - 'a'], n == 0 ? 300 : 50));
  for (i = 0; i < 3; i++) {
    CHECK(used(r[i]) == 0);
    STATUS(MEMORY_STATUS_OK, qmem_resource_unregister(r[i]));
    STATUS(MEMORY_STATUS_NOT_FOUND, qmem_resource_usage(r[i], NULL, NULL));
  }
  end();
}

static size_t last_one(const qmem_candidate_t *candidates, size_t count, uint64_t amount, void *user) {
  size_t n;
  ++*(int *)user;
  for (n = 0; n < count; n++)
    CHECK(candidates[n].capacity - candidates[n].used >= amount && candidates[n].numa_node == -1);
  CHECK(qmem_get_stats(NULL) == MEMORY_STATUS_INVALID_ARGUMENT); /* no lock is held */
  return count - 1;
}

static void types_and_strategies(void) {
  int asked = 0;
  spread_of(MANAGE_CLASSICAL, STRATEGY_ADAPTIVE, "abcabca");
  spread_of(MANAGE_QUANTUM, STRATEGY_ADAPTIVE, "abcbcbc");
  spread_of(MANAGE_GPU, STRATEGY_ADAPTIVE, "acccccc");
  spread_of(MANAGE_NETWORK, STRATEGY_ADAPTIVE, "abcbabc");
  spread_of(MANAGE_CLASSICAL, STRATEGY_THROUGHPUT, "abcabca");
  spread_of(MANAGE_QUANTUM, STRATEGY_THROUGHPUT, "abcabca");
  spread_of(MANAGE_CLASSICAL, STRATEGY_COMPACT, "aaaaaaa");
  base.management_type = MANAGE_CUSTOM;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "qmem_resource_set_balancer", initialize_resource_management(&base));
  STATUS(MEMORY_STATUS_OK, qmem_resource_set_balancer(last_one, &asked));
  spread_of(MANAGE_CUSTOM, STRATEGY_ADAPTIVE, "ccccccc");
  CHECK(asked == 7);
  base.management_type = MANAGE_CLASSICAL;
}

static void nearest(void) {
  qmem_resource_t *far, *near;
  int node, other = -2;
  base.strategy = STRATEGY_LATENCY;
  start();
  REFUSED("numa_node = 99999", qmem_resource_register(QMEM_RESOURCE_MEMORY, "x", 1, 99999));
  for (node = 0; node < 64; node++) {
    far = qmem_resource_register(QMEM_RESOURCE_MEMORY, "node", 100, node);
    if (far == NULL)
      break;
    other = node;
  }
  CHECK(other >= 0); /* node 0 is always there; with one node alone the distances' own test has to do */
  near = get(QMEM_RESOURCE_MEMORY, 1);
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(near, 1));
  end();
  base.strategy = STRATEGY_ADAPTIVE;
}

static void limits(void) {
  qmem_resource_t *r[3];
  char name[65];
  base.max_resources = 2;
  start();
  FAILS(MEMORY_STATUS_ALREADY_INITIALIZED, "runs", initialize_resource_management(&base));
  r[0] = add(QMEM_RESOURCE_MEMORY, NULL, 10);
  r[1] = add(QMEM_RESOURCE_CACHE, "b", 10);
  REFUSED("max_resources", qmem_resource_register(QMEM_RESOURCE_MEMORY, "c", 10, -1));
  STATUS(MEMORY_STATUS_OK, qmem_resource_unregister(r[0]));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_resource_unregister(r[0]));
  r[2] = add(QMEM_RESOURCE_MEMORY, "c", 10);
  CHECK(r[2] != r[0]); /* its place, but another handle */
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_resource_release(r[0], 1));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "NULL", qmem_resource_release(NULL, 1));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_resource_release((qmem_resource_t *)(void *)name, 1));
  REFUSED("capacity = 0", qmem_resource_register(QMEM_RESOURCE_MEMORY, "d", 0, -1));
  REFUSED("kind = 5", qmem_resource_register((qmem_resource_kind_t)5, "d", 1, -1));
  memset(name, 'x', 64);
  name[64] = 0;
  REFUSED("length of name = 64", qmem_resource_register(QMEM_RESOURCE_MEMORY, name, 1, -1));
  FAILS(MEMORY_STATUS_NOT_FOUND, "no GPU resource", qmem_resource_acquire(QMEM_RESOURCE_GPU, 1, 0, &r[0]));
  FAILS(MEMORY_STATUS_LIMIT, "largest has 10", qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 11, UINT32_MAX, &r[0]));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "chosen is NULL", qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 1, 0, NULL));
  CHECK(get(QMEM_RESOURCE_MEMORY, 10) == r[2]);
  FAILS(MEMORY_STATUS_TIMEOUT, "0 are free", qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 1, 0, &r[0]));
  FAILS(MEMORY_STATUS_BUSY, "10 of the resource \"c\"", qmem_resource_unregister(r[2]));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "10 are in use", qmem_resource_release(r[2], 11));
  STATUS(MEMORY_STATUS_OK, stop_resource_management());
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "stopped", qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 1, 0, &r[0]));
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(r[2], 4));
  fprintf(stderr, "(one leak of a resource is to be reported here)\n");
  STATUS(MEMORY_STATUS_OK, cleanup_management_resources());
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_resource_release(r[2], 6));
  REFUSED("does not run", qmem_resource_register(QMEM_RESOURCE_MEMORY, "e", 1, -1));
  base.max_resources = 0;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Requests are served in the order in which they came: a large one is not overtaken by small ones. */
static qmem_resource_t *pool;
static int order[3], next_place;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *wait_for(void *which) {
  qmem_resource_t *chosen;
  int n = (int)(size_t)which;
  STATUS(MEMORY_STATUS_OK, qmem_resource_acquire(QMEM_RESOURCE_MEMORY, n == 0 ? 100 : 20, UINT32_MAX, &chosen));
  pthread_mutex_lock(&lock);
  order[next_place++] = n;
  pthread_mutex_unlock(&lock);
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(chosen, n == 0 ? 100 : 20));
  return NULL;
}
static void waiting(void) {
  pthread_t threads[3];
  double before;
  int n;
  start();
  pool = add(QMEM_RESOURCE_MEMORY, "pool", 100);
  CHECK(get(QMEM_RESOURCE_MEMORY, 60) == pool && get(QMEM_RESOURCE_MEMORY, 40) == pool);
  before = seconds();
  STATUS(MEMORY_STATUS_TIMEOUT, qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 1, 60, &pool));
  CHECK(seconds() - before >= 0.06);
  next_place = 0;
  for (n = 0; n < 3; n++) {
    pthread_create(&threads[n], NULL, wait_for, (void *)(size_t)n);
    usleep(30000);
  }
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(pool, 40)); /* enough for the small ones, who wait for their turn */
  usleep(30000);
  CHECK(next_place == 0);
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(pool, 60));
  for (n = 0; n < 3; n++)
    pthread_join(threads[n], NULL);
  CHECK(order[0] == 0 && next_place == 3 && used(pool) == 0);
  end();
}

static void *wait_until_stopped(void *unused) {
  qmem_resource_t *chosen;
  (void)unused;
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 1, UINT32_MAX, &chosen));
  return NULL;
}
static void stopping(void) {
  pthread_t thread;
  start();
  pool = add(QMEM_RESOURCE_MEMORY, "pool", 1);
  get(QMEM_RESOURCE_MEMORY, 1);
  pthread_create(&thread, NULL, wait_until_stopped, NULL);
  usleep(20000);
  STATUS(MEMORY_STATUS_OK, stop_resource_management());
  pthread_join(thread, NULL);
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(pool, 1));
  STATUS(MEMORY_STATUS_OK, cleanup_management_resources());
}

static void history(void) {
  qmem_usage_sample_t samples[300];
  qmem_resource_t *r;
  size_t count = 99;
  int n;
  base.enable_monitoring = true;
  start();
  r = add(QMEM_RESOURCE_CACHE, "h", 1000);
  for (n = 0; n < 200; n++) {
    get(QMEM_RESOURCE_CACHE, 1);
    if (n % 2)
      STATUS(MEMORY_STATUS_OK, qmem_resource_release(r, 1));
  }
  STATUS(MEMORY_STATUS_OK, qmem_resource_history(r, samples, 300, &count));
  CHECK(count == 256 && samples[255].used == 100 && samples[254].used == 101 && samples[0].used == 15 && samples[0].capacity == 1000);
  CHECK(samples[0].time_ns > 0 && samples[255].time_ns >= samples[0].time_ns);
  STATUS(MEMORY_STATUS_OK, qmem_resource_history(r, NULL, 0, &count));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_resource_history(r, NULL, 1, &count));
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(r, 100));
  end();
  base.enable_monitoring = false;
  start();
  r = add(QMEM_RESOURCE_CACHE, "h", 1000);
  get(QMEM_RESOURCE_CACHE, 1);
  STATUS(MEMORY_STATUS_OK, qmem_resource_history(r, samples, 300, &count));
  CHECK(count == 0);
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(r, 1));
  end();
}

/* Quota follows demand: by hand, in the handler, in the background. */
static int failures;
void handle_memory_error(memory_error_t error) {
  if (error != MEMORY_ERROR_RESOURCES)
    return;
  failures++;
  reallocate_resources();
}
static void quotas(void) {
  qmem_resource_t *a, *b, *got;
  int n;
  failures = 0;
  start();
  a = add(QMEM_RESOURCE_MEMORY, "a", 100);
  b = add(QMEM_RESOURCE_MEMORY, "b", 100);
  CHECK(get(QMEM_RESOURCE_MEMORY, 60) == a && get(QMEM_RESOURCE_MEMORY, 60) == b && failures == 0);
  got = get(QMEM_RESOURCE_MEMORY, 70); /* 40 + 40 are free: after the handler in one place */
  CHECK(failures == 1 && capacity(got) >= 130 && capacity(a) + capacity(b) == 200);
  STATUS(MEMORY_STATUS_TIMEOUT, qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 20, 0, &got));
  CHECK(failures == 2); /* only 10 are left in all */
  FAILS(MEMORY_STATUS_LIMIT, "10 are free", reallocate_resources());
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(a, used(a)));
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(b, used(b)));
  STATUS(MEMORY_STATUS_OK, reallocate_resources()); /* for the 20 that were short */
  STATUS(MEMORY_STATUS_OK, reallocate_resources()); /* and back to what was registered */
  CHECK(capacity(a) == 100 && capacity(b) == 100);
  end();
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "does not run", reallocate_resources());

  base.enable_optimization = true;
  start();
  a = add(QMEM_RESOURCE_MEMORY, "a", 100);
  b = add(QMEM_RESOURCE_MEMORY, "b", 100);
  CHECK(get(QMEM_RESOURCE_MEMORY, 60) == a && get(QMEM_RESOURCE_MEMORY, 60) == b);
  STATUS(MEMORY_STATUS_OK, qmem_resource_acquire(QMEM_RESOURCE_MEMORY, 70, 20000, &got)); /* the background makes room */
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(got, 70));
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(b, 60));
  for (n = 0; n < 400 && !(capacity(a) > capacity(b) + 20); n++)
    usleep(50000); /* a is in use, b is not */
  CHECK(capacity(a) > capacity(b) + 20 && capacity(a) + capacity(b) == 200);
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(a, 60));
  end();
  base.enable_optimization = false;
  start();
  a = add(QMEM_RESOURCE_MEMORY, "a", 100);
  b = add(QMEM_RESOURCE_MEMORY, "b", 100);
  get(QMEM_RESOURCE_MEMORY, 60);
  usleep(400000);
  CHECK(capacity(a) == 100 && capacity(b) == 100);
  STATUS(MEMORY_STATUS_OK, qmem_resource_release(a, 60));
  end();
}

/* Many threads: what is granted never exceeds a quota, and all comes back. */
static qmem_resource_t *shared[4];
static void *hammer(void *unused) {
  unsigned seed = (unsigned)(size_t)&seed, n;
  (void)unused;
  for (n = 0; n < 2000; n++) {
    qmem_resource_t *chosen;
    uint64_t amount = 1 + (seed = seed * 1103515245 + 12345) / 65536 % 40;
    STATUS(MEMORY_STATUS_OK, qmem_resource_acquire(QMEM_RESOURCE_CUSTOM, amount, UINT32_MAX, &chosen));
    CHECK(used(chosen) <= capacity(chosen));
    STATUS(MEMORY_STATUS_OK, qmem_resource_release(chosen, amount));
  }
  return NULL;
}
static void among_threads(void) {
  pthread_t threads[6];
  int n;
  start();
  for (n = 0; n < 4; n++)
    shared[n] = add(QMEM_RESOURCE_CUSTOM, "s", 40);
  for (n = 0; n < 6; n++)
    pthread_create(&threads[n], NULL, hammer, NULL);
  for (n = 0; n < 6; n++)
    pthread_join(threads[n], NULL);
  for (n = 0; n < 4; n++)
    CHECK(used(shared[n]) == 0);
  end();
}

int main(void) {
  setenv("QMEM_REBALANCE_MS", "20", 1);
  types_and_strategies();
  nearest();
  limits();
  waiting();
  stopping();
  history();
  quotas();
  among_threads();
  return finish();
}
