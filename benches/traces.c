/* traces.c: which chunks a program asks for, in orders that defeat one policy or another, and how often each had to be brought in: by the
   pager, by LRU, and by Belady's choice, which knows the future and is the bound. The last two are simulated on the same trace with as
   many frames as the budget has chunks. Called by sweep.c; knows of paged memory only how many chunks have left it. */
#define _GNU_SOURCE
#include "bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNKS = 256, PASSES = 16, ACCESSES = CHUNKS * PASSES };

typedef struct { const char *name; void (*make)(unsigned *chunk); } trace;

/* A sweep over everything, again and again. */
static void cyclic(unsigned *chunk) {
  for (unsigned i = 0; i < ACCESSES; i++) chunk[i] = i % CHUNKS;
}

/* Sweeps as gates make them: pairs that are 2^k apart, another k each time. */
static void gates(unsigned *chunk) {
  for (unsigned i = 0; i < ACCESSES; i++) {
    unsigned k = i / CHUNKS % 8, at = i % CHUNKS, pair = at / 2, low = pair & ((1u << k) - 1);
    chunk[i] = ((pair >> k) << (k + 1)) | low | (at & 1) << k;
  }
}

static void strided(unsigned *chunk) {
  for (unsigned i = 0; i < ACCESSES; i++) chunk[i] = i * 16 % CHUNKS + i * 16 / CHUNKS % 16;
}

static void uniform(unsigned *chunk) {
  for (unsigned i = 0; i < ACCESSES; i++) chunk[i] = (unsigned)(mix(i) % CHUNKS);
}

/* Nine of ten accesses go to a tenth of the chunks. */
static void skewed(unsigned *chunk) {
  for (unsigned i = 0; i < ACCESSES; i++) {
    uint64_t bits = mix(i);
    chunk[i] = bits % 10 ? (unsigned)(bits / 10 % (CHUNKS / 10)) : (unsigned)(bits / 10 % CHUNKS);
  }
}

/* A working set that fits, then another one, then everything, then again. */
static void phases(unsigned *chunk) {
  for (unsigned i = 0; i < ACCESSES; i++) {
    unsigned phase = i / (2 * CHUNKS) % 4, at = i % (CHUNKS / 5);
    chunk[i] = phase == 3 ? i % CHUNKS : at + phase * (CHUNKS / 4);
  }
}

static const trace TRACES[] = {{"cyclic", cyclic},   {"gates on all qubits", gates}, {"strided by 16", strided},
                               {"random", uniform},  {"nine of ten to a tenth", skewed}, {"phases", phases}};

/* ---- the peers, simulated ---- */
static size_t lru(const unsigned *chunk, size_t frames) {
  size_t last[CHUNKS] = {0}, held = 0, missed = 0; /* last: 1 + when, 0: not in memory */
  for (size_t i = 0; i < ACCESSES; i++) {
    if (!last[chunk[i]]) {
      missed++;
      if (held == frames) {
        unsigned oldest = CHUNKS;
        for (unsigned c = 0; c < CHUNKS; c++)
          if (last[c] && (oldest == CHUNKS || last[c] < last[oldest])) oldest = c;
        last[oldest] = 0;
      } else {
        held++;
      }
    }
    last[chunk[i]] = i + 1;
  }
  return missed;
}

static size_t belady(const unsigned *chunk, size_t frames) {
  static size_t next[ACCESSES];
  size_t use[CHUNKS], held = 0, missed = 0; /* use: of what is in memory, when next */
  bool in[CHUNKS] = {false};
  for (unsigned c = 0; c < CHUNKS; c++) use[c] = ACCESSES;
  for (size_t i = ACCESSES; i-- > 0;) next[i] = use[chunk[i]], use[chunk[i]] = i;
  for (size_t i = 0; i < ACCESSES; i++) {
    unsigned c = chunk[i];
    if (!in[c]) {
      missed++;
      if (held == frames) {
        unsigned latest = CHUNKS;
        for (unsigned other = 0; other < CHUNKS; other++)
          if (in[other] && (latest == CHUNKS || use[other] > use[latest])) latest = other;
        in[latest] = false;
      } else {
        held++;
      }
      in[c] = true;
    }
    use[c] = next[i];
  }
  return missed;
}

/* ---- the pager ---- */
static void touch(char *chunk, size_t bytes, uint64_t salt) {
  for (size_t at = 0; at < bytes; at += 4096) *(volatile uint64_t *)(chunk + at) ^= mix(salt + at);
}

int traces_measure(const options *o) {
  const size_t chunk_bytes = HUGE_PAGE, frames = o->budget / chunk_bytes;
  if (o->bytes != CHUNKS * chunk_bytes || frames < 16) fail("--job traces: --bytes %zu is not %d chunks of 2 MiB", o->bytes, CHUNKS);
  unsigned *chunk = malloc(ACCESSES * sizeof *chunk);
  buffer b = memory_allocate(o, MEMORY_QMEM, o->bytes, true);
  char *data = b.data;
  if (!chunk) fail("no memory for the trace");
  for (size_t i = 0; i < o->bytes / 8; i++) ((uint64_t *)b.data)[i] = mix(i); /* nothing to compress: a chunk is a frame or in the swap file */
  printf("{\"job\": \"traces\", \"chunks\": %d, \"chunk_bytes\": %zu, \"frames\": %zu, \"accesses\": %d, \"traces\": [", CHUNKS, chunk_bytes, frames, ACCESSES);
  for (size_t t = 0; t < sizeof TRACES / sizeof *TRACES; t++) {
    TRACES[t].make(chunk);
    size_t before = memory_moved_out();
    double start = seconds();
    for (size_t i = 0; i < ACCESSES; i++) touch(data + chunk[i] * chunk_bytes, chunk_bytes, i);
    double took = seconds() - start;
    printf("%s{\"name\": \"%s\", \"qmem\": %zu, \"lru\": %zu, \"belady\": %zu, \"seconds\": %.3f}", t ? ", " : "", TRACES[t].name,
           memory_moved_out() - before, lru(chunk, frames), belady(chunk, frames), took);
  }
  puts("]}");
  memory_release(&b);
  free(chunk);
  return 0;
}
