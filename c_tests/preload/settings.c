/* The heap's settings by environment: changing one alone changes what stays resident, or which pages hold the blocks. This program runs
   itself with each, and compares. */
#include "check.h"
#include <malloc.h>
#include <stdint.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCKS 65536
#define BYTES 1000 /* 64 MiB in all */

static char *blocks[BLOCKS];

static long kib(const char *file, const char *what) {
  char line[256];
  long sum = 0, one;
  FILE *in = fopen(file, "r");
  if (in == NULL)
    exit(2);
  while (fgets(line, sizeof line, in))
    if (strncmp(line, what, strlen(what)) == 0 && sscanf(line + strlen(what), "%ld", &one) == 1)
      sum += one;
  fclose(in);
  return sum;
}
/* Blocks' pages, if they are spread over the memory nodes. */
static long spread(void) {
  char line[512];
  unsigned long start = 0;
  long found = 0;
  FILE *in = fopen("/proc/self/numa_maps", "r");
  while (in != NULL && fgets(line, sizeof line, in))
    found += sscanf(line, "%lx interleave", &start) == 1 && strstr(line, " interleave") != NULL && start <= (uintptr_t)blocks[BLOCKS - 1] &&
             (uintptr_t)blocks[BLOCKS - 1] - start < 64 << 20;
  if (in != NULL)
    fclose(in);
  return found;
}
static long resident(void) { return kib("/proc/self/status", "VmRSS:"); }

static void fill(void) {
  for (int i = 0; i < BLOCKS; i++) {
    blocks[i] = (char *)malloc(BYTES);
    memset(blocks[i], i, BYTES);
  }
}

/* Frees the blocks, or all but one in `but`. */
static void release(int but) {
  for (int i = 0; i < BLOCKS; i++)
    if (but == 0 || i % but != 0)
      free(blocks[i]);
}

/* Allocates a little until the resident part falls below 32 MiB, for so many hundredths of a second at most. */
static void go_on(int hundredths) {
  for (int i = 0; i < hundredths && resident() > 32 << 10; i++) {
    struct timespec pause = {0, 10000000};
    for (int k = 0; k < 20000; k++)
      free(malloc(100));
    nanosleep(&pause, NULL);
  }
}

/* A number in KiB that the settings decide. */
static int child(const char *what) {
  if (strcmp(what, "large") == 0) {
    memset(blocks[0] = (char *)malloc(33 << 20), 1, 33 << 20);
    return printf("%ld\n", kib("/proc/self/smaps", "AnonHugePages:")) < 0;
  }
  fill();
  if (strcmp(what, "huge") == 0)
    return printf("%ld\n", kib("/proc/self/smaps", "AnonHugePages:")) < 0;
  if (strcmp(what, "spread") == 0)
    return printf("%ld\n", spread()) < 0;
  release(strcmp(what, "parts") == 0 ? 2000 : 0); /* one block in most huge pages stays */
  if (strcmp(what, "idle") == 0)
    go_on(2000);
  else if (strcmp(what, "busy") == 0)
    go_on(60);
  return printf("%ld\n", resident()) < 0;
}

static long with(const char *settings, const char *what) {
  char command[512];
  long number = -1;
  FILE *in;
  snprintf(command, sizeof command, "exec env %s /proc/%ld/exe %s", settings, (long)getpid(), what);
  in = popen(command, "r");
  if (in == NULL || fscanf(in, "%ld", &number) != 1)
    exit(2);
  CHECK(pclose(in) == 0);
  return number;
}

int main(int argc, char **argv) {
  const long half = 32 << 10;
  char thp[64] = "";
  FILE *in;
  if (argc > 1)
    return child(argv[1]);
  CHECK(with("QMEM_HEAP_CACHE=1M", "at_once") < half);
  CHECK(with("QMEM_HEAP_CACHE=1G", "at_once") > half);
  CHECK(with("QMEM_HEAP_CACHE=1M QMEM_HEAP_HUGE=1M", "parts") < half);
  CHECK(with("QMEM_HEAP_CACHE=1G QMEM_HEAP_IDLE=20", "idle") < half);
  CHECK(with("QMEM_HEAP_CACHE=1G QMEM_HEAP_IDLE=1000000", "busy") > half);
  if (access("/proc/self/numa_maps", R_OK) == 0) {
    CHECK(with("QMEM_HEAP_NUMA=3", "spread") > 0);
    CHECK(with("QMEM_HEAP_NUMA=1", "spread") == 0);
  }
  in = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
  if (in != NULL && fgets(thp, sizeof thp, in) && strstr(thp, "[madvise]")) {
    CHECK(with("QMEM_HEAP_HUGE=1M", "huge") > half);
    CHECK(with("QMEM_HEAP_HUGE=1G", "huge") == 0);
    CHECK(with("QMEM_HEAP_HUGE_LARGE=4M", "large") == 32 << 10);
    CHECK(with("QMEM_HEAP_HUGE=1G", "large") == 0);
  }
  if (in != NULL)
    fclose(in);
  return finish();
}
