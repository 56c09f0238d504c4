/* measure.c: see measure.h. */
#include "measure.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* splitmix64 */
static uint64_t random_bits(random_t *random) {
  uint64_t z = random->state += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

double random_unit(random_t *random) { return (double)(random_bits(random) >> 11) * 0x1p-53; }

/* ---- sums ---- */

typedef struct {
  const double *amplitude;
  uint64_t mask;            /* only indices with all these bits */
  double *sum;              /* per segment */
} sums_t;

static void sum_segment(size_t segment, uint64_t first, size_t amplitudes, void *user) {
  const sums_t *sums = user;
  double sum = 0;
  for (uint64_t i = first; i < first + amplitudes; i++) {
    if ((i & sums->mask) != sums->mask) continue;
    const double *a = sums->amplitude + 2 * i;
    sum += a[0] * a[0] + a[1] * a[1];
  }
  sums->sum[segment] = sum;
}

static double total(const double *sum, size_t count) {
  double all = 0;
  for (size_t i = 0; i < count; i++) all += sum[i];
  return all;
}

/* At most 2^(48-16) segments would be too many for the stack, 2^12 is what 28 qubits need: on the heap, with a way out. */
static double *segment_sums(engine_t *engine, const state_t *state, uint64_t mask) {
  sums_t sums = {.amplitude = state->amplitude, .mask = mask, .sum = malloc(engine_segment_count(state) * sizeof(double))};
  if (sums.sum) engine_segments(engine, state, sum_segment, &sums);
  return sums.sum;
}

static double masked_norm(engine_t *engine, const state_t *state, uint64_t mask) {
  double *sum = segment_sums(engine, state, mask);
  if (!sum) return NAN;
  double all = total(sum, engine_segment_count(state));
  free(sum);
  return all;
}

double measure_norm(engine_t *engine, const state_t *state) { return masked_norm(engine, state, 0); }

/* ---- collapse ---- */

typedef struct {
  double *amplitude, scale;
  uint64_t bit;
  bool keep_one;
} collapse_t;

static void collapse_segment(size_t segment, uint64_t first, size_t amplitudes, void *user) {
  const collapse_t *collapse = user;
  (void)segment;
  for (uint64_t i = first; i < first + amplitudes; i++) {
    double factor = ((i & collapse->bit) != 0) == collapse->keep_one ? collapse->scale : 0;
    collapse->amplitude[2 * i] *= factor;
    collapse->amplitude[2 * i + 1] *= factor;
  }
}

bool measure_qubit(engine_t *engine, state_t *state, unsigned qubit, random_t *random) {
  double all = masked_norm(engine, state, 0), one = masked_norm(engine, state, 1ull << qubit);
  collapse_t collapse = {.amplitude = state->amplitude, .bit = 1ull << qubit};
  collapse.keep_one = random_unit(random) * all < one;
  collapse.scale = 1 / sqrt(collapse.keep_one ? one : all - one);
  engine_segments(engine, state, collapse_segment, &collapse);
  return collapse.keep_one;
}

void measure_reset(engine_t *engine, state_t *state, unsigned qubit, random_t *random) {
  if (!measure_qubit(engine, state, qubit, random)) return;
  uint64_t bit = 1ull << qubit;
  for (uint64_t i = 0; i < 1ull << state->padded; i++) {
    if (i & bit) continue;
    memcpy(state->amplitude + 2 * i, state->amplitude + 2 * (i | bit), 2 * sizeof(double));
    memset(state->amplitude + 2 * (i | bit), 0, 2 * sizeof(double));
  }
}

/* ---- samples ---- */

typedef struct {
  double at;                /* in [0, norm) */
  size_t shot;
} draw_t;

static int by_position(const void *a, const void *b) {
  double x = ((const draw_t *)a)->at, y = ((const draw_t *)b)->at;
  return (x > y) - (x < y);
}

/* Walks the segments that hold a draw, once each. */
static void place_draws(const state_t *state, const double *sum, const draw_t *draw, size_t shots, uint64_t *index) {
  size_t segments = engine_segment_count(state), amplitudes = ((size_t)1 << state->padded) / segments, next = 0;
  double below = 0;
  for (size_t s = 0; s < segments && next < shots; below += sum[s], s++) {
    if (draw[next].at >= below + sum[s] && s + 1 < segments) continue;
    double reached = below;
    uint64_t last = (uint64_t)s * amplitudes; /* of those with weight: rounding may leave a draw beyond the end */
    for (uint64_t i = (uint64_t)s * amplitudes; i < (uint64_t)(s + 1) * amplitudes; i++) {
      const double *a = state->amplitude + 2 * i;
      double weight = a[0] * a[0] + a[1] * a[1];
      if (weight == 0) continue;
      reached += weight;
      last = i;
      while (next < shots && draw[next].at < reached) index[draw[next++].shot] = i;
    }
    while (next < shots && (draw[next].at < below + sum[s] || s + 1 == segments)) index[draw[next++].shot] = last;
  }
}

bool measure_sample(engine_t *engine, const state_t *state, size_t shots, random_t *random, uint64_t *index) {
  double *sum = segment_sums(engine, state, 0);
  draw_t *draw = malloc((shots + 1) * sizeof *draw);
  if (sum && draw) {
    double all = total(sum, engine_segment_count(state));
    for (size_t i = 0; i < shots; i++) draw[i] = (draw_t){.at = random_unit(random) * all, .shot = i};
    qsort(draw, shots, sizeof *draw, by_position);
    place_draws(state, sum, draw, shots, index);
  }
  bool good = sum && draw;
  free(sum);
  free(draw);
  return good;
}

size_t measure_top(const state_t *state, outcome_t *top, size_t most) {
  size_t count = 0;
  for (uint64_t i = 0; most > 0 && i < 1ull << state->qubits; i++) {
    const double *a = state->amplitude + 2 * i;
    double p = a[0] * a[0] + a[1] * a[1];
    if (p == 0 || (count == most && p <= top[count - 1].probability)) continue;
    size_t at = count < most ? count++ : most - 1;
    while (at > 0 && top[at - 1].probability < p) top[at] = top[at - 1], at--;
    top[at] = (outcome_t){.index = i, .probability = p};
  }
  return count;
}

/* ---- two states ---- */

typedef struct {
  const double *a, *b;
  double (*sum)[4];         /* re and im of <a|b>, |a|^2, |b|^2 */
  uint64_t *different;      /* first different amplitude of the segment, or UINT64_MAX */
} compare_t;

static void compare_segment(size_t segment, uint64_t first, size_t amplitudes, void *user) {
  const compare_t *compare = user;
  double re = 0, im = 0, aa = 0, bb = 0;
  const double *a = compare->a + 2 * first, *b = compare->b + 2 * first;
  for (size_t i = 0; i < 2 * amplitudes; i += 2) {
    re += a[i] * b[i] + a[i + 1] * b[i + 1];
    im += a[i] * b[i + 1] - a[i + 1] * b[i];
    aa += a[i] * a[i] + a[i + 1] * a[i + 1];
    bb += b[i] * b[i] + b[i + 1] * b[i + 1];
  }
  double *sum = compare->sum[segment];
  sum[0] = re, sum[1] = im, sum[2] = aa, sum[3] = bb;
  compare->different[segment] = UINT64_MAX;
  if (memcmp(a, b, 2 * sizeof(double) * amplitudes) == 0) return;
  size_t i = 0;
  while (memcmp(a + 2 * i, b + 2 * i, 2 * sizeof(double)) == 0) i++;
  compare->different[segment] = first + i;
}

bool measure_compare(engine_t *engine, const state_t *a, const state_t *b, comparison_t *comparison) {
  size_t segments = engine_segment_count(a);
  compare_t compare = {.a = a->amplitude, .b = b->amplitude};
  compare.sum = malloc(segments * sizeof *compare.sum);
  compare.different = malloc(segments * sizeof *compare.different);
  bool good = compare.sum && compare.different;
  if (good) {
    double all[4] = {0};
    *comparison = (comparison_t){.first_different = UINT64_MAX};
    engine_segments(engine, a, compare_segment, &compare);
    for (size_t s = 0; s < segments; s++) {
      for (int i = 0; i < 4; i++) all[i] += compare.sum[s][i];
      if (compare.different[s] < comparison->first_different) comparison->first_different = compare.different[s];
    }
    comparison->identical = comparison->first_different == UINT64_MAX;
    comparison->fidelity = (all[0] * all[0] + all[1] * all[1]) / (all[2] * all[3]);
  }
  free(compare.sum);
  free(compare.different);
  return good;
}
