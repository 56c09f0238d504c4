/* The jobs bounds and touch: what this machine's memory and disk can do at all, measured beside the contenders in the same sitting.
   Called by sweep.c. Memory through huge pages; the disk by direct I/O in pieces of 2 MiB. */
#define _GNU_SOURCE
#include "bench.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- memory ---- */
typedef struct { double *a, *b, *c; size_t doubles; } arrays;

static void touch_part(void *shared, unsigned part, unsigned parts) {
  arrays *x = shared;
  for (size_t i = part_begin(x->doubles, part, parts); i < part_begin(x->doubles, part + 1, parts); i++) x->a[i] = x->b[i] = x->c[i] = 1;
}

static void triad_part(void *shared, unsigned part, unsigned parts) {
  arrays *x = shared;
  double *restrict a = x->a;
  const double *restrict b = x->b, *restrict c = x->c;
  size_t end = part_begin(x->doubles, part + 1, parts);
  for (size_t i = part_begin(x->doubles, part, parts); i < end; i++) a[i] = b[i] + 0.5 * c[i];
}

/* What a gate does to memory, without its arithmetic: every byte read and written once, in place. */
static void update_part(void *shared, unsigned part, unsigned parts) {
  arrays *x = shared;
  double *a = x->a;
  size_t end = part_begin(x->doubles, part + 1, parts);
  for (size_t i = part_begin(x->doubles, part, parts); i < end; i++) a[i] *= -1;
}

static double best_of(unsigned repeats, unsigned threads, part_fn fn, arrays *x) {
  double best = 1e30;
  for (unsigned i = 0; i < repeats; i++) {
    double start = seconds();
    parallel(threads, fn, x);
    double t = seconds() - start;
    if (t < best) best = t;
  }
  return best;
}

static void measure_memory(const options *o) {
  buffer a = memory_allocate(o, MEMORY_HUGE, o->bytes, false), b = memory_allocate(o, MEMORY_HUGE, o->bytes, false),
         c = memory_allocate(o, MEMORY_HUGE, o->bytes, false);
  arrays x = {a.data, b.data, c.data, o->bytes / 8};
  double bytes = (double)o->bytes;
  parallel(o->threads, touch_part, &x);
  printf("\"memory\": {\"array_bytes\": %zu", o->bytes);
  for (unsigned threads = 1;; threads = o->threads) {
    printf(", \"triad_gb_s_%u\": %.3f, \"update_gb_s_%u\": %.3f", threads, 3e-9 * bytes / best_of(5, threads, triad_part, &x), threads,
           2e-9 * bytes / best_of(5, threads, update_part, &x));
    if (threads == o->threads) break;
  }
  printf("}");
  memory_release(&a);
  memory_release(&b);
  memory_release(&c);
}

/* ---- disk ---- */
typedef struct { int fd; char *pages; size_t pieces; bool read, write; unsigned depth; _Atomic size_t next_read, next_write; } disk;

static void transfer(disk *d, char *page, bool write, size_t piece, size_t at) {
  off_t offset = (off_t)((piece + at) * HUGE_PAGE);
  ssize_t n = write ? pwrite(d->fd, page, HUGE_PAGE, offset) : pread(d->fd, page, HUGE_PAGE, offset);
  if (n != (ssize_t)HUGE_PAGE) fail("direct %s of 2 MiB at %lld gave %zd: %s", write ? "write" : "read", (long long)offset, n, strerror(errno));
}

/* Reads take the first half of the file, writes the second; each queue is `depth` threads that take the next piece in order. */
static void disk_part(void *shared, unsigned part, unsigned parts) {
  disk *d = shared;
  bool write = d->write && (!d->read || part >= parts / 2);
  char *page = d->pages + part * HUGE_PAGE;
  _Atomic size_t *next = write ? &d->next_write : &d->next_read;
  for (size_t piece; (piece = (*next)++) < d->pieces;) transfer(d, page, write, piece, write ? d->pieces : 0);
}

static double disk_rate(disk *d, bool read, bool write, unsigned depth) {
  double best = 0;
  for (int i = 0; i < 2; i++) {
    d->read = read, d->write = write, d->next_read = d->next_write = 0;
    double start = seconds();
    parallel(depth * (unsigned)(read + write), disk_part, d);
    double rate = 1e-9 * (double)(d->pieces * HUGE_PAGE) / (seconds() - start);
    if (rate > best) best = rate;
  }
  return best;
}

static void measure_disk(const options *o) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/qmem-bench-XXXXXX", o->directory) >= (int)sizeof path) fail("the directory's name is too long");
  int fd = mkostemp(path, O_DIRECT);
  if (fd < 0) fail("cannot create a file for direct I/O in %s: %s (a tmpfs has none; name another with --dir)", o->directory, strerror(errno));
  unlink(path);
  size_t half = o->bytes / 2 / HUGE_PAGE * HUGE_PAGE;
  int error = posix_fallocate(fd, 0, (off_t)(2 * half));
  if (error) fail("cannot reserve %zu bytes in %s: %s", 2 * half, o->directory, strerror(error));
  enum { DEPTHS = 3 };
  static const unsigned depths[DEPTHS] = {1, 4, 8};
  disk d = {.fd = fd, .pieces = half / HUGE_PAGE};
  d.pages = aligned_alloc(HUGE_PAGE, 16 * HUGE_PAGE);
  if (!d.pages) fail("no memory for the disk's pages");
  for (size_t i = 0; i < 16 * HUGE_PAGE / 8; i++) ((uint64_t *)(void *)d.pages)[i] = mix(i);
  for (size_t i = 0; i < 2 * d.pieces; i++) transfer(&d, d.pages, true, i, 0); /* so that nothing is allocated while it counts */
  printf(", \"disk\": {\"half_bytes\": %zu", half);
  for (unsigned i = 0; i < DEPTHS; i++)
    printf(", \"read_gb_s_%u\": %.3f, \"write_gb_s_%u\": %.3f, \"both_each_gb_s_%u\": %.3f", depths[i], disk_rate(&d, true, false, depths[i]),
           depths[i], disk_rate(&d, false, true, depths[i]), depths[i], disk_rate(&d, true, true, depths[i]));
  printf("}");
  free(d.pages);
  close(fd);
}

/* In a virtual machine a page that was never used before costs a fault of the host's on top, many times the guest's own, and whoever
   runs first would pay for all. So everything that may be needed is used once, before anything is timed. */
int bounds_touch(const options *o) {
  enum { STEP = 256 << 20, MOST_STEPS = 4096, MOST_SECONDS = 60 };
  static buffer held[MOST_STEPS];
  size_t count = 0;
  double start = seconds();
  while (count < MOST_STEPS && (count + 1) * STEP <= o->bytes && seconds() - start < MOST_SECONDS) {
    if (memory_available() < (size_t)2 << 30) break; /* others live here too */
    held[count] = memory_allocate(o, MEMORY_PLAIN, STEP, false);
    for (size_t i = 0; i < STEP; i += 4096) ((volatile char *)held[count].data)[i] = 1;
    count++;
  }
  printf("{\"job\": \"touch\", \"bytes\": %zu, \"seconds\": %.3f}\n", count * STEP, seconds() - start);
  while (count > 0) memory_release(&held[--count]);
  return 0;
}

int bounds_measure(const options *o) {
  printf("{\"job\": \"bounds\", \"threads\": %u, ", o->threads);
  measure_memory(o);
  measure_disk(o);
  puts("}");
  return 0;
}
