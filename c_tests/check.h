/* Checks for the C tests: each prints what is false and goes on; finish() says how many were. Every test compiles as C and C++. */
#ifndef CHECK_H
#define CHECK_H

#include <qmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks_failed;

#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      fprintf(stderr, "%s:%d: false: %s\n", __FILE__, __LINE__, #condition); \
      checks_failed++; \
    } \
  } while (0)

/* The call answers `want`. */
#define STATUS(want, call) check_status((call), (want), #call, __FILE__, __LINE__)
/* The call fails with `want`, and the message names `word`. */
#define FAILS(want, word, call) (STATUS(want, call), check_message(word, __FILE__, __LINE__))
/* The allocating call gives NULL, and the message names `word`. */
#define REFUSED(word, call) check_refused((call), word, #call, __FILE__, __LINE__)

static inline void check_status(memory_status_t got, memory_status_t want, const char *call, const char *file, int line) {
  char why[512] = "";
  if (got == want)
    return;
  qmem_last_error(why, sizeof why);
  fprintf(stderr, "%s:%d: %s gave %s, not %s (last error: %s)\n", file, line, call, qmem_status_string(got),
          qmem_status_string(want), why);
  checks_failed++;
}

static inline void check_message(const char *word, const char *file, int line) {
  char why[512] = "";
  qmem_last_error(why, sizeof why);
  if (strstr(why, word) != NULL)
    return;
  fprintf(stderr, "%s:%d: the message does not name '%s': %s\n", file, line, word, why);
  checks_failed++;
}

static inline void check_refused(void *got, const char *word, const char *call, const char *file, int line) {
  if (got != NULL) {
    fprintf(stderr, "%s:%d: %s was not refused\n", file, line, call);
    checks_failed++;
    return;
  }
  check_message(word, file, line);
}

static inline memory_stats_t stats_now(void) {
  memory_stats_t stats;
  memset(&stats, 0xAA, sizeof stats);
  if (qmem_get_stats(&stats) != MEMORY_STATUS_OK)
    checks_failed++;
  return stats;
}

/* To be returned by main: 0 if every check held. */
static inline int finish(void) {
  if (checks_failed)
    fprintf(stderr, "%d checks failed\n", checks_failed);
  return checks_failed != 0;
}

/* To be returned by main where a test cannot run. */
static inline int skip(const char *why) {
  printf("skipped: %s\n", why);
  return 77;
}

#endif
