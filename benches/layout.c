/* layout.c: arrays whose rows are a power of two long, dense and as qmem_allocate_geometric pads them: walked along each axis, by single
   elements and by cache lines, and transposed. Called by sweep.c. Shows where the padding pays and where it costs. */
#define _GNU_SOURCE
#include "bench.h"
#include <complex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 4 /* elements of 16 bytes */, TILE = 32, ROUNDS = 7 };

typedef struct { double complex *at; size_t rows, columns, stride; } matrix;

/* Along rows: what a dense array is best at. */
static void rows(const matrix *m) {
  for (size_t i = 0; i < m->rows; i++)
    for (size_t j = 0; j < m->columns; j++) m->at[i * m->stride + j] *= I;
}

/* Down one column after the other. */
static void columns(const matrix *m) {
  for (size_t j = 0; j < m->columns; j++)
    for (size_t i = 0; i < m->rows; i++) m->at[i * m->stride + j] *= I;
}

/* Down the columns of one cache line at a time. */
static void lines(const matrix *m) {
  for (size_t j = 0; j < m->columns; j += LINE)
    for (size_t i = 0; i < m->rows; i++)
      for (size_t k = 0; k < LINE; k++) m->at[i * m->stride + j + k] *= I;
}

/* In place, tile by tile. */
static void transpose(const matrix *m) {
  for (size_t i = 0; i < m->rows; i += TILE)
    for (size_t j = i; j < m->columns; j += TILE)
      for (size_t k = i; k < i + TILE; k++)
        for (size_t l = i == j ? k + 1 : j; l < j + TILE; l++) {
          double complex *x = &m->at[k * m->stride + l], *y = &m->at[l * m->stride + k], kept = *x;
          *x = *y;
          *y = kept;
        }
}

static double best_of(void (*walk)(const matrix *), const matrix *m) {
  double best = 1e9;
  for (int r = 0; r < ROUNDS; r++) {
    double start = seconds();
    walk(m);
    double took = seconds() - start;
    if (took < best) best = took;
  }
  return best;
}

int layout_measure(const options *o) {
  static const struct { const char *name; void (*walk)(const matrix *); } WALKS[] = {
      {"along rows", rows}, {"down columns", columns}, {"down cache lines", lines}, {"transpose by tiles", transpose}};
  static const size_t SIDES[] = {256, 1024, 2048};
  (void)o;
  printf("{\"job\": \"layout\", \"rows\": [");
  for (size_t s = 0; s < sizeof SIDES / sizeof *SIDES; s++) {
    const size_t side = SIDES[s];
    size_t stride;
    matrix dense = {aligned_alloc(HUGE_PAGE, (side * side * 16 + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE), side, side, side};
    matrix padded = {memory_geometric(side, side, &stride), side, side, 0};
    padded.stride = stride;
    if (!dense.at) fail("no memory for a matrix of %zu by %zu", side, side);
    for (size_t i = 0; i < side; i++)
      for (size_t j = 0; j < side; j++) dense.at[i * side + j] = padded.at[i * stride + j] = 1;
    for (size_t w = 0; w < sizeof WALKS / sizeof *WALKS; w++) {
      double plain = best_of(WALKS[w].walk, &dense), spread = best_of(WALKS[w].walk, &padded);
      printf("%s{\"side\": %zu, \"stride\": %zu, \"walk\": \"%s\", \"dense_s\": %.6f, \"padded_s\": %.6f}", s + w ? ", " : "", side, stride, WALKS[w].name, plain, spread);
    }
    free(dense.at);
    memory_geometric_free(padded.at);
  }
  puts("]}");
  return 0;
}
