/* The job fill-verify: a streaming buffer is filled, then read forwards, backwards and in random order of 64 KiB blocks, and
   every byte compared with what was written. Called by sweep.c. One wrong word fails the run. */
#define _GNU_SOURCE
#include "bench.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOCK_WORDS = BLOCK_BYTES / 8 };
typedef struct { const options *o; uint64_t *data; const uint32_t *order; _Atomic size_t wrong; } stream;

/* Incompressible words are all different; the others repeat every 64 bytes within a block, and no two blocks are equal. */
static inline uint64_t word(bool incompressible, size_t block, size_t i) {
  return incompressible ? mix(block * BLOCK_WORDS + i) : (block << 8) + (i & 7) + 0x0101010100000000u;
}

static void fill_part(void *shared, unsigned part, unsigned parts) {
  stream *s = shared;
  size_t blocks = s->o->bytes / BLOCK_BYTES;
  for (size_t b = part_begin(blocks, part, parts); b < part_begin(blocks, part + 1, parts); b++) {
    uint64_t *out = s->data + b * BLOCK_WORDS;
    for (size_t i = 0; i < BLOCK_WORDS; i++) out[i] = word(s->o->incompressible, b, i);
  }
}

static void verify_part(void *shared, unsigned part, unsigned parts) {
  stream *s = shared;
  size_t blocks = s->o->bytes / BLOCK_BYTES, wrong = 0;
  for (size_t k = part_begin(blocks, part, parts); k < part_begin(blocks, part + 1, parts); k++) {
    size_t b = s->order[k];
    const uint64_t *in = s->data + b * BLOCK_WORDS;
    uint64_t difference = 0;
    for (size_t i = 0; i < BLOCK_WORDS; i++) difference |= in[i] ^ word(s->o->incompressible, b, i);
    wrong += difference != 0;
  }
  s->wrong += wrong;
}

static double timed(stream *s, part_fn fn) {
  double start = seconds();
  parallel(s->o->threads, fn, s);
  return seconds() - start;
}

int stream_fill_verify(const options *o) {
  size_t blocks = o->bytes / BLOCK_BYTES;
  uint32_t *order = malloc(blocks * sizeof *order);
  if (!order) fail("no memory for an order of %zu blocks", blocks);
  buffer b = memory_allocate(o, o->memory, o->bytes, true);
  stream s = {o, b.data, order, 0};

  double fill = timed(&s, fill_part);
  for (size_t i = 0; i < blocks; i++) order[i] = (uint32_t)i;
  double forwards = timed(&s, verify_part);
  for (size_t i = 0; i < blocks; i++) order[i] = (uint32_t)(blocks - 1 - i);
  double backwards = timed(&s, verify_part);
  generator g = generator_of(1);
  for (size_t i = blocks - 1; i > 0; i--) {
    size_t j = generator_next(&g) % (i + 1);
    uint32_t t = order[i];
    order[i] = order[j];
    order[j] = t;
  }
  double random_order = timed(&s, verify_part);

  printf("{\"job\": \"fill-verify\", \"memory\": \"%s\", \"bytes\": %zu, \"threads\": %u, \"incompressible\": %s, \"fill_s\": %.6f, "
         "\"forwards_s\": %.6f, \"backwards_s\": %.6f, \"random_s\": %.6f, \"wrong_blocks\": %zu",
         o->kind_name, o->bytes, o->threads, o->incompressible ? "true" : "false", fill, forwards, backwards, random_order, (size_t)s.wrong);
  memory_print_rss();
  if (o->memory == MEMORY_QMEM) memory_print_qmem_stats();
  puts("}");
  memory_release(&b);
  free(order);
  if (s.wrong) fprintf(stderr, "sweep: %zu of %zu block reads gave other bytes than were written\n", (size_t)s.wrong, 3 * blocks);
  return s.wrong ? 1 : 0;
}
