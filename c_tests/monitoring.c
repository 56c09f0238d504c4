/* Monitoring: what each level adds, samplers, events, the metrics server and what it refuses. With a path as argument it is the program
   that test_metrics.py looks at from outside: it serves metrics on that socket until its input ends. */
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <quantum_memory.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char text[1 << 20];

static const char *metrics(const char *format) {
  FILE *file = tmpfile();
  size_t n;
  CHECK(file != NULL);
  STATUS(MEMORY_STATUS_OK, qmem_write_metrics(file, format));
  rewind(file);
  n = fread(text, 1, sizeof text - 1, file);
  text[n] = 0;
  fclose(file);
  return text;
}

/* The value of a metric in OpenMetrics text; -1 if it is not there. */
static double value_of(const char *name) {
  const char *at = metrics("openmetrics");
  size_t n = strlen(name);
  for (; at != NULL; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
    if (strncmp(at, name, n) == 0 && at[n] == ' ')
      return atof(at + n);
  return -1;
}

static void level(monitoring_level_t wanted) {
  memory_system_config_t config;
  memset(&config, 0, sizeof config);
  config.monitoring_level = wanted;
  config.error_budget = 0.125;
  STATUS(MEMORY_STATUS_OK, initialize_memory_system(&config));
}

/* Twice the budget, written and read. Returns false where there is no paged memory. */
static bool sweep(void) {
  size_t size = (size_t)128 << 20, i;
  unsigned char *block;
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_QUANTUM;
  config.max_memory = (size_t)64 << 20;
  config.enable_swapping = true;
  if (initialize_memory_allocation(&config) != MEMORY_STATUS_OK)
    return false;
  block = (unsigned char *)qmem_allocate(size, 0);
  CHECK(block != NULL);
  for (i = 0; block != NULL && i < size; i += 64)
    block[i] = (unsigned char)(i * 2654435761u >> 24);
  for (i = 0; block != NULL && i < size; i += 64)
    if (block[i] != (unsigned char)(i * 2654435761u >> 24))
      break;
  CHECK(i == size);
  return true;
}

static void end_allocation(void) {
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  fprintf(stderr, "(a leak may be reported here)\n");
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

static void classical(void) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
}

static void levels(void) {
  double before;
  bool paged;
  void *block;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "\"xml\"", qmem_write_metrics(stderr, "xml"));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "out is NULL", qmem_write_metrics(NULL, "json"));
  block = qmem_allocate(12345, 0);
  CHECK(value_of("qmem_allocated_bytes") == 12345 && value_of("qmem_monitoring_level") == 0);
  CHECK(value_of("qmem_error_budget") == 0 && value_of("qmem_swap_read_bytes_total") < 0);
  CHECK(value_of("qmem_allocations_total") - value_of("qmem_frees_total") == 1);
  qmem_free(block);
  paged = sweep();
  CHECK(value_of("qmem_swap_written_bytes_total") < 0);
  if (paged)
    end_allocation();
  level(MONITOR_BASIC);
  CHECK(value_of("qmem_error_budget") == 0.125 && value_of("qmem_swap_written_bytes_total") == 0); /* nothing was counted before */
  if (paged) {
    CHECK(sweep());
    CHECK(value_of("qmem_swap_written_bytes_total") >= 64 << 20 && value_of("qmem_swap_read_bytes_total") > 0);
    CHECK(value_of("qmem_read_ahead_hits_total") + value_of("qmem_read_ahead_mapped_total") > 0);
    end_allocation();
  }
  CHECK(strstr(metrics("openmetrics"), "duration_seconds") == NULL && strstr(metrics("json"), "\"events\":[]}") != NULL);
  cleanup_memory_system();
  CHECK(value_of("qmem_monitoring_level") == 0 && value_of("qmem_error_budget") == 0);

  level(MONITOR_DETAILED);
  classical();
  for (before = 0; before < 1000; before++)
    qmem_free(qmem_allocate(100, 0));
  end_allocation();
  CHECK(value_of("qmem_allocation_duration_seconds_count") >= 10);
  CHECK(value_of("qmem_allocation_duration_seconds_count") == value_of("qmem_allocation_duration_seconds_bucket{le=\"+Inf\"}"));
  if (paged) {
    CHECK(sweep());
    CHECK(value_of("qmem_fault_duration_seconds_count") > 0 && value_of("qmem_eviction_duration_seconds_count") > 0);
    CHECK(value_of("qmem_swap_io_duration_seconds_sum") > 0);
    CHECK(strstr(metrics("openmetrics"), "qmem_buffer_logical_bytes{buffer=\"0x") != NULL);
    CHECK(strstr(metrics("json"), "\"kind\":\"buffer_begin\"") != NULL);
    end_allocation();
  }
  cleanup_memory_system();
}

static void silent(memory_error_t error, memory_status_t status, const char *message, void *user) {
  (void)error, (void)status, (void)message, (void)user;
}

static void events(void) {
  qmem_event_t found[8];
  uint64_t next = 0, from;
  size_t count = 99;
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.max_memory = 16 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  STATUS(MEMORY_STATUS_OK, qmem_set_error_handler(silent, NULL, NULL, NULL));
  STATUS(MEMORY_STATUS_OK, qmem_read_events(0, NULL, 0, &count, NULL));
  CHECK(count == 0);
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_read_events(0, NULL, 1, &count, NULL));
  for (from = 0;; from = next) {
    STATUS(MEMORY_STATUS_OK, qmem_read_events(from, found, 8, &count, &next));
    if (count == 0)
      break;
  }
  CHECK(qmem_allocate(32 << 20, 0) == NULL); /* not noted below DETAILED */
  STATUS(MEMORY_STATUS_OK, qmem_read_events(next, found, 8, &count, &next));
  CHECK(count == 0);
  level(MONITOR_DETAILED);
  CHECK(qmem_allocate(32 << 20, 0) == NULL);
  STATUS(MEMORY_STATUS_OK, qmem_read_events(next, found, 8, &count, &next));
  CHECK(count == 2 && found[0].kind == QMEM_EVENT_LEVEL && found[0].subject == 2);
  CHECK(found[1].kind == QMEM_EVENT_FAILURE && found[1].subject == MEMORY_ERROR_ALLOCATION && found[1].number == found[0].number + 1);
  CHECK(found[1].time_ns >= found[0].time_ns && found[1].thread == (uint32_t)getpid());
  CHECK(value_of("qmem_errors_total{class=\"MEMORY_ERROR_ALLOCATION\"}") >= 2);
  cleanup_memory_system();
  STATUS(MEMORY_STATUS_OK, qmem_set_error_handler(NULL, NULL, NULL, NULL));
}

static double burn(double until) {
  struct timespec now;
  volatile double x = 1;
  do {
    int i;
    for (i = 0; i < 100000; i++)
      x = x * 1.0000001 + 1e-9;
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while ((double)now.tv_sec + (double)now.tv_nsec * 1e-9 < until);
  return x;
}
static double clock_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void samplers(void) {
  qmem_metrics_t seen, first;
  qmem_monitor_t *monitor, *memory_only, *many[64];
  void *block;
  int n, ok = 0;
  REFUSED("1 to 3600000", qmem_monitor_start(0, "cpu"));
  REFUSED("\"disk\"", qmem_monitor_start(100, "cpu,disk"));
  classical();
  block = qmem_allocate(1 << 20, 0);
  monitor = qmem_monitor_start(10, NULL);
  memory_only = qmem_monitor_start(10, " memory ");
  CHECK(monitor != NULL && memory_only != NULL && monitor != memory_only);
  STATUS(MEMORY_STATUS_OK, qmem_monitor_get(monitor, &first)); /* there is a look from the beginning */
  CHECK(first.timestamp_ns > 0 && first.memory.current_allocated == 1 << 20 && first.memory_usage_percent > 0);
  for (n = 0; n < 200; n++) {
    burn(clock_now() + 0.02);
    STATUS(MEMORY_STATUS_OK, qmem_monitor_get(monitor, &seen));
    if (seen.timestamp_ns > first.timestamp_ns && seen.cpu_percent > 1)
      break;
  }
  CHECK(n < 200 && seen.cpu_percent < 100.0 * 1024);
  STATUS(MEMORY_STATUS_OK, qmem_monitor_get(memory_only, &seen));
  CHECK(seen.cpu_percent == 0 && seen.memory.current_allocated == 1 << 20);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "monitor is NULL", qmem_monitor_get(NULL, &seen));
  qmem_monitor_stop(monitor);
  qmem_monitor_stop(monitor);
  qmem_monitor_stop(NULL);
  FAILS(MEMORY_STATUS_NOT_FOUND, "stopped", qmem_monitor_get(monitor, &seen));
  STATUS(MEMORY_STATUS_OK, qmem_monitor_get(memory_only, &seen));
  qmem_monitor_stop(memory_only);
  for (n = 0; n < 64; n++)
    ok += (many[n] = qmem_monitor_start(1000, "")) != NULL;
  CHECK(ok == 64);
  REFUSED("64 monitors", qmem_monitor_start(1000, ""));
  for (n = 0; n < 64; n++)
    qmem_monitor_stop(many[n]);
  qmem_free(block);
  end_allocation();
}

static int dial(const char *path, int port) {
  int fd;
  if (path != NULL) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
      return fd;
  } else {
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
      return fd;
  }
  close(fd);
  return -1;
}
static const char *ask(int fd, const char *request) {
  size_t len = 0;
  ssize_t n;
  CHECK(fd >= 0 && write(fd, request, strlen(request)) == (ssize_t)strlen(request));
  while ((n = read(fd, text + len, sizeof text - 1 - len)) > 0)
    len += (size_t)n;
  text[len] = 0;
  close(fd);
  return text;
}

static void server(void) {
  char path[64], address[80], long_head[9000];
  struct stat status;
  int port, idle;
  FILE *file;
  snprintf(path, sizeof path, "/tmp/qmem-metrics-%d", (int)getpid());
  snprintf(address, sizeof address, "unix:%s", path);
  FAILS(MEMORY_STATUS_NOT_INITIALIZED, "no metrics", qmem_stop_metrics());
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "other machines", qmem_serve_metrics("0.0.0.0:9464"));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "other machines", qmem_serve_metrics("[::]:9464"));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "neither", qmem_serve_metrics("example.net:80"));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "NULL", qmem_serve_metrics(NULL));
  FAILS(MEMORY_STATUS_IO, "no/such", qmem_serve_metrics("unix:/no/such/directory"));
  file = fopen(path, "w");
  fclose(file);
  FAILS(MEMORY_STATUS_IO, "no socket", qmem_serve_metrics(address)); /* somebody's file */
  CHECK(stat(path, &status) == 0);
  unlink(path);

  STATUS(MEMORY_STATUS_OK, qmem_serve_metrics(address));
  STATUS(MEMORY_STATUS_ALREADY_INITIALIZED, qmem_serve_metrics("127.0.0.1:0"));
  CHECK(strncmp(ask(dial(path, 0), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/1.1 200 OK\r\n", 17) == 0);
  CHECK(strstr(text, "application/openmetrics-text; version=1.0.0") != NULL && strstr(text, "\n# EOF\n") != NULL);
  CHECK(strstr(ask(dial(path, 0), "GET /json HTTP/1.0\r\n\r\n"), "\r\n\r\n{\"timestamp_ns\":") != NULL);
  CHECK(strstr(ask(dial(path, 0), "GET /other HTTP/1.0\r\n\r\n"), " 404 ") != NULL);
  CHECK(strstr(ask(dial(path, 0), "POST /metrics HTTP/1.0\r\n\r\n"), " 405 ") != NULL);
  CHECK(strstr(ask(dial(path, 0), "HEAD /metrics HTTP/1.0\r\n\r\n"), "# EOF") == NULL);
  memset(long_head, 'x', sizeof long_head - 1);
  long_head[sizeof long_head - 1] = 0;
  CHECK(strstr(ask(dial(path, 0), long_head), " 400 ") != NULL);
  idle = dial(path, 0); /* a client that says nothing holds nobody up for long */
  CHECK(strstr(ask(dial(path, 0), "GET / HTTP/1.0\r\n\r\n"), " 200 ") != NULL);
  close(idle);
  STATUS(MEMORY_STATUS_OK, qmem_stop_metrics());
  CHECK(stat(path, &status) != 0 && dial(path, 0) < 0);

  { /* a socket that a killed process left is replaced */
    struct sockaddr_un old;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memset(&old, 0, sizeof old);
    old.sun_family = AF_UNIX;
    snprintf(old.sun_path, sizeof old.sun_path, "%s", path);
    CHECK(bind(fd, (struct sockaddr *)&old, sizeof old) == 0 && listen(fd, 1) == 0);
    FAILS(MEMORY_STATUS_BUSY, "another process", qmem_serve_metrics(address));
    close(fd);
    STATUS(MEMORY_STATUS_OK, qmem_serve_metrics(address));
    STATUS(MEMORY_STATUS_OK, qmem_stop_metrics());
  }
  for (port = 20000 + (int)getpid() % 20000; port < 65000; port += 7) {
    snprintf(address, sizeof address, "localhost:%d", port);
    if (qmem_serve_metrics(address) == MEMORY_STATUS_OK)
      break;
  }
  CHECK(strstr(ask(dial(NULL, port), "GET /metrics HTTP/1.1\r\n\r\n"), "qmem_build_info{version=") != NULL);
  STATUS(MEMORY_STATUS_OK, qmem_stop_metrics());
}

/* For test_metrics.py. */
static int serve(const char *path) {
  char address[200];
  qmem_resource_t *resource, *chosen;
  resource_management_config_t config;
  memset(&config, 0, sizeof config);
  level(MONITOR_DETAILED);
  STATUS(MEMORY_STATUS_OK, initialize_resource_management(&config));
  resource = qmem_resource_register(QMEM_RESOURCE_NETWORK, "a \"quoted\\\" name\nof two lines, \xc3\xa9", 1000, -1);
  STATUS(MEMORY_STATUS_OK, qmem_resource_acquire(QMEM_RESOURCE_NETWORK, 77, 0, &chosen));
  CHECK(chosen == resource);
  qmem_resource_register(QMEM_RESOURCE_NETWORK, "a \"quoted\\\" name\nof two lines, \xc3\xa9", 1000, -1);
  qmem_set_tag("gates, \"of\\ one\nkind\"");
  CHECK(qmem_allocate(4242, 0) != NULL);
  sweep();
  snprintf(address, sizeof address, "unix:%s", path);
  STATUS(MEMORY_STATUS_OK, qmem_serve_metrics(address));
  puts(checks_failed ? "failed" : "ready");
  fflush(stdout);
  while (getchar() != EOF)
    ;
  STATUS(MEMORY_STATUS_OK, qmem_stop_metrics());
  return finish();
}

int main(int argc, char **argv) {
  if (argc > 1)
    return serve(argv[1]);
  levels();
  events();
  samplers();
  server();
  return finish();
}
