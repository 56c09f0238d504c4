/* Error dispatch: who is called, with what, on which thread, how often; what a handler may do; that one that recurses, jumps or
   does nothing is contained. Every class of error, by operations of the program's own. */
#include "check.h"
#include <pthread.h>
#include <quantum_memory.h>
#include <setjmp.h>
#include <unistd.h>

enum { OVER = 256 << 20 };
static struct seen {
  int calls;
  memory_error_t error;
  memory_status_t status;
  char message[512];
  void *user;
  pthread_t thread;
} seen, documented;
static void (*act)(void);

static void note(memory_error_t error, memory_status_t status, const char *message, void *user) {
  seen.calls++;
  seen.error = error;
  seen.status = status;
  snprintf(seen.message, sizeof seen.message, "%s", message);
  seen.user = user;
  seen.thread = pthread_self();
  if (act != NULL)
    act();
}

/* The program's own: only when none is registered. */
void handle_memory_error(memory_error_t error) {
  documented.calls++;
  documented.error = error;
}

static void other(memory_error_t error, memory_status_t status, const char *message, void *user) {
  (void)error, (void)status, (void)message, (void)user;
}

static void register_note(void) {
  memset(&seen, 0, sizeof seen);
  STATUS(MEMORY_STATUS_OK, qmem_set_error_handler(note, &seen, NULL, NULL));
}

static void precedence(void) {
  qmem_error_handler_t old = other;
  void *user = &old;
  STATUS(MEMORY_STATUS_OK, qmem_set_error_handler(NULL, NULL, &old, &user));
  CHECK(old == NULL && user == NULL);
  CHECK(qmem_allocate(OVER, 0) == NULL && documented.calls == 1 && documented.error == MEMORY_ERROR_ALLOCATION);
  register_note();
  CHECK(qmem_allocate(OVER, 0) == NULL && documented.calls == 1 && seen.calls == 1);
  CHECK(seen.error == MEMORY_ERROR_ALLOCATION && seen.status == MEMORY_STATUS_OUT_OF_MEMORY && seen.user == &seen);
  CHECK(strstr(seen.message, "268435456") != NULL && pthread_equal(seen.thread, pthread_self()));
  check_message(seen.message, __FILE__, __LINE__);
  STATUS(MEMORY_STATUS_OK, qmem_set_error_handler(other, NULL, &old, &user));
  CHECK(old == note && user == &seen);
  STATUS(MEMORY_STATUS_OK, qmem_set_error_handler(NULL, NULL, NULL, NULL));
  CHECK(qmem_allocate(OVER, 0) == NULL && documented.calls == 2 && seen.calls == 1);
  CHECK(qmem_allocate(1, 3) == NULL && documented.calls == 2); /* the caller's mistake is nothing for a handler */
}

/* A repair that only the retry sees: the operation works from its n-th run on. */
static int runs, works_from;
static memory_status_t run(void *user) {
  runs++;
  return runs >= works_from ? MEMORY_STATUS_OK : *(memory_status_t *)user;
}
static memory_status_t code = MEMORY_STATUS_DEVICE;
static void retry(void) { STATUS(runs + 1 >= works_from ? MEMORY_STATUS_OK : code, retry_operation()); }
static void retry_as_allocation(void) { REFUSED("is no allocation", retry_allocation()); }
static void retry_for_ever(void) {
  int n;
  for (n = 0; n < 50; n++)
    if (retry_operation() == MEMORY_STATUS_OK)
      return;
  check_message("retries", __FILE__, __LINE__);
}
static void give_up(void) { STATUS(MEMORY_STATUS_OK, abort_operation()); }
static void retry_twice(void) {
  STATUS(MEMORY_STATUS_OK, retry_operation());
  STATUS(MEMORY_STATUS_OK, retry_operation()); /* done already: not run again */
}

static memory_status_t attempt(memory_error_t error, int from, void (*handler)(void)) {
  runs = 0;
  works_from = from;
  act = handler;
  seen.calls = 0;
  return qmem_run_operation(error, "of the program", run, &code);
}

static void every_class(void) {
  int e;
  register_note();
  for (e = MEMORY_ERROR_ALLOCATION; e <= MEMORY_ERROR_DEVICE; e++) {
    memory_error_t error = (memory_error_t)e;
    STATUS(MEMORY_STATUS_DEVICE, attempt(error, 100, NULL));
    CHECK(runs == 1 && seen.calls == 1 && seen.error == error && seen.status == MEMORY_STATUS_DEVICE);
    check_message("of the program", __FILE__, __LINE__);
    STATUS(MEMORY_STATUS_OK, attempt(error, 2, retry));
    CHECK(runs == 2 && seen.calls == 1);
    STATUS(MEMORY_STATUS_DEVICE, attempt(error, 3, retry)); /* one retry is one retry */
    CHECK(runs == 2);
    STATUS(MEMORY_STATUS_OK, attempt(error, 2, retry_twice));
    CHECK(runs == 2);
    STATUS(MEMORY_STATUS_DEVICE, attempt(error, 100, retry_for_ever));
    CHECK(runs == 4); /* three retries, then no more */
    STATUS(MEMORY_STATUS_DEVICE, attempt(error, 2, retry_as_allocation));
    CHECK(runs == 1);
    FAILS(MEMORY_STATUS_ABORTED, "of the program", attempt(error, 2, give_up));
    CHECK(runs == 1);
  }
  STATUS(MEMORY_STATUS_OK, attempt(MEMORY_ERROR_CACHE, 1, give_up)); /* no failure, no dispatch */
  CHECK(seen.calls == 0);
  act = NULL;
  FAILS(MEMORY_STATUS_INTERNAL, "by hand", qmem_run_operation(MEMORY_ERROR_IO, "by hand", NULL, NULL));
  CHECK(seen.calls == 1 && seen.error == MEMORY_ERROR_IO && seen.status == MEMORY_STATUS_INTERNAL);
}

/* Repairs are worth a retry of their own when the handler makes none. */
static void only_optimizes(void) { STATUS(MEMORY_STATUS_OK, optimize_cache_usage()); }
static void repairs(void) {
  STATUS(MEMORY_STATUS_OK, attempt(MEMORY_ERROR_CACHE, 2, only_optimizes));
  CHECK(runs == 2);
  STATUS(MEMORY_STATUS_DEVICE, attempt(MEMORY_ERROR_CACHE, 3, only_optimizes));
  CHECK(runs == 2);
}

/* A block that the handler frees makes room for the one that failed. */
static void *spare;
static void *retried;
static void free_the_spare(void) {
  REFUSED("do not fit", retry_allocation());
  qmem_free(spare);
  retried = retry_allocation();
  CHECK(retried != NULL && retry_allocation() == retried && retry_operation() == MEMORY_STATUS_OK);
}
static void allocations(void) {
  size_t before;
  void *block;
  spare = qmem_allocate(40 << 20, 0);
  before = stats_now().num_allocations;
  act = free_the_spare;
  seen.calls = 0;
  block = qmem_allocate_zeroed(48 << 20, 0);
  CHECK(block != NULL && block == retried && seen.calls == 1 && stats_now().num_allocations == before + 1);
  spare = qmem_allocate(8 << 20, 0);
  block = qmem_realloc(block, 52 << 20); /* 52 and 48 and 8 do not fit into 64: whatever the heap does, the spare is in the way or not */
  CHECK(block != NULL);
  qmem_free(block);
  act = NULL;
}

static void fails_inside(void) {
  CHECK(qmem_allocate(OVER, 0) == NULL);
  STATUS(MEMORY_STATUS_IO, qmem_run_operation(MEMORY_ERROR_IO, NULL, run, &code));
}
static void recursion(void) {
  act = fails_inside;
  runs = 0;
  works_from = 100;
  code = MEMORY_STATUS_IO;
  seen.calls = 0;
  CHECK(qmem_allocate(OVER, 0) == NULL && seen.calls == 1);
  check_message("268435456", __FILE__, __LINE__); /* the failure's words, not those of what the handler called */
  code = MEMORY_STATUS_DEVICE;
  act = NULL;
}

static jmp_buf away;
static void jump(void) { longjmp(away, 1); }
static int much_deeper(int depth) {
  volatile char room[4096];
  memset((char *)room, depth, sizeof room);
  if (depth > 0)
    return much_deeper(depth - 1) + room[7];
  /* The failure that was jumped out of is over, however deep the stack is now. */
  STATUS(MEMORY_STATUS_NOT_FOUND, retry_operation());
  STATUS(MEMORY_STATUS_NOT_FOUND, abort_operation());
  REFUSED("nothing to retry", retry_allocation());
  CHECK(qmem_allocate(OVER, 0) == NULL);
  return room[7];
}
static void jumping_out(void) {
  static int n; /* a jump leaves it alone */
  for (n = 0; n < 3; n++) {
    act = jump;
    seen.calls = 0;
    if (setjmp(away) == 0) {
      CHECK(qmem_allocate(OVER, 0) == NULL);
      CHECK(0);
    }
    CHECK(seen.calls == 1);
    act = NULL;
    much_deeper(20);
    CHECK(seen.calls == 2);
  }
}

static pthread_barrier_t barrier;
static void meet_and_retry(void) {
  pthread_barrier_wait(&barrier); /* both failures are being handled at the same time */
  REFUSED("do not fit", retry_allocation());
}
static void *fail_there(void *size) {
  CHECK(qmem_allocate(*(size_t *)size, 0) == NULL);
  return NULL;
}
static void two_threads(void) {
  size_t sizes[2] = {OVER, OVER + 1};
  pthread_t threads[2];
  int n;
  pthread_barrier_init(&barrier, NULL, 2);
  act = meet_and_retry;
  for (n = 0; n < 2; n++)
    pthread_create(&threads[n], NULL, fail_there, &sizes[n]);
  for (n = 0; n < 2; n++)
    pthread_join(threads[n], NULL);
  act = NULL;
}

/* One dispatch for all leaks. */
static void leaks(void) {
  seen.calls = 0;
  CHECK(qmem_allocate(1000, 0) != NULL && qmem_allocate(500, 0) != NULL);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  fprintf(stderr, "(two leaks are to be reported here)\n");
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  CHECK(seen.calls == 1 && seen.error == MEMORY_ERROR_LEAK && strstr(seen.message, "2 blocks of 1500 bytes") != NULL);
}

int main(void) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.max_memory = 64 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  precedence();
  every_class();
  repairs();
  allocations();
  recursion();
  jumping_out();
  two_threads();
  qmem_free(spare);
  leaks();
  return finish();
}
