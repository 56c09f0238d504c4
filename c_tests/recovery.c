/* Recovery: how often an operation is tried again, what stands in for it, what is logged; and its life cycle. */
#include "check.h"
#include <quantum_memory.h>
#include <sys/stat.h>
#include <unistd.h>

static int asked, gives_from;
static char arena[4096] __attribute__((aligned(64)));
static void *allocate(size_t size, size_t alignment) {
  (void)size, (void)alignment;
  return ++asked >= gives_from ? arena : NULL;
}
static void release(void *block) { (void)block; }

static void start(uint32_t retries, bool logging, fallback_strategy_t fallback) {
  recovery_config_t config;
  memset(&config, 0, sizeof config);
  config.max_retries = retries;
  config.enable_logging = logging;
  config.fallback_strategy = fallback;
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&config));
}
static void end(void) {
  STATUS(MEMORY_STATUS_OK, stop_memory_recovery());
  STATUS(MEMORY_STATUS_OK, cleanup_memory_recovery());
}

static void allocation(allocation_type_t type, size_t max_memory) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.allocation_type = type;
  config.max_memory = max_memory;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
}
static void end_allocation(void) {
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

static int calls;
static void ignores(memory_error_t error, memory_status_t status, const char *message, void *user) {
  (void)error, (void)status, (void)message, (void)user;
  calls++;
}
static void retries_once(memory_error_t error, memory_status_t status, const char *message, void *user) {
  ignores(error, status, message, user);
  retry_allocation();
}
static void aborts(memory_error_t error, memory_status_t status, const char *message, void *user) {
  ignores(error, status, message, user);
  abort_operation();
}

/* Allocations of the program's own interface, each asked for as often as max_retries says. */
static int tries(qmem_error_handler_t handler, int works_from) {
  void *block;
  qmem_set_error_handler(handler, NULL, NULL, NULL);
  calls = asked = 0;
  gives_from = works_from;
  block = qmem_allocate(64, 0);
  CHECK((block != NULL) == (asked >= gives_from) && calls == 1);
  qmem_free(block);
  return asked;
}

static void retries(void) {
  unified_memory_interface_t own;
  uint32_t n;
  memset(&own, 0, sizeof own);
  own.allocate = allocate;
  own.free = release;
  STATUS(MEMORY_STATUS_OK, qmem_register_interface(&own));
  allocation(ALLOC_CUSTOM, 0);
  CHECK(tries(ignores, 1000) == 1); /* without recovery only the handler retries */
  CHECK(tries(retries_once, 2) == 2);
  for (n = 0; n < 6; n++) {
    start(n, false, FALLBACK_NONE);
    CHECK(tries(ignores, 1000) == 1 + (int)(n == 0 ? 3 : n)); /* 0 = 3 */
    CHECK(tries(retries_once, 1000) == 1 + (int)(n == 0 ? 3 : n)); /* the handler's retries count */
    CHECK(tries(retries_once, 3) == (n == 1 ? 2 : 3));
    CHECK(tries(aborts, 1000) == 1);
    end();
  }
  end_allocation();
}

static void fallbacks(void) {
  memory_allocation_config_t device;
  void *block;
  qmem_set_error_handler(ignores, NULL, NULL, NULL);
  memset(&device, 0, sizeof device);
  device.allocation_type = ALLOC_GPU;
  device.max_memory = 64 << 20;
  if (initialize_memory_allocation(&device) == MEMORY_STATUS_UNSUPPORTED) {
    start(1, false, FALLBACK_SWAP);
    STATUS(MEMORY_STATUS_UNSUPPORTED, initialize_memory_allocation(&device));
    end();
    start(1, false, FALLBACK_CLASSICAL);
    STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&device)); /* the heap instead, inside the budget */
    block = qmem_allocate(1 << 20, 0);
    CHECK(qmem_kind(block) == QMEM_MEMORY_HEAP && stats_now().budget_bytes == 64 << 20);
    CHECK(qmem_allocate(128 << 20, 0) == NULL);
    qmem_free(block);
    end();
  }
  end_allocation();
  allocation(ALLOC_CLASSICAL, 64 << 20);
  start(1, false, FALLBACK_NONE);
  CHECK(qmem_allocate(128 << 20, 0) == NULL);
  end();
  start(1, false, FALLBACK_SWAP);
  block = qmem_allocate(128 << 20, 0);
  CHECK(block == NULL || qmem_kind(block) == QMEM_MEMORY_PAGED); /* NULL: no paged memory on this machine */
  qmem_free(block);
  end();
  end_allocation();
}

static size_t read_log(const char *path, char *text, size_t cap) {
  FILE *file = fopen(path, "r");
  size_t n = 0;
  if (file != NULL) {
    n = fread(text, 1, cap - 1, file);
    fclose(file);
  }
  text[n] = 0;
  return n;
}

static void logging(const char *path) {
  static char text[1 << 16];
  char older[256];
  struct stat status;
  int n;
  allocation(ALLOC_CLASSICAL, 64 << 20);
  qmem_set_error_handler(ignores, NULL, NULL, NULL);
  start(2, false, FALLBACK_NONE);
  CHECK(qmem_allocate(128 << 20, 0) == NULL);
  end();
  CHECK(read_log(path, text, sizeof text) == 0);
  start(2, true, FALLBACK_NONE);
  CHECK(qmem_allocate(128 << 20, 0) == NULL);
  CHECK(read_log(path, text, sizeof text) > 0);
  CHECK(strstr(text, "{\"time\":\"20") == text && strstr(text, "\"error\":\"MEMORY_ERROR_ALLOCATION\",\"status\":\"MEMORY_STATUS_OUT_OF_MEMORY\"") != NULL);
  CHECK(strstr(text, "\"operation\":\"qmem_allocate\",\"event\":\"failure\",\"retries\":0,\"message\":\"134217728 bytes") != NULL);
  CHECK(strstr(text, "\"event\":\"given up\",\"retries\":2") != NULL && text[strlen(text) - 1] == '\n');
  qmem_set_error_handler(aborts, NULL, NULL, NULL);
  CHECK(qmem_allocate(128 << 20, 0) == NULL);
  read_log(path, text, sizeof text);
  CHECK(strstr(text, "\"event\":\"aborted\",\"retries\":0") != NULL);
  snprintf(older, sizeof older, "%s.1", path);
  CHECK(stat(older, &status) != 0);
  for (n = 0; n < 20; n++)
    log_memory_error(MEMORY_ERROR_DEVICE); /* with QMEM_LOG_BYTES of 4096 the file is turned over */
  CHECK(stat(older, &status) == 0 && status.st_size >= 4096 && status.st_size < 8192);
  read_log(older, text, sizeof text);
  CHECK(strstr(text, "\"error\":\"MEMORY_ERROR_DEVICE\",\"status\":\"MEMORY_STATUS_OK\",\"operation\":\"\"") != NULL);
  end();
  end_allocation();
  unlink(older);
  unlink(path);
}

static void life_cycle(void) {
  recovery_config_t config;
  memset(&config, 0, sizeof config);
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, stop_memory_recovery());
  STATUS(MEMORY_STATUS_NOT_INITIALIZED, cleanup_memory_recovery());
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&config));
  FAILS(MEMORY_STATUS_ALREADY_INITIALIZED, "memory recovery", initialize_memory_recovery(&config));
  STATUS(MEMORY_STATUS_BUSY, cleanup_memory_recovery());
  STATUS(MEMORY_STATUS_OK, stop_memory_recovery());
  STATUS(MEMORY_STATUS_OK, stop_memory_recovery());
  STATUS(MEMORY_STATUS_BUSY, initialize_memory_recovery(&config));
  STATUS(MEMORY_STATUS_OK, cleanup_memory_recovery());
  STATUS(MEMORY_STATUS_OK, cleanup_memory_recovery());
  STATUS(MEMORY_STATUS_OK, stop_memory_recovery());
}

int main(void) {
  char path[64];
  snprintf(path, sizeof path, "/tmp/qmem-recovery-%d.log", (int)getpid());
  setenv("QMEM_LOG", path, 1);
  setenv("QMEM_LOG_BYTES", "4096", 1);
  life_cycle();
  retries();
  fallbacks();
  logging(path);
  return finish();
}
