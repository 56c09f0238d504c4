/* Threads that begin, allocate and end: destructors of thread-specific data that allocate and free after the heap's own has run,
   threads that only free, and blocks that outlive the thread they came from. Memory does not grow with the number of threads. */
#include "check.h"
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#define ROUNDS 2000

static pthread_key_t late[8];
static __thread char own[100];

static void destroy(void *value) {
  size_t rounds = *(size_t *)value;
  char *again = malloc(300);
  memset(again, 1, 300);
  free(value);
  free(again);
  if (rounds > 0) { /* once more, in the next pass over the keys: after every other destructor */
    size_t *left = malloc(sizeof *left);
    *left = rounds - 1;
    pthread_setspecific(late[rounds % 8], left);
  }
}

static void *lives(void *argument) {
  char **kept = argument;
  for (int i = 0; i < 8; i++) {
    size_t *rounds = malloc(sizeof *rounds);
    *rounds = 2;
    pthread_setspecific(late[i], rounds);
  }
  memset(own, 2, sizeof own);
  *kept = strdup("outlives its thread");
  free(malloc(100000));
  return NULL;
}

static void *only_frees(void *argument) {
  free(argument);
  return NULL;
}

static size_t resident_kib(void) {
  size_t pages = 0, all;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file && fscanf(file, "%zu %zu", &all, &pages) == 2);
  fclose(file);
  return pages * 4;
}

int main(void) {
  size_t before = 0;
  alarm(120);
  for (int i = 0; i < 8; i++) CHECK(pthread_key_create(&late[i], destroy) == 0);
  for (int i = 0; i < ROUNDS; i++) {
    pthread_t threads[2];
    char *kept[2] = {NULL, NULL};
    if (i == ROUNDS / 10) before = resident_kib();
    for (int t = 0; t < 2; t++) CHECK(pthread_create(&threads[t], NULL, lives, &kept[t]) == 0);
    for (int t = 0; t < 2; t++) pthread_join(threads[t], NULL);
    CHECK(strcmp(kept[0], "outlives its thread") == 0);
    CHECK(pthread_create(&threads[0], NULL, only_frees, kept[0]) == 0);
    pthread_join(threads[0], NULL);
    free(kept[1]);
  }
  CHECK(resident_kib() < before + 4096);
  return finish();
}
