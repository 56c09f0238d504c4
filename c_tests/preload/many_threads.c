/* 1000 and then 4000 threads at the same time, each with blocks of its own and with blocks that another one gave it: contents stay
   right, and what all of them took goes back. */
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#define MOST 4000
#define BLOCKS 20

static pthread_barrier_t all_there;
static _Atomic(unsigned char *) handed[MOST];
static atomic_int wrong;
static int count;

static size_t size_of(size_t thread, size_t block) { return 16 + (thread * 37 + block * 211) % 3000; }

static void *lives(void *argument) {
  size_t own = (size_t)(uintptr_t)argument, i;
  unsigned char *blocks[BLOCKS], *gift = (unsigned char *)malloc(64);
  memset(gift, (int)(own % 251), 64);
  atomic_store(&handed[(own + 1) % (size_t)count], gift);
  for (i = 0; i < BLOCKS; i++) {
    blocks[i] = (unsigned char *)malloc(size_of(own, i));
    memset(blocks[i], (int)((own + i) % 251), size_of(own, i));
  }
  pthread_barrier_wait(&all_there); /* everyone lives now */
  for (i = 0; i < BLOCKS; i++) {
    size_t last = size_of(own, i) - 1;
    if (blocks[i][0] != (own + i) % 251 || blocks[i][last] != (own + i) % 251)
      atomic_fetch_add(&wrong, 1);
    free(blocks[i]);
  }
  gift = atomic_load(&handed[own]);
  if (gift[0] != (own + (size_t)count - 1) % (size_t)count % 251 || gift[63] != gift[0])
    atomic_fetch_add(&wrong, 1);
  free(gift);
  return NULL;
}

static long resident_kib(void) {
  long pages = 0;
  FILE *statm = fopen("/proc/self/statm", "r");
  if (statm == NULL || fscanf(statm, "%*s %ld", &pages) != 1)
    exit(2);
  fclose(statm);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Resident KiB once all threads have ended; 0: this machine does not let us have so many. */
static long wave(int threads) {
  static pthread_t ids[MOST];
  pthread_attr_t attributes;
  int i;
  count = threads;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  if (pthread_barrier_init(&all_there, NULL, (unsigned)threads) != 0)
    exit(2);
  for (i = 0; i < threads; i++)
    if (pthread_create(&ids[i], &attributes, lives, (void *)(uintptr_t)i) != 0)
      return 0; /* those that wait end with the process */
  for (i = 0; i < threads; i++)
    pthread_join(ids[i], NULL);
  pthread_barrier_destroy(&all_there);
  return resident_kib();
}

int main(void) {
  long first = wave(1000), most, again;
  if (first == 0)
    return skip("1000 threads at a time are not allowed here: ulimit -u, pids.max");
  most = wave(MOST);
  if (most == 0)
    return wrong ? 1 : skip("4000 threads at a time are not allowed here: ulimit -u, pids.max");
  again = wave(MOST);
  CHECK(wrong == 0);
  /* A heap that waits for a thread holds its record, some 24 KiB; 64 of them 1 MiB more each; libc keeps 40 MiB of stacks. */
  if (most > 300 << 10 || again > 300 << 10) {
    fprintf(stderr, "%ld, %ld and %ld KiB stay resident after 1000, 4000 and 4000 threads\n", first, most, again);
    checks_failed++;
  }
  return finish();
}
