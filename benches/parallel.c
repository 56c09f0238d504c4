/* Threads, clock and the way out on errors, for all jobs of the benchmark program. Threads live for one pass only: starting
   them costs microseconds against passes of a tenth of a second and more. */
#define _GNU_SOURCE
#include "bench.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct { part_fn fn; void *shared; unsigned part, parts; } job;

static void *run_job(void *argument) {
  job *j = argument;
  j->fn(j->shared, j->part, j->parts);
  return NULL;
}

void parallel(unsigned parts, part_fn fn, void *shared) {
  pthread_t threads[MAX_THREADS];
  job jobs[MAX_THREADS];
  for (unsigned i = 1; i < parts; i++) {
    jobs[i] = (job){fn, shared, i, parts};
    int error = pthread_create(&threads[i], NULL, run_job, &jobs[i]);
    if (error) fail("cannot start thread %u of %u: error %d", i + 1, parts, error);
  }
  fn(shared, 0, parts);
  for (unsigned i = 1; i < parts; i++) pthread_join(threads[i], NULL);
}

double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("sweep: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(2);
}
