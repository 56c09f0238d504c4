/* chunked.c: see chunked.h. A visit takes every gate that may go first and whose targets are inside a chunk: controls and diagonal gates
   need not be, for in one chunk those qubits are constants. What stops everything else is a gate on a qubit outside: if more such gates
   follow, the qubit trades places with the one inside that is needed last; if not, the gate is done on pairs of chunks, in the same visit. */
#include "chunked.h"
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW 8192u /* gates looked at for one visit */

typedef struct {
  const item_t **gate;      /* not yet done, in program order */
  size_t count;
  unsigned qubits, local;
  unsigned bit[CIRCUIT_MAX_QUBITS]; /* of the physical index, by qubit */
  qmem_state_t *state;
  const plan_options_t *options;
  chunked_work_t *work;
} job_t;

/* What is done to each chunk. */
typedef struct {
  const item_t *pair;       /* a gate on a qubit outside, in physical bits; NULL: none */
  plan_t plan;
} visit_t;

static uint64_t mixing_qubits(const item_t *item) {
  uint64_t mask = 0;
  for (unsigned i = 0; i < item->targets && !item->diagonal; i++) mask |= 1ull << item->target[i];
  return mask;
}

static uint64_t inside(const job_t *job) {
  uint64_t mask = 0;
  for (unsigned q = 0; q < job->qubits; q++)
    if (job->bit[q] < job->local) mask |= 1ull << q;
  return mask;
}

/* The same gate in terms of physical bits. */
static item_t physical(const job_t *job, const item_t *item) {
  item_t moved = *item;
  moved.controls = 0;
  for (unsigned q = 0; q < job->qubits; q++)
    if (item->controls >> q & 1) moved.controls |= 1ull << job->bit[q];
  for (unsigned i = 0; i < item->targets; i++) moved.target[i] = (uint8_t)job->bit[item->target[i]];
  return moved;
}

/* Takes what can go first with targets inside a chunk; the rest keeps its order. False: out of memory. */
static bool take_gates(job_t *job, circuit_t *taken) {
  uint64_t mixed = 0, phased = 0, within = inside(job);
  size_t kept = 0, seen = 0;
  for (; seen < job->count && seen < WINDOW; seen++) {
    const item_t *item = job->gate[seen];
    uint64_t mixing = mixing_qubits(item), all = item_qubits(item);
    if (!(mixing & ~within) && !(all & mixed) && !(mixing & phased)) {
      item_t moved = physical(job, item);
      if (!circuit_add(taken, &moved)) return false;
      continue;
    }
    mixed |= mixing;
    phased |= all & ~mixing;
    job->gate[kept++] = item;
  }
  memmove(job->gate + kept, job->gate + seen, (job->count - seen) * sizeof *job->gate);
  job->count -= seen - kept;
  return true;
}

/* ---- a visit ---- */

static void apply_plan(const plan_t *plan, double *amplitude, uint64_t first, size_t amplitudes, double *re, double *im) {
  for (size_t s = 0; s < plan->count; s++) {
    const sweep_t *sweep = &plan->sweeps[s];
    for (size_t block = 0; block < amplitudes >> sweep->block_qubits; block++) {
      uint64_t base = engine_block_start(sweep, block); /* the outer qubits inside a chunk come first, so it is less than `amplitudes` */
      engine_block(sweep, amplitude, base, first | base, re, im);
    }
  }
}

/* One gate on the qubit that tells a from b: no blocks, a product per amplitude. */
static void apply_pair(const item_t *gate, const qmem_chunk_t *chunk) {
  double *a = chunk->a, *b = chunk->b;
  const double complex *m = gate->matrix;
  const double re[4] = {creal(m[0]), creal(m[1]), creal(m[2]), creal(m[3])}, im[4] = {cimag(m[0]), cimag(m[1]), cimag(m[2]), cimag(m[3])};
  for (size_t i = 0; i < chunk->amplitudes; i++) {
    if (((chunk->first_a + i) & gate->controls) != gate->controls) continue;
    const double ar = a[2 * i], ai = a[2 * i + 1], br = b[2 * i], bi = b[2 * i + 1];
    a[2 * i] = re[0] * ar - im[0] * ai + re[1] * br - im[1] * bi;
    a[2 * i + 1] = re[0] * ai + im[0] * ar + re[1] * bi + im[1] * br;
    b[2 * i] = re[2] * ar - im[2] * ai + re[3] * br - im[3] * bi;
    b[2 * i + 1] = re[2] * ai + im[2] * ar + re[3] * bi + im[3] * br;
  }
}

static memory_status_t visit_chunk(const qmem_chunk_t *chunk, void *user) {
  const visit_t *visit = user;
  const size_t half = sizeof(double) << BLOCK_QUBITS;
  double *re = aligned_alloc(64, 2 * half), *im = re ? re + (half / sizeof *re) : NULL;
  if (!re) return MEMORY_STATUS_OUT_OF_MEMORY;
  if (visit->pair) apply_pair(visit->pair, chunk);
  apply_plan(&visit->plan, chunk->a, chunk->first_a, chunk->amplitudes, re, im);
  if (chunk->b) apply_plan(&visit->plan, chunk->b, chunk->first_b, chunk->amplitudes, re, im);
  free(re);
  return MEMORY_STATUS_OK;
}

/* Does `first` (NULL: none) on pairs, and then whatever can follow inside of chunks. */
static memory_status_t visit(job_t *job, const item_t *first) {
  item_t pair;
  visit_t visit = {0};
  circuit_t taken = {.num_qubits = job->qubits};
  memory_status_t status = MEMORY_STATUS_OK;
  if (first) pair = physical(job, first), visit.pair = &pair;
  plan_options_t options = *job->options;
  options.inside_chunks = true;
  if (!take_gates(job, &taken) || !plan_build(&taken, 0, taken.count, job->qubits, &options, &visit.plan)) status = MEMORY_STATUS_OUT_OF_MEMORY;
  if (status == MEMORY_STATUS_OK && (first || taken.count > 0)) {
    status = first ? qmem_state_for_each_pair(job->state, first->target[0], visit_chunk, &visit)
                   : qmem_state_for_each(job->state, visit_chunk, &visit);
    job->work->visits++;
  }
  plan_free(&visit.plan);
  circuit_free(&taken);
  return status;
}

/* ---- qubits that trade places ---- */

/* Position in the list of the next gate that mixes the qubit; the list's length if none does. */
static size_t next_use(const job_t *job, unsigned qubit, size_t from) {
  while (from < job->count && !(mixing_qubits(job->gate[from]) >> qubit & 1)) from++;
  return from;
}

/* The qubit inside a chunk that is needed last, and not by the first gate. */
static unsigned idlest(const job_t *job) {
  unsigned best = 0;
  size_t latest = 0;
  for (unsigned q = 0; q < job->qubits; q++) {
    size_t use = job->bit[q] < job->local && !(mixing_qubits(job->gate[0]) >> q & 1) ? next_use(job, q, 0) : 0;
    if (use > latest) best = q, latest = use;
  }
  return best;
}

/* The first gate left mixes a qubit outside: it is done on pairs if nothing else wants that qubit, else the qubit comes inside. */
static memory_status_t make_way(job_t *job) {
  const item_t *gate = job->gate[0];
  uint64_t outside = mixing_qubits(gate) & ~inside(job);
  unsigned qubit = (unsigned)__builtin_ctzll(outside);
  if (gate->targets == 1 && next_use(job, qubit, 1) == job->count) {
    memmove(job->gate, job->gate + 1, --job->count * sizeof *job->gate);
    return visit(job, gate);
  }
  unsigned idle = idlest(job), bit = job->bit[qubit];
  memory_status_t status = qmem_state_swap_qubits(job->state, qubit, idle);
  job->bit[qubit] = job->bit[idle];
  job->bit[idle] = bit;
  job->work->swaps++;
  return status;
}

bool chunked_run(const circuit_t *circuit, size_t first, size_t end, const plan_options_t *options, qmem_state_t *state, unsigned qubits,
                 chunked_work_t *work, char *error, size_t cap) {
  job_t job = {.count = end - first, .qubits = qubits, .local = qmem_state_local_qubits(state), .state = state, .options = options, .work = work};
  memory_status_t status = MEMORY_STATUS_OK;
  void *data;
  job.gate = malloc((job.count + 1) * sizeof *job.gate);
  for (size_t i = 0; job.gate && i < job.count; i++) job.gate[i] = &circuit->items[first + i];
  for (unsigned q = 0; q < qubits; q++) job.bit[q] = q;
  if (!job.gate) status = MEMORY_STATUS_OUT_OF_MEMORY;
  while (status == MEMORY_STATUS_OK && job.count > 0) {
    status = visit(&job, NULL);
    /* Whatever is left waits for the first of it, which mixes a qubit outside. */
    if (status == MEMORY_STATUS_OK && job.count > 0 && (mixing_qubits(job.gate[0]) & ~inside(&job))) status = make_way(&job);
  }
  free(job.gate);
  if (status == MEMORY_STATUS_OK) status = qmem_state_data(state, &data);
  if (status == MEMORY_STATUS_OK) return true;
  char words[512] = "";
  qmem_last_error(words, sizeof words);
  snprintf(error, cap, "gates by chunk: %s%s%s", qmem_status_string(status), words[0] ? ": " : "", words);
  return false;
}
