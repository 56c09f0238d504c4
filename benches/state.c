/* The state vector: complex amplitudes as pairs of doubles, filled, swept by Hadamard gates and checked, written as the author
   of a simulator would. Called by sweep.c. It takes memory as a plain pointer and may not know its kind. */
#define _GNU_SOURCE
#include "bench.h"
#include <math.h>
#include <stdlib.h>

/* ---- Gaussian numbers: the ziggurat method, 256 layers ---- */
enum { LAYERS = 256 };
static double layer_x[LAYERS + 1], layer_y[LAYERS + 1];
static const double TAIL = 3.6541528853610088; /* where the base layer's rectangle ends */

static void ziggurat_build(void) {
  double area = TAIL * exp(-0.5 * TAIL * TAIL) + sqrt(acos(-1.0) / 2) * erfc(TAIL / sqrt(2));
  layer_x[0] = area / exp(-0.5 * TAIL * TAIL);
  layer_x[1] = TAIL;
  for (int i = 2; i < LAYERS; i++)
    layer_x[i] = sqrt(-2 * log(area / layer_x[i - 1] + exp(-0.5 * layer_x[i - 1] * layer_x[i - 1])));
  layer_x[LAYERS] = 0;
  for (int i = 0; i <= LAYERS; i++) layer_y[i] = exp(-0.5 * layer_x[i] * layer_x[i]);
}

static double uniform(generator *g) { return ((double)(generator_next(g) >> 11) + 0.5) * 0x1p-53; }

static double gaussian_rare(generator *g, unsigned layer, double x) {
  if (layer == 0) {
    double a, b;
    do {
      a = -log(uniform(g)) / TAIL;
      b = -log(uniform(g));
    } while (b + b < a * a);
    return x < 0 ? -(TAIL + a) : TAIL + a;
  }
  double y = layer_y[layer] + uniform(g) * (layer_y[layer + 1] - layer_y[layer]);
  return y < exp(-0.5 * x * x) ? x : NAN;
}

static inline double gaussian(generator *g) {
  for (;;) {
    uint64_t bits = generator_next(g);
    unsigned layer = (bits >> 3) & (LAYERS - 1); /* xoshiro256+ has weak lowest bits */
    double x = (double)((int64_t)bits >> 11) * 0x1p-52 * layer_x[layer];
    if (fabs(x) < layer_x[layer + 1]) return x;
    x = gaussian_rare(g, layer, x);
    if (!isnan(x)) return x;
  }
}

/* ---- the initial state, block by block ---- */
static double amplitude_scale;

static void fill_block(const options *o, size_t block, double *out) {
  if (o->random_state) {
    generator g = generator_of(block);
    for (size_t i = 0; i < 2 * BLOCK_AMPLITUDES; i++) out[i] = amplitude_scale * gaussian(&g);
    return;
  }
  for (size_t i = 0; i < BLOCK_AMPLITUDES; i++) {
    out[2 * i] = amplitude_scale;
    out[2 * i + 1] = 0;
  }
  size_t marked = o->bytes / 16 / 3; /* one amplitude with its phase flipped, as after an oracle */
  if (block == marked / BLOCK_AMPLITUDES) out[2 * (marked % BLOCK_AMPLITUDES)] = -amplitude_scale;
}

typedef struct { const options *o; double *state, *partial; unsigned qubit; } pass;

static void norm_part(void *shared, unsigned part, unsigned parts) {
  pass *p = shared;
  size_t blocks = p->o->bytes / BLOCK_BYTES;
  for (size_t b = part_begin(blocks, part, parts); b < part_begin(blocks, part + 1, parts); b++) {
    generator g = generator_of(b);
    double sum = 0;
    for (size_t i = 0; i < 2 * BLOCK_AMPLITUDES; i++) {
      double x = gaussian(&g);
      sum += x * x;
    }
    p->partial[b] = sum;
  }
}

void state_prepare(const options *o) {
  size_t blocks = o->bytes / BLOCK_BYTES;
  if (!o->random_state) {
    amplitude_scale = 1 / sqrt((double)(o->bytes / 16));
    return;
  }
  ziggurat_build();
  /* One partial sum per block, added in order: the norm is the same for any number of threads. */
  double *partial = malloc(blocks * sizeof *partial), sum = 0;
  if (!partial) fail("no memory for %zu partial sums", blocks);
  pass p = {o, NULL, partial, 0};
  parallel(o->threads, norm_part, &p);
  for (size_t b = 0; b < blocks; b++) sum += partial[b];
  free(partial);
  amplitude_scale = 1 / sqrt(sum);
}

static void fill_part(void *shared, unsigned part, unsigned parts) {
  pass *p = shared;
  size_t blocks = p->o->bytes / BLOCK_BYTES;
  for (size_t b = part_begin(blocks, part, parts); b < part_begin(blocks, part + 1, parts); b++)
    fill_block(p->o, b, p->state + b * 2 * BLOCK_AMPLITUDES);
}

void state_fill(const options *o, double *state) {
  pass p = {o, state, NULL, 0};
  parallel(o->threads, fill_part, &p);
}

/* ---- the gate ---- */
static inline void hadamard_run(double *restrict low, double *restrict high, size_t doubles) {
  const double s = 0.70710678118654752440;
  for (size_t i = 0; i < doubles; i++) {
    double a = low[i], b = high[i];
    low[i] = (a + b) * s;
    high[i] = (a - b) * s;
  }
}

/* Pair number k of qubit q is amplitudes i and i + 2^q, where i is k with a zero inserted at bit q. Consecutive pairs form runs. */
static void hadamard_part(void *shared, unsigned part, unsigned parts) {
  pass *p = shared;
  size_t pairs = p->o->bytes / 32, stride = (size_t)1 << p->qubit;
  size_t k = part_begin(pairs, part, parts), end = part_begin(pairs, part + 1, parts);
  if (stride == 1) { /* runs of one amplitude: the loop over pairs is the one to vectorise */
    for (; k < end; k++) hadamard_run(p->state + 4 * k, p->state + 4 * k + 2, 2);
    return;
  }
  while (k < end) {
    size_t offset = k & (stride - 1), run = stride - offset < end - k ? stride - offset : end - k;
    double *low = p->state + 2 * (((k - offset) << 1) + offset);
    hadamard_run(low, low + 2 * stride, 2 * run);
    k += run;
  }
}

void state_hadamard(const options *o, double *state, unsigned qubit) {
  pass p = {o, state, NULL, qubit};
  parallel(o->threads, hadamard_part, &p);
}

/* ---- checks ---- */
typedef struct {
  const options *o;
  const double *state;
  uint64_t sum[MAX_THREADS];
  double norm[MAX_THREADS], re[MAX_THREADS], im[MAX_THREADS];
} check;

/* Every bit and its place counts; sums of integers are the same in any order. */
static void check_part(void *shared, unsigned part, unsigned parts) {
  check *c = shared;
  size_t doubles = c->o->bytes / 8, end = part_begin(doubles / 8, part + 1, parts) * 8;
  const uint64_t *bits = (const uint64_t *)(const void *)c->state;
  uint64_t sum = 0;
  double norm[8] = {0};
  for (size_t i = part_begin(doubles / 8, part, parts) * 8; i < end; i += 8)
    for (size_t j = 0; j < 8; j++) {
      sum += mix(bits[i + j] ^ (i + j) * 0xd6e8feb86659fd93u);
      norm[j] += c->state[i + j] * c->state[i + j];
    }
  c->sum[part] = sum;
  for (size_t j = 0; j < 8; j++) c->norm[part] += norm[j];
}

state_digest state_check(const options *o, const double *state) {
  check c = {.o = o, .state = state};
  state_digest d = {0};
  parallel(o->threads, check_part, &c);
  for (unsigned i = 0; i < o->threads; i++) {
    d.checksum += c.sum[i];
    d.norm += c.norm[i];
  }
  return d;
}

static void overlap_part(void *shared, unsigned part, unsigned parts) {
  check *c = shared;
  double initial[2 * BLOCK_AMPLITUDES];
  size_t blocks = c->o->bytes / BLOCK_BYTES;
  for (size_t b = part_begin(blocks, part, parts); b < part_begin(blocks, part + 1, parts); b++) {
    const double *now = c->state + b * 2 * BLOCK_AMPLITUDES;
    fill_block(c->o, b, initial);
    for (size_t i = 0; i < 2 * BLOCK_AMPLITUDES; i += 2) {
      c->re[part] += initial[i] * now[i] + initial[i + 1] * now[i + 1];
      c->im[part] += initial[i] * now[i + 1] - initial[i + 1] * now[i];
      c->norm[part] += now[i] * now[i] + now[i + 1] * now[i + 1];
    }
  }
}

double state_fidelity(const options *o, const double *state) {
  check c = {.o = o, .state = state};
  double re = 0, im = 0, norm = 0;
  parallel(o->threads, overlap_part, &c);
  for (unsigned i = 0; i < o->threads; i++) {
    re += c.re[i];
    im += c.im[i];
    norm += c.norm[i];
  }
  return (re * re + im * im) / norm;
}
