/* Preloaded by tests/paged_faults.rs: a disk that is full or broken, and a kernel that moves pages half-heartedly. Concerns
   unnamed regular files (the swap file), userfaultfd's MOVE and mremap's MREMAP_DONTUNMAP only. The plan is set by the test through the variables. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

volatile int fault_write;         /* every write fails with this errno */
volatile int fault_write_one_in;  /* or: one write in so many fails with EIO */
volatile int fault_short;         /* writes and reads end after one page, now and then */
volatile int fault_read;          /* 1: the place that is read next cannot be read any more; 2: it is damaged */
volatile int64_t fault_place = -1;
volatile int fault_move;          /* one move in so many is partial or refused, one mremap refused */
volatile int fault_hidden;        /* one move in so many is made, and reported as if pages had been there before */
volatile int fault_writes, fault_reads, fault_moves; /* how often that happened */

static unsigned dice(void) {
  static _Thread_local unsigned seed;
  if (!seed) seed = (unsigned)(uintptr_t)&seed | 1;
  seed ^= seed << 13;
  seed ^= seed >> 17;
  seed ^= seed << 5;
  return seed >> 8;
}

static int ours(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0;
}

static int refuse(void) {
  int error = fault_write;
  if (!error && fault_write_one_in && dice() % fault_write_one_in == 0) error = EIO;
  if (error) {
    __atomic_fetch_add(&fault_writes, 1, __ATOMIC_SEQ_CST);
    errno = error;
  }
  return error;
}

ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) {
  static ssize_t (*real)(int, const struct iovec *, int, off64_t);
  if (!real) real = (ssize_t(*)(int, const struct iovec *, int, off64_t))dlsym(RTLD_NEXT, "pwritev64");
  if (!ours(fd)) return real(fd, v, n, at);
  if (refuse()) return -1;
  if (fault_short && dice() % 2) {
    struct iovec one = {v[0].iov_base, 4096};
    __atomic_fetch_add(&fault_writes, 1, __ATOMIC_SEQ_CST);
    return real(fd, &one, 1, at);
  }
  return real(fd, v, n, at);
}
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { return pwritev64(fd, v, n, at); }

ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) {
  static ssize_t (*real)(int, const void *, size_t, off64_t);
  if (!real) real = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
  if (ours(fd) && refuse()) return -1;
  if (ours(fd) && fault_short && n > 65536) n = 65536;
  return real(fd, from, n, at);
}
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { return pwrite64(fd, from, n, at); }

ssize_t pread64(int fd, void *to, size_t n, off64_t at) {
  static ssize_t (*real)(int, void *, size_t, off64_t);
  if (!real) real = (ssize_t(*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
  if (!ours(fd)) return real(fd, to, n, at);
  if (fault_read && fault_place < 0) fault_place = at;
  if (fault_read && fault_place == at) {
    __atomic_fetch_add(&fault_reads, 1, __ATOMIC_SEQ_CST);
    if (fault_read == 1) {
      errno = EIO;
      return -1;
    }
    ssize_t got = real(fd, to, n, at);
    if (got > 2000) ((char *)to)[1999] ^= 0x40;
    return got;
  }
  if (fault_short && n > 65536) n = 65536;
  return real(fd, to, n, at);
}
ssize_t pread(int fd, void *to, size_t n, off_t at) { return pread64(fd, to, n, at); }

struct move {
  uint64_t dst, src, len, mode;
  int64_t done;
};

int ioctl(int fd, unsigned long request, ...) {
  static int (*real)(int, unsigned long, ...);
  if (!real) real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
  va_list list;
  va_start(list, request);
  void *argument = va_arg(list, void *);
  va_end(list);
  if (request == 0xC028AA05 && fault_hidden && dice() % fault_hidden == 0) {
    struct move *move = argument;
    uint64_t len = move->len;
    if (dice() % 2 && len > 4096) move->len = 4096 * (1 + dice() % (len / 4096 - 1));
    int result = real(fd, request, argument);
    move->len = len;
    if (result) return result;
    __atomic_fetch_add(&fault_moves, 1, __ATOMIC_SEQ_CST);
    move->done = -EEXIST;
    errno = EEXIST;
    return -1;
  }
  if (request != 0xC028AA05 || !fault_move || dice() % fault_move) return real(fd, request, argument);
  struct move *move = argument;
  __atomic_fetch_add(&fault_moves, 1, __ATOMIC_SEQ_CST);
  if (dice() % 2 && move->len > 4096) {
    uint64_t len = move->len;
    move->len = 4096 * (1 + dice() % (len / 4096 - 1));
    int result = real(fd, request, argument);
    move->len = len;
    if (result == 0) errno = EAGAIN;
    return -1;
  }
  move->done = 0;
  errno = dice() % 2 ? EAGAIN : EBUSY;
  return -1;
}

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
long syscall(long number, ...) {
  static long (*real)(long, ...);
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  long a[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  if (number == SYS_mremap && a[3] & MREMAP_DONTUNMAP && fault_move && dice() % fault_move == 0) {
    __atomic_fetch_add(&fault_moves, 1, __ATOMIC_SEQ_CST);
    errno = dice() % 2 ? ENOMEM : EFAULT;
    return -1;
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static sigjmp_buf back;
static void on_bus(int number) {
  (void)number;
  siglongjmp(back, 1);
}

/* Reads a byte: 0 if that raises SIGBUS. */
int fault_probe(const volatile char *at) {
  signal(SIGBUS, on_bus);
  if (sigsetjmp(back, 1)) return 0;
  (void)*at;
  return 1;
}
