/* needs paged memory. Everything that moves bytes between paged memory and a file, a pipe or a socket: right data, whole transfers of
   files, whatever the kernel does with a missing page. Run with QMEM_BUDGET=64M, QMEM_PRELOAD_THRESHOLD=1M, by an unprivileged user
   and with QMEM_BACKEND=signal too. */
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define SIZE (160 * MIB)

static uint64_t *data, *other;
static int file;

static void fill(uint64_t seed) {
  for (size_t i = 0; i < SIZE / 8; i++) data[i] = (seed + i) * 0x9E3779B97F4A7C15u;
}
static bool arrived(uint64_t seed) {
  for (size_t i = 0; i < SIZE / 8; i++)
    if (other[i] != (seed + i) * 0x9E3779B97F4A7C15u) return false;
  return true;
}
/* What is read into is gone from memory before, so that the kernel meets missing pages. */
static void begin(uint64_t seed) {
  fill(seed);
  memset(other, 0xEE, SIZE);
  for (size_t i = 0; i < SIZE; i += 4096) ((volatile char *)data)[i];
  CHECK(ftruncate(file, 0) == 0 && lseek(file, 0, SEEK_SET) == 0);
}

static void plain(void) {
  begin(1);
  CHECK(write(file, data, SIZE) == (ssize_t)SIZE && lseek(file, 0, SEEK_SET) == 0);
  CHECK(read(file, other, SIZE) == (ssize_t)SIZE && arrived(1));
  CHECK(read(file, other, 100) == 0);
  begin(2);
  CHECK(pwrite(file, data, SIZE, 4096) == (ssize_t)SIZE);
  CHECK(pread(file, other, SIZE, 4096) == (ssize_t)SIZE && arrived(2));
  errno = 0;
  CHECK(read(-1, other, SIZE) == -1 && errno == EBADF);
}

static void vectors(void) {
  struct iovec from[40], to[3] = {{other, 5 * MIB}, {(char *)other + 5 * MIB, 100}, {(char *)other + 5 * MIB + 100, SIZE - 5 * MIB - 100}};
  begin(3);
  for (size_t i = 0; i < 40; i++) from[i] = (struct iovec){(char *)data + i * (SIZE / 40), SIZE / 40};
  CHECK(writev(file, from, 40) == (ssize_t)SIZE && lseek(file, 0, SEEK_SET) == 0);
  CHECK(readv(file, to, 3) == (ssize_t)SIZE && arrived(3));
  begin(4);
  CHECK(pwritev(file, from, 40, 512) == (ssize_t)SIZE && preadv(file, to, 3, 512) == (ssize_t)SIZE && arrived(4));
}

static void streams(void) {
  FILE *stream = tmpfile();
  begin(5);
  CHECK(stream && fwrite(data, 8, SIZE / 8, stream) == SIZE / 8 && fflush(stream) == 0);
  rewind(stream);
  CHECK(fread(other, SIZE / 4, 4, stream) == 4 && arrived(5));
  CHECK(fread(other, 1, 10, stream) == 0 && feof(stream));
  fclose(stream);
}

static int ends[2];
static void *sends(void *how) {
  size_t done = 0;
  while (done < SIZE) {
    struct iovec part = {(char *)data + done, SIZE - done};
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part, message.msg_iovlen = 1;
    ssize_t n = how == NULL ? send(ends[0], (char *)data + done, SIZE - done, 0) : sendmsg(ends[0], &message, 0);
    if (n <= 0) break;
    done += (size_t)n;
  }
  CHECK(done == SIZE);
  return NULL;
}

static void sockets(void *how, uint64_t seed) {
  pthread_t thread;
  size_t done = 0;
  begin(seed);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && pthread_create(&thread, NULL, sends, how) == 0);
  while (done < SIZE) {
    struct iovec part = {(char *)other + done, SIZE - done};
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part, message.msg_iovlen = 1;
    ssize_t n = how == NULL ? recv(ends[1], (char *)other + done, SIZE - done, 0) : recvmsg(ends[1], &message, 0);
    if (n <= 0) break;
    done += (size_t)n;
  }
  pthread_join(thread, NULL);
  CHECK(done == SIZE && arrived(seed));
  close(ends[0]), close(ends[1]);
}

static void datagrams(void) {
  char *end = (char *)other + 2 * MIB - 100; /* across two chunks */
  CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  begin(8);
  CHECK(send(ends[0], data, 30000, 0) == 30000 && send(ends[0], data, 200, 0) == 200);
  CHECK(recv(ends[1], end, 60000, 0) == 30000 && memcmp(end, data, 30000) == 0);
  CHECK(recv(ends[1], end, 60000, 0) == 200);
  close(ends[0]), close(ends[1]);
}

/* A thread that waits in read is cancelled as ever. */
static void *waits(void *unused) {
  CHECK(read(ends[1], other, 100) == -1);
  return unused;
}
static void cancelled(void) {
  pthread_t thread;
  void *result = NULL;
  CHECK(pipe(ends) == 0);
  int back = ends[0];
  ends[0] = ends[1], ends[1] = back;
  CHECK(pthread_create(&thread, NULL, waits, NULL) == 0);
  usleep(50000);
  CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
  close(ends[0]), close(ends[1]);
}

int main(void) {
  alarm(600);
  data = malloc(SIZE), other = malloc(SIZE);
  FILE *holder = tmpfile();
  if (!data || !other || !holder) return skip("no memory, or no place for a file");
  file = fileno(holder);
  plain();
  vectors();
  streams();
  sockets(NULL, 6);
  sockets(data, 7);
  datagrams();
  cancelled();
  fclose(holder);
  free(data), free(other);
  return finish();
}
