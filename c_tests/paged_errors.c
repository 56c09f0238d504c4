/* needs paged memory */
/* Failures of the pager's own threads: a lost bet on compression, damaged bytes in the swap file, a disk that refuses writes. The
   handler runs on a thread that may allocate and fault while the faulting thread waits, and what it repairs the access never notices;
   what it does not repair is SIGBUS on that chunk alone. */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <quantum_memory.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MIB = 1 << 20, CHUNK = 2 * MIB };
static int calls[8]; /* read after the failure is over */
static bool elsewhere;
static pthread_t main_thread;
static void (*volatile act)(void);

static void handler(memory_error_t error, memory_status_t status, const char *message, void *user) {
  (void)status, (void)user;
  calls[error]++;
  elsewhere = !pthread_equal(main_thread, pthread_self());
  CHECK(message[0] != 0);
  if (act != NULL)
    act();
}

static void start(memory_strategy_t strategy, bool compression, bool swapping, size_t budget) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_QUANTUM;
  config.strategy = strategy;
  config.max_memory = budget;
  config.enable_compression = compression;
  config.enable_swapping = swapping;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  memset(calls, 0, sizeof calls);
}
static void end(void) {
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
}

static uint64_t noise(uint64_t n) {
  n += 0x9E3779B97F4A7C15u;
  n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9u;
  n = (n ^ (n >> 27)) * 0x94D049BB133111EBu;
  return n ^ (n >> 31);
}
static void fill(uint64_t *words, size_t bytes, uint64_t salt) {
  size_t i;
  for (i = 0; i < bytes / 8; i++)
    words[i] = noise(i + (salt << 40));
}
static bool same(const uint64_t *words, size_t bytes, uint64_t salt) {
  size_t i;
  for (i = 0; i < bytes / 8; i++)
    if (words[i] != noise(i + (salt << 40)))
      return false;
  return true;
}

/* With STRATEGY_COMPACT more is granted than fits; noise does not compress. */
static void swap_after_all(void) {
  size_t n;
  unsigned char *block = (unsigned char *)qmem_allocate(4 * MIB, 0); /* paged: its faults are served while the handler runs */
  CHECK(block != NULL && qmem_kind(block) == QMEM_MEMORY_PAGED);
  STATUS(MEMORY_STATUS_OK, enable_swapping());
  for (n = 0; block != NULL && n < 4 * MIB; n += 4096)
    block[n] = (unsigned char)n;
  qmem_free(block);
}
static void a_lost_bet(void) {
  size_t size = (size_t)160 * MIB;
  uint64_t *words;
  start(STRATEGY_COMPACT, true, false, (size_t)64 * MIB);
  words = (uint64_t *)qmem_allocate(size, 0);
  CHECK(words != NULL);
  act = swap_after_all;
  fill(words, size, 1);
  CHECK(same(words, size, 1));
  CHECK(calls[MEMORY_ERROR_ALLOCATION] >= 1 && calls[MEMORY_ERROR_ALLOCATION] <= 8 && elsewhere);
  act = NULL;
  qmem_free(words);
  end();
}

/* The descriptor of the swap file, which has no name: a file of its size in the directory that was named for it. */
static int swap_file(const char *directory) {
  struct stat wanted, found;
  struct dirent *entry;
  DIR *open_files = opendir("/proc/self/fd");
  char path[300];
  int fd = -1;
  if (stat(directory, &wanted) != 0)
    return -1;
  while ((entry = readdir(open_files)) != NULL) {
    snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
    if (stat(path, &found) == 0 && S_ISREG(found.st_mode) && found.st_dev == wanted.st_dev && found.st_nlink == 0 && found.st_size >= CHUNK)
      fd = open(path, O_RDWR);
  }
  closedir(open_files);
  return fd;
}

static int disk;
static off_t damaged;
static unsigned char was;
static void damage(uint64_t *chunk) {
  uint64_t page[512];
  off_t at;
  for (at = 0; pread(disk, page, sizeof page, at) == (ssize_t)sizeof page; at += 4096)
    if (memcmp(page, chunk, sizeof page) == 0)
      break;
  damaged = at;
  CHECK(pread(disk, &was, 1, damaged) == 1);
  was ^= 1;
  CHECK(pwrite(disk, &was, 1, damaged) == 1);
  was ^= 1;
}
static void mend(void) {
  CHECK(pwrite(disk, &was, 1, damaged) == 1);
  STATUS(MEMORY_STATUS_OK, retry_operation());
}
static void mend_and_say_nothing(void) { CHECK(pwrite(disk, &was, 1, damaged) == 1); }
static void retry_in_vain(void) { FAILS(MEMORY_STATUS_CORRUPT, "checksum", retry_operation()); }
static void give_up(void) { STATUS(MEMORY_STATUS_OK, abort_operation()); }

static sigjmp_buf out;
static void on_bus_error(int signal) {
  (void)signal;
  siglongjmp(out, 1);
}
static bool readable(volatile uint64_t *word) {
  struct sigaction action, old;
  static volatile bool fine; /* set between setjmp and a jump */
  fine = false;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_bus_error;
  sigaction(SIGBUS, &action, &old);
  if (sigsetjmp(out, 1) == 0) {
    (void)*word;
    fine = true;
  }
  sigaction(SIGBUS, &old, NULL);
  return fine;
}

static void damaged_bytes(const char *directory) {
  static void (*const repairs[])(void) = {mend, mend_and_say_nothing, retry_in_vain, NULL, give_up};
  size_t size = (size_t)64 * MIB, n;
  uint64_t copy[512], *words, *chunk;
  start(STRATEGY_ADAPTIVE, false, true, (size_t)64 * MIB);
  for (n = 0; n < sizeof repairs / sizeof repairs[0]; n++) {
    words = (uint64_t *)qmem_allocate(size, 0);
    CHECK(words != NULL);
    fill(words, size, 2 + n);
    chunk = words + (9 + n) * (CHUNK / 8);
    memcpy(copy, chunk, sizeof copy);
    STATUS(MEMORY_STATUS_OK, qmem_evict(words, size));
    disk = swap_file(directory);
    CHECK(disk >= 0);
    damage(copy);
    act = repairs[n];
    calls[MEMORY_ERROR_CORRUPTION] = 0;
    elsewhere = false;
    if (n >= 2)
      fprintf(stderr, "(chunk %d is to be reported as lost here)\n", (int)(9 + n));
    CHECK(readable(chunk + 7) == (n < 2));
    CHECK(calls[MEMORY_ERROR_CORRUPTION] == 1 && elsewhere);
    if (n < 2)
      CHECK(same(words, size, 2 + n));
    else
      CHECK(!readable(chunk) && readable(chunk - 1) && readable(chunk + CHUNK / 8));
    CHECK(calls[MEMORY_ERROR_CORRUPTION] == 1);
    act = NULL;
    close(disk);
    qmem_free(words);
  }
  end();
}

/* A handler that frees the buffer whose chunk is lost ends the waiting, not the process's life. */
static uint64_t *doomed;
static sem_t freed;
static void free_the_buffer(void) {
  qmem_free(doomed);
  STATUS(MEMORY_STATUS_OK, retry_operation()); /* there is nothing left to repair */
  STATUS(MEMORY_STATUS_BUSY, cleanup_allocation_resources());
  sem_post(&freed);
}
static void on_segmentation_fault(int signal) {
  (void)signal;
  siglongjmp(out, 2);
}
static void freed_by_the_handler(const char *directory) {
  struct sigaction action, old[2];
  volatile uint64_t *word;
  start(STRATEGY_ADAPTIVE, false, true, (size_t)64 * MIB);
  doomed = (uint64_t *)qmem_allocate(16 * MIB, 0);
  fill(doomed, 16 * MIB, 20);
  {
    uint64_t copy[512];
    memcpy(copy, doomed, sizeof copy);
    STATUS(MEMORY_STATUS_OK, qmem_evict(doomed, 16 * MIB));
    disk = swap_file(directory);
    damage(copy);
  }
  sem_init(&freed, 0, 0);
  act = free_the_buffer;
  word = doomed;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_segmentation_fault;
  sigaction(SIGBUS, &action, &old[0]);
  sigaction(SIGSEGV, &action, &old[1]);
  fprintf(stderr, "(chunk 0 is to be reported as lost here)\n");
  if (sigsetjmp(out, 1) == 0) {
    (void)*word;
    CHECK(0); /* the buffer is gone */
  }
  sigaction(SIGBUS, &old[0], NULL);
  sigaction(SIGSEGV, &old[1], NULL);
  sem_wait(&freed);
  act = NULL;
  close(disk);
  CHECK(stats_now().current_allocated == 0);
  end();
}

/* A file size limit stands for a full disk: writes fail until the handler raises it. */
static void set_limit(rlim_t bytes) {
  struct rlimit limit;
  getrlimit(RLIMIT_FSIZE, &limit);
  limit.rlim_cur = bytes;
  CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}
static void raise_the_limit(void) { set_limit(RLIM_INFINITY); }
static void a_full_disk(void) {
  size_t size = (size_t)128 * MIB;
  uint64_t *words;
  signal(SIGXFSZ, SIG_IGN);
  start(STRATEGY_ADAPTIVE, false, true, (size_t)64 * MIB);
  words = (uint64_t *)qmem_allocate(size, 0);
  set_limit(8 * MIB);
  act = raise_the_limit;
  fill(words, size, 9);
  CHECK(same(words, size, 9)); /* nothing is lost, whether the handler was fast or slow */
  CHECK(calls[MEMORY_ERROR_IO] >= 1 && elsewhere);
  act = NULL;
  raise_the_limit();
  qmem_free(words);
  end();
}

int main(void) {
  char directory[] = "/var/tmp/qmem-errors-XXXXXX";
  main_thread = pthread_self();
  if (mkdtemp(directory) == NULL)
    return skip("no directory for a swap file");
  setenv("QMEM_SWAP_DIR", directory, 1);
  STATUS(MEMORY_STATUS_OK, qmem_set_error_handler(handler, NULL, NULL, NULL));
  a_lost_bet();
  damaged_bytes(directory);
  freed_by_the_handler(directory);
  a_full_disk();
  rmdir(directory);
  return finish();
}
