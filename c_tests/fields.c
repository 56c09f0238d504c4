/* needs paged memory */
/* No field is decoration: for each field of the configs of allocation, unified pool, resources, system and recovery, a pair of runs in
   fresh processes that differ in that field alone, and in what is observed. A row is FIELD, value, other value, what is seen with each. */
#include "check.h"
#include <quantum_memory.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MIB = 1 << 20 };
static memory_allocation_config_t allocation;
static unified_pool_config_t pool;
static resource_management_config_t resources;
static memory_system_config_t whole;
static recovery_config_t recovery;

static void silent(memory_error_t error, memory_status_t status, const char *message, void *user) {
  (void)error, (void)status, (void)message, (void)user;
}
static void start_allocation(void) { STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&allocation)); }
static void start_pool(void) {
  start_allocation();
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&pool));
}

/* ---- what is observed: a number, in a fresh process ---- */
static long kind_of_a_block(void) {
  start_allocation();
  return qmem_kind(qmem_allocate(4 * MIB, 0));
}
static long grants_twice_the_budget(void) {
  start_allocation();
  return qmem_can_allocate((size_t)128 * MIB);
}
static long budget_in_mib(void) {
  start_allocation();
  return (long)(stats_now().budget_bytes / MIB);
}

/* A buffer whose pages hold that share of noise, evicted: how many MiB of it are compressed or, if `swapped`, in the swap file. */
static uint32_t seed = 1;
static void noise(unsigned char *page, size_t bytes) {
  size_t i;
  for (i = 0; i < bytes; i++)
    page[i] = (unsigned char)((seed = seed * 1664525 + 1013904223) >> 24);
}
static memory_stats_t evicted(double share) {
  memory_stats_t stats;
  size_t size = 32 * MIB, at;
  unsigned char *block;
  start_allocation();
  block = (unsigned char *)qmem_allocate(size, 0);
  for (at = 0; at < size; at += 4096)
    noise(block + at, (size_t)(4096 * share));
  qmem_evict(block, size);
  STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(block, &stats));
  return stats;
}
static long is_compressed(void) { return evicted(0.3).compressed_bytes > 0; }
static long a_tenth_shorter_is_swapped(void) { return evicted(0.9).swapped_bytes > 16 * MIB; }
static long two_fifths_shorter_are_swapped(void) { return evicted(0.58).swapped_bytes > 16 * MIB; }
static long three_tenths_shorter_are_swapped(void) { return evicted(0.70).swapped_bytes > 16 * MIB; }
static long equal_chunks_share(void) {
  size_t size = 32 * MIB, at;
  unsigned char *block;
  start_allocation();
  block = (unsigned char *)qmem_allocate(size, 0);
  noise(block, 2 * MIB);
  for (at = 2 * MIB; at < size; at += 2 * MIB)
    memcpy(block + at, block, 2 * MIB);
  qmem_evict(block, size);
  return stats_now().deduplicated_bytes > 0;
}

static long room_beside_the_pool(void) {
  start_pool();
  return qmem_can_allocate(32 * MIB);
}
static long pool_gives_8_mib(void) {
  start_pool();
  return qmem_unified_interface()->allocate(8 * MIB, 0) != NULL;
}
static long row_stride(void) {
  size_t dimensions[2] = {64, 1024};
  qmem_layout_t layout;
  start_pool();
  STATUS(MEMORY_STATUS_OK, qmem_get_layout(qmem_unified_interface()->allocate_geometric(dimensions, 2), &layout));
  return (long)layout.strides[0];
}
static long gives_a_streaming_buffer(void) {
  start_pool();
  return qmem_unified_interface()->allocate_streaming(8 * MIB, 0) != NULL;
}
static long resident_kib_of_one_touch(void) {
  memory_stats_t stats;
  unsigned char *block;
  start_pool();
  block = (unsigned char *)qmem_unified_interface()->allocate_streaming(8 * MIB, 0);
  block[0] = 1;
  STATUS(MEMORY_STATUS_OK, qmem_get_buffer_stats(block, &stats));
  return (long)(stats.resident_bytes / 1024);
}
static double told_tolerance;
static char arena[4096] __attribute__((aligned(64)));
static void *own_hierarchical(size_t size, double tolerance) {
  (void)size;
  told_tolerance = tolerance;
  return arena;
}
static int asked;
static void *own_allocate(size_t size, size_t alignment) {
  (void)size, (void)alignment;
  asked++;
  return NULL;
}
static void own_free(void *block) { (void)block; }
static void use_own(void) {
  unified_memory_interface_t own;
  memset(&own, 0, sizeof own);
  own.allocate = own_allocate;
  own.free = own_free;
  own.allocate_hierarchical = own_hierarchical;
  STATUS(MEMORY_STATUS_OK, qmem_register_interface(&own));
  allocation.allocation_type = ALLOC_CUSTOM;
}
static long default_tolerance_in_millionths(void) {
  use_own();
  start_pool();
  CHECK(qmem_unified_interface()->allocate_hierarchical(64, 0) != NULL);
  return (long)(told_tolerance * 1e6 + 0.5);
}

static qmem_resource_t *made[3];
static void start_resources(void) {
  STATUS(MEMORY_STATUS_OK, initialize_resource_management(&resources));
  made[0] = qmem_resource_register(QMEM_RESOURCE_CUSTOM, "a", 1000, -1);
  made[1] = qmem_resource_register(QMEM_RESOURCE_CUSTOM, "b", 1000, -1);
}
static int who_gets(uint64_t amount) {
  qmem_resource_t *chosen = NULL;
  qmem_resource_acquire(QMEM_RESOURCE_CUSTOM, amount, 0, &chosen);
  return chosen == made[0] ? 1 : chosen == made[1] ? 2 : 0;
}
static long sequence_of_grants(void) { /* a large one, then three small ones */
  long sequence;
  start_resources();
  sequence = who_gets(300);
  sequence = sequence * 10 + who_gets(10);
  sequence = sequence * 10 + who_gets(10);
  return sequence * 10 + who_gets(10);
}
static long registers_a_third(void) {
  start_resources();
  return qmem_resource_register(QMEM_RESOURCE_CUSTOM, "c", 1, -1) != NULL;
}
static long history_kept(void) {
  size_t count = 0;
  start_resources();
  who_gets(1);
  STATUS(MEMORY_STATUS_OK, qmem_resource_history(made[0], NULL, 0, &count));
  return (long)count;
}
static long quota_follows(void) {
  qmem_resource_t *chosen;
  start_resources();
  who_gets(600), who_gets(600);
  return qmem_resource_acquire(QMEM_RESOURCE_CUSTOM, 700, resources.enable_optimization ? 20000 : 300, &chosen) == MEMORY_STATUS_OK;
}

static bool summary_says(const char *line) {
  char text[2048];
  qmem_system_summary(text, sizeof text);
  return strstr(text, line) != NULL;
}
static long starts_recovery(void) {
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&whole));
  return stop_memory_recovery() == MEMORY_STATUS_OK;
}
static long asks_for_the_tuner(void) {
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&whole));
  return !summary_says("memory tuning: not started");
}
static long exported(const char *word) {
  static char text[1 << 18];
  FILE *file = tmpfile();
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&whole));
  STATUS(MEMORY_STATUS_OK, qmem_write_metrics(file, "openmetrics"));
  rewind(file);
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  return strstr(text, word) != NULL;
}
static long exports_counters(void) { return exported("qmem_swap_read_bytes_total"); }
static long exports_latencies(void) { return exported("qmem_fault_duration_seconds_bucket"); }
static long budget_is_a_quarter(void) { return exported("qmem_error_budget 0.25"); }

static long times_asked(void) {
  use_own();
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&recovery));
  start_allocation();
  CHECK(qmem_allocate(64, 0) == NULL);
  return asked;
}
static char directory[64];
static long checkpoints_are_made(void) { /* by twelve ticks */
  int tick, file;
  long found = 0;
  setenv("QMEM_CHECKPOINT_DIR", directory, 1);
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&recovery));
  start_allocation();
  CHECK(qmem_allocate(8 * MIB, 0) != NULL);
  for (tick = 0; tick < 12; tick++)
    STATUS(MEMORY_STATUS_OK, qmem_tick());
  for (file = 0; file < 2; file++) {
    char path[100];
    snprintf(path, sizeof path, "%s/qmem-checkpoint.%d", directory, file);
    found += unlink(path) == 0;
  }
  return found;
}
static long writes_a_log(void) {
  char path[100];
  struct stat status;
  snprintf(path, sizeof path, "%s/log", directory);
  setenv("QMEM_LOG", path, 1);
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&recovery));
  start_allocation();
  CHECK(qmem_allocate((size_t)1 << 40, 0) == NULL);
  if (stat(path, &status) != 0)
    return 0;
  unlink(path);
  return 1;
}
static long heap_instead_of_a_device(void) {
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&recovery));
  allocation.allocation_type = ALLOC_GPU;
  return initialize_memory_allocation(&allocation) == MEMORY_STATUS_OK;
}
static long swaps_after_all(void) {
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&recovery));
  start_allocation();
  return qmem_allocate((size_t)128 * MIB, 0) != NULL;
}

/* Runs in a fresh process: the number, or -1000 if a check failed on the way. */
static long observe(long (*what)(void)) {
  long seen = -1000;
  int pipes[2], status;
  pid_t child;
  CHECK(pipe(pipes) == 0);
  fflush(NULL);
  child = fork();
  if (child == 0) {
    qmem_set_error_handler(silent, NULL, NULL, NULL);
    seen = what();
    if (checks_failed)
      seen = -1000;
    if (write(pipes[1], &seen, sizeof seen) != (ssize_t)sizeof seen)
      _exit(1);
    _exit(0);
  }
  close(pipes[1]);
  if (read(pipes[0], &seen, sizeof seen) != (ssize_t)sizeof seen)
    seen = -1000;
  close(pipes[0]);
  waitpid(child, &status, 0);
  return seen;
}

static int rows;
#define ROW(config, field, value, other, what, first, second) \
  do { \
    long a, b; \
    config.field = (value); \
    a = observe(what); \
    config.field = (other); \
    b = observe(what); \
    if (a != (first) || b != (second)) { \
      fprintf(stderr, "%s.%s: %s is %ld with %s and %ld with %s, not %ld and %ld\n", #config, #field, #what, a, #value, b, #other, (long)(first), \
              (long)(second)); \
      checks_failed++; \
    } \
    config.field = (value); \
    rows++; \
  } while (0)

static void defaults(void) {
  memset(&allocation, 0, sizeof allocation);
  memset(&pool, 0, sizeof pool);
  memset(&resources, 0, sizeof resources);
  memset(&whole, 0, sizeof whole);
  memset(&recovery, 0, sizeof recovery);
  allocation.allocation_type = ALLOC_QUANTUM;
  allocation.max_memory = 64 * MIB;
  pool.enable_growth = pool.enable_streaming = true;
}

int main(void) {
  strcpy(directory, "/tmp/qmem-fields-XXXXXX");
  if (mkdtemp(directory) == NULL)
    return 2;

  defaults();
  ROW(allocation, allocation_type, ALLOC_QUANTUM, ALLOC_CLASSICAL, kind_of_a_block, QMEM_MEMORY_PAGED, QMEM_MEMORY_HEAP);
  ROW(allocation, max_memory, 64 * MIB, 96 * MIB, budget_in_mib, 64, 96);
  ROW(allocation, enable_compression, false, true, is_compressed, 0, 1);
  ROW(allocation, enable_swapping, false, true, grants_twice_the_budget, 0, 1);
  ROW(allocation, strategy, STRATEGY_ADAPTIVE, STRATEGY_COMPACT, grants_twice_the_budget, 0, 1);
  allocation.enable_swapping = true;
  ROW(allocation, enable_deduplication, false, true, equal_chunks_share, 0, 1);
  allocation.enable_compression = true;
  ROW(allocation, strategy, STRATEGY_ADAPTIVE, STRATEGY_COMPACT, a_tenth_shorter_is_swapped, 1, 0);
  ROW(allocation, strategy, STRATEGY_ADAPTIVE, STRATEGY_LATENCY, two_fifths_shorter_are_swapped, 0, 1);
  ROW(allocation, strategy, STRATEGY_ADAPTIVE, STRATEGY_THROUGHPUT, three_tenths_shorter_are_swapped, 0, 1);

  defaults();
  allocation.allocation_type = ALLOC_CLASSICAL;
  ROW(pool, initial_size, 0, 48 * MIB, room_beside_the_pool, 1, 0);
  ROW(pool, max_size, 0, 4 * MIB, pool_gives_8_mib, 1, 0);
  pool.initial_size = 4 * MIB;
  ROW(pool, enable_growth, true, false, pool_gives_8_mib, 1, 0);
  pool.initial_size = 0;
  ROW(pool, use_geometric_layout, false, true, row_stride, 1024, 1028);
  ROW(pool, enable_streaming, true, false, gives_a_streaming_buffer, 1, 0);
  ROW(pool, chunk_size, 0, 65536, resident_kib_of_one_touch, 2048, 64);
  ROW(pool, compression_tolerance, 0, 0.125, default_tolerance_in_millionths, 0, 125000);

  ROW(resources, management_type, MANAGE_CLASSICAL, MANAGE_QUANTUM, sequence_of_grants, 1212, 1222);
  ROW(resources, strategy, STRATEGY_ADAPTIVE, STRATEGY_COMPACT, sequence_of_grants, 1212, 1111);
  ROW(resources, max_resources, 0, 2, registers_a_third, 1, 0);
  ROW(resources, enable_monitoring, false, true, history_kept, 0, 1);
  ROW(resources, enable_optimization, false, true, quota_follows, 0, 1);

  ROW(whole, enable_all_features, false, true, starts_recovery, 0, 1);
  ROW(whole, auto_optimization, false, true, asks_for_the_tuner, 0, 1);
  ROW(whole, monitoring_level, MONITOR_NONE, MONITOR_BASIC, exports_counters, 0, 1);
  ROW(whole, monitoring_level, MONITOR_BASIC, MONITOR_DETAILED, exports_latencies, 0, 1);
  ROW(whole, error_budget, 0, 0.25, budget_is_a_quarter, 0, 1);

  defaults();
  ROW(recovery, max_retries, 0, 6, times_asked, 4, 7);
  ROW(recovery, checkpoint_interval, 0, 8, checkpoints_are_made, 0, 1);
  ROW(recovery, enable_logging, false, true, writes_a_log, 0, 1);
  ROW(recovery, fallback_strategy, FALLBACK_NONE, FALLBACK_CLASSICAL, heap_instead_of_a_device, 0, 1);
  ROW(recovery, fallback_strategy, FALLBACK_NONE, FALLBACK_SWAP, swaps_after_all, 0, 1);

  rmdir(directory);
  printf("%d fields and values, each seen to matter\n", rows);
  return finish();
}
