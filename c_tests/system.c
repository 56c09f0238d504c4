/* The whole system: what it starts, adopts, skips and says of it; and every order of initialising, stopping and cleaning every subsystem,
   at random, against a model of the life cycle. */
#include "check.h"
#include <quantum_memory.h>

static memory_system_config_t system_config(bool all, monitoring_level_t level) {
  memory_system_config_t config;
  memset(&config, 0, sizeof config);
  config.enable_all_features = all;
  config.monitoring_level = level;
  return config;
}

static bool says(const char *line) {
  static char text[2048];
  size_t n = qmem_system_summary(text, sizeof text);
  CHECK(n < sizeof text && n == strlen(text));
  return strstr(text, line) != NULL;
}

static void adopts_and_starts(void) {
  memory_system_config_t config = system_config(true, MONITOR_NONE);
  memory_allocation_config_t allocation;
  resource_management_config_t resources;
  memset(&allocation, 0, sizeof allocation);
  memset(&resources, 0, sizeof resources);
  allocation.max_memory = 96 << 20;
  CHECK(qmem_system_summary(NULL, 0) == 0);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&allocation));
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&config));
  CHECK(stats_now().budget_bytes == 96 << 20);
  CHECK(says("memory allocation: adopted") && says("resource management: started") && says("memory recovery: started") && says("unified memory: started"));
  FAILS(MEMORY_STATUS_ALREADY_INITIALIZED, "memory system", initialize_memory_system(&config));
  STATUS(MEMORY_STATUS_ALREADY_INITIALIZED, initialize_resource_management(&resources));
  cleanup_memory_system();
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation()); /* cleaned: nothing to do */
  REFUSED("cleaned up", qmem_allocate(1, 0));
  CHECK(stats_now().budget_bytes == 0);

  config.enable_all_features = false; /* adopts only */
  STATUS(MEMORY_STATUS_OK, initialize_resource_management(&resources));
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&config));
  CHECK(says("resource management: adopted") && says("memory allocation: not started: not asked for"));
  CHECK(stats_now().budget_bytes == 0);
  STATUS(MEMORY_STATUS_ALREADY_INITIALIZED, initialize_memory_system(&config));
  /* A program that ends the parts itself has ended the whole. */
  STATUS(MEMORY_STATUS_OK, stop_resource_management());
  STATUS(MEMORY_STATUS_OK, cleanup_management_resources());
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&config));
  cleanup_memory_system();

  config.auto_optimization = true;
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&config));
  CHECK(says("memory tuning: ") && !says("memory tuning: not started: not asked for"));
  cleanup_memory_system();
  config.auto_optimization = false;

  config.enable_all_features = true;
  STATUS(MEMORY_STATUS_OK, initialize_resource_management(&resources));
  STATUS(MEMORY_STATUS_OK, stop_resource_management());
  FAILS(MEMORY_STATUS_BUSY, "resource management", initialize_memory_system(&config));
  STATUS(MEMORY_STATUS_OK, cleanup_management_resources());
  /* What fails half-way leaves nothing running. */
  setenv("QMEM_REBALANCE_MS", "no number", 1);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "QMEM_REBALANCE_MS", initialize_memory_system(&config));
  unsetenv("QMEM_REBALANCE_MS");
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&config));
  cleanup_memory_system();
}

/* ---- every order ---- */
typedef enum { NEVER, RUNNING, STOPPED, CLEANED } phase_t;
static memory_allocation_config_t allocation;
static unified_pool_config_t pool;
static resource_management_config_t resources;
static recovery_config_t recovery;
static memory_status_t start_allocation(void) { return initialize_memory_allocation(&allocation); }
static memory_status_t start_pool(void) { return initialize_unified_memory(&pool); }
static memory_status_t start_resources(void) { return initialize_resource_management(&resources); }
static memory_status_t start_recovery(void) { return initialize_memory_recovery(&recovery); }
static struct part {
  memory_status_t (*start)(void), (*stop)(void), (*clean)(void);
  phase_t phase;
} parts[] = {
    {start_allocation, stop_memory_allocation, cleanup_allocation_resources, NEVER},
    {start_pool, stop_unified_memory, cleanup_unified_memory, NEVER},
    {start_resources, stop_resource_management, cleanup_management_resources, NEVER},
    {start_recovery, stop_memory_recovery, cleanup_memory_recovery, NEVER},
};
enum { ALLOCATION, POOL, PARTS = sizeof parts / sizeof parts[0] };

/* What a call must answer, and what it makes of the phases. */
static memory_status_t predicted(int which, int call) {
  struct part *p = &parts[which];
  switch (call) {
    case 0:
      if (p->phase == RUNNING)
        return MEMORY_STATUS_ALREADY_INITIALIZED;
      if (p->phase == STOPPED || (which == POOL && parts[ALLOCATION].phase == STOPPED))
        return MEMORY_STATUS_BUSY;
      p->phase = RUNNING;
      return MEMORY_STATUS_OK;
    case 1:
      if (p->phase == NEVER)
        return MEMORY_STATUS_NOT_INITIALIZED;
      if (p->phase == RUNNING) {
        p->phase = STOPPED;
        if (which == ALLOCATION && parts[POOL].phase == RUNNING)
          parts[POOL].phase = STOPPED; /* it depends on memory allocation */
      }
      return MEMORY_STATUS_OK;
    default:
      if (p->phase == NEVER)
        return MEMORY_STATUS_NOT_INITIALIZED;
      if (p->phase == RUNNING)
        return MEMORY_STATUS_BUSY;
      if (p->phase == STOPPED) {
        p->phase = CLEANED;
        if (which == ALLOCATION && parts[POOL].phase == STOPPED)
          parts[POOL].phase = CLEANED;
      }
      return MEMORY_STATUS_OK;
  }
}

static void every_order(unsigned seed, int steps) {
  static const char *const calls[] = {"initialize", "stop", "cleanup"};
  int n, i;
  for (n = 0; n < steps; n++) {
    unsigned random = (seed = seed * 1103515245 + 12345) >> 16;
    int which = (int)(random % PARTS), call = (int)(random / PARTS % 3);
    memory_status_t want, got;
    if (random % 97 == 0) {
      cleanup_memory_system();
      for (i = 0; i < PARTS; i++)
        if (parts[i].phase != NEVER)
          parts[i].phase = CLEANED;
      continue;
    }
    want = predicted(which, call);
    got = call == 0 ? parts[which].start() : call == 1 ? parts[which].stop() : parts[which].clean();
    if (got != want) {
      char why[400];
      qmem_last_error(why, sizeof why);
      fprintf(stderr, "step %d: %s of part %d gave %s, not %s: %s\n", n, calls[call], which, qmem_status_string(got), qmem_status_string(want), why);
      checks_failed++;
      return;
    }
    if (random % 5 == 0) { /* and blocks are given exactly where they may be */
      phase_t phase = parts[ALLOCATION].phase;
      void *block = qmem_allocate(100, 0);
      CHECK((block != NULL) == (phase == NEVER || phase == RUNNING));
      qmem_free(block);
    }
  }
  cleanup_memory_system();
}

int main(void) {
  memset(&allocation, 0, sizeof allocation);
  memset(&pool, 0, sizeof pool);
  memset(&resources, 0, sizeof resources);
  memset(&recovery, 0, sizeof recovery);
  allocation.max_memory = 64 << 20;
  pool.enable_growth = true;
  resources.enable_optimization = true;
  every_order(1, 3000);
  adopts_and_starts();
  return finish();
}
