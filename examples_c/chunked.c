/* chunked.c: see chunked.h. A visit brings groups of chunks into memory that differ in a few qubits outside of chunks, and takes every gate that
   may go first and whose targets are inside a group: controls and diagonal gates need not be, for in one group those qubits are constants.
   Which qubits a group spreads over is chosen anew for each visit, by how many gates it lets go. A gate that fits into no group waits until
   one of its qubits has traded places with the qubit inside a chunk that is needed last. */
#include "chunked.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW 8192u /* gates looked at for one visit */
#define CANDIDATES GROUP_MAX_QUBITS /* qubits outside of chunks that are looked at for one visit: at most 12870 ways to choose some of them */

typedef struct {
  const item_t **gate;      /* not yet done, in program order */
  size_t count;
  unsigned qubits, local;
  unsigned bit[CIRCUIT_MAX_QUBITS]; /* of the physical index, by qubit */
  double **chunk;           /* by number, as far as it is in memory */
  qmem_state_t *state;
  engine_t *engine;
  progress_t *progress;
  const plan_options_t *options;
  chunked_work_t *work;
} job_t;

static uint64_t mixing_qubits(const item_t *item) {
  uint64_t mask = 0;
  for (unsigned i = 0; i < item->targets && !item->diagonal; i++) mask |= 1ull << item->target[i];
  return mask;
}

/* Qubits inside of chunks. */
static uint64_t inside(const job_t *job) {
  uint64_t mask = 0;
  for (unsigned q = 0; q < job->qubits; q++)
    if (job->bit[q] < job->local) mask |= 1ull << q;
  return mask;
}

static uint64_t physical_mask(const job_t *job, uint64_t qubits) {
  uint64_t mask = 0;
  for (unsigned q = 0; q < job->qubits; q++) mask |= (qubits >> q & 1) << job->bit[q];
  return mask;
}

/* The same gate in terms of physical bits. */
static item_t physical(const job_t *job, const item_t *item) {
  item_t moved = *item;
  moved.controls = physical_mask(job, item->controls);
  for (unsigned i = 0; i < item->targets; i++) moved.target[i] = (uint8_t)job->bit[item->target[i]];
  return moved;
}

/* ---- which gates go together ---- */

/* What waits, and so may not be passed. */
typedef struct {
  uint64_t mixed;           /* qubits on which a gate that waits is not diagonal: nothing passes */
  uint64_t phased;          /* on which it is: only what is diagonal there too */
} waiting_t;

static bool passes(waiting_t *waiting, const item_t *item, uint64_t within) {
  uint64_t mixing = mixing_qubits(item), all = item_qubits(item);
  if (!(mixing & ~within) && !(all & waiting->mixed) && !(mixing & waiting->phased)) return true;
  waiting->mixed |= mixing;
  waiting->phased |= all & ~mixing;
  return false;
}

static uint64_t all_qubits(const job_t *job) { return (1ull << job->qubits) - 1; }

/* Gates that could go if these qubits were in memory. */
static size_t gates_within(const job_t *job, uint64_t within) {
  waiting_t waiting = {0};
  size_t count = 0;
  for (size_t i = 0; i < job->count && i < WINDOW && waiting.mixed != all_qubits(job); i++) count += passes(&waiting, job->gate[i], within);
  return count;
}

/* Takes them, in physical bits; the rest keeps its order. False: out of memory. */
static bool take_gates(job_t *job, uint64_t within, circuit_t *taken) {
  waiting_t waiting = {0};
  size_t kept = 0, seen = 0;
  for (; seen < job->count && seen < WINDOW && waiting.mixed != all_qubits(job); seen++) {
    item_t moved = physical(job, job->gate[seen]);
    if (!passes(&waiting, job->gate[seen], within))
      job->gate[kept++] = job->gate[seen];
    else if (!circuit_add(taken, &moved))
      return false;
  }
  memmove(job->gate + kept, job->gate + seen, (job->count - seen) * sizeof *job->gate);
  job->count -= seen - kept;
  return true;
}

/* Position in the list of the next gate that mixes the qubit; the list's length if none does. */
static size_t next_use(const job_t *job, unsigned qubit) {
  size_t at = 0;
  while (at < job->count && !(mixing_qubits(job->gate[at]) >> qubit & 1)) at++;
  return at;
}

/* The qubits outside of chunks that are needed soonest. */
static unsigned candidates(const job_t *job, unsigned *qubit) {
  size_t use[CANDIDATES];
  unsigned count = 0;
  for (unsigned q = 0; q < job->qubits; q++) {
    if (job->bit[q] < job->local) continue;
    size_t mine = next_use(job, q);
    unsigned at = count;
    for (; at > 0 && use[at - 1] > mine; at--)
      if (at < CANDIDATES) use[at] = use[at - 1], qubit[at] = qubit[at - 1];
    if (at < CANDIDATES) use[at] = mine, qubit[at] = q;
    if (count < CANDIDATES) count++;
  }
  return count;
}

/* The `count` qubits outside of chunks that let most gates go. */
static uint64_t best_group(const job_t *job, unsigned count, size_t *gates) {
  unsigned qubit[CANDIDATES], all = candidates(job, qubit);
  const uint64_t local = inside(job);
  uint64_t best = 0;
  if (count > all) count = all;
  *gates = 0;
  /* every choice of `count` out of `all`, as bits: from one to the next by Gosper's method */
  for (uint64_t choice = (1ull << count) - 1; choice < 1ull << all;) {
    uint64_t group = 0;
    for (unsigned i = 0; i < all; i++) group |= (choice >> i & 1) << qubit[i];
    size_t go = gates_within(job, local | group);
    if (go > *gates) best = group, *gates = go;
    if (choice == 0) break;
    uint64_t lowest = choice & -choice, ripple = choice + lowest;
    choice = (((ripple ^ choice) >> 2) / lowest) | ripple;
  }
  return best;
}

/* ---- a visit ---- */

typedef struct {
  job_t *job;
  plan_t plan;
  view_t view;
  size_t groups, done;
} visit_t;

static memory_status_t visit_group(const qmem_group_t *group, void *user) {
  visit_t *visit = user;
  const job_t *job = visit->job;
  for (size_t i = 0; i < group->count; i++) job->chunk[group->first[i] >> job->local] = group->chunk[i];
  visit->view.first = group->first[0];
  for (size_t s = 0; s < visit->plan.count; s++) engine_sweep(job->engine, &visit->view, &visit->plan.sweeps[s], NULL);
  if (job->progress) progress_show(job->progress, (double)++visit->done / (double)visit->groups);
  return MEMORY_STATUS_OK;
}

/* All gates that can go with `group` in memory. */
static memory_status_t visit(job_t *job, uint64_t group) {
  visit_t visit = {.job = job, .view = {.chunk = job->chunk, .chunk_qubits = job->local}};
  circuit_t taken = {.num_qubits = job->qubits};
  plan_options_t options = *job->options;
  memory_status_t status = MEMORY_STATUS_OUT_OF_MEMORY;
  uint32_t qubits[CANDIDATES];
  size_t count = 0;
  for (unsigned q = 0; q < job->qubits; q++)
    if (group >> q & 1) qubits[count++] = q;
  options.within = visit.view.within = physical_mask(job, inside(job) | group);
  visit.groups = (size_t)1 << (job->qubits - job->local - count);
  if (take_gates(job, inside(job) | group, &taken) && plan_build(&taken, 0, taken.count, job->qubits, &options, &visit.plan)) {
    if (job->progress) progress_sweep_begin(job->progress, taken.count);
    status = qmem_state_for_each_group(job->state, qubits, count, visit_group, &visit);
    if (job->progress) progress_sweep_done(job->progress, taken.count);
    job->work->visits++;
    job->work->sweeps += visit.plan.count;
  }
  plan_free(&visit.plan);
  circuit_free(&taken);
  return status;
}

/* The qubit inside of chunks that is needed last, and not by the first gate. */
static unsigned idlest(const job_t *job) {
  unsigned best = 0;
  size_t latest = 0;
  for (unsigned q = 0; q < job->qubits; q++) {
    size_t use = job->bit[q] < job->local && !(mixing_qubits(job->gate[0]) >> q & 1) ? next_use(job, q) : 0;
    if (use > latest) best = q, latest = use;
  }
  return best;
}

/* The first gate fits into no group: one of its qubits comes inside. */
static memory_status_t make_way(job_t *job) {
  unsigned qubit = (unsigned)__builtin_ctzll(mixing_qubits(job->gate[0]) & ~inside(job)), idle = idlest(job), bit = job->bit[qubit];
  memory_status_t status = qmem_state_swap_qubits(job->state, qubit, idle);
  job->bit[qubit] = job->bit[idle];
  job->bit[idle] = bit;
  job->work->swaps++;
  return status;
}

static memory_status_t run(job_t *job) {
  memory_status_t status = MEMORY_STATUS_OK;
  while (status == MEMORY_STATUS_OK && job->count > 0) {
    size_t gates;
    unsigned room = qmem_state_group_qubits(job->state), most = job->options->group_qubits; /* the budget may have changed */
    uint64_t group = best_group(job, room < most ? room : most, &gates);
    status = gates > 0 ? visit(job, group) : make_way(job);
  }
  return status;
}

bool chunked_run(const circuit_t *circuit, size_t first, size_t end, const chunked_options_t *options, qmem_state_t *state, unsigned qubits,
                 chunked_work_t *work, char *error, size_t cap) {
  job_t job = {.count = end - first, .qubits = qubits, .local = qmem_state_local_qubits(state), .state = state, .engine = options->engine,
               .progress = options->progress, .options = options->plan, .work = work};
  memory_status_t status = MEMORY_STATUS_OUT_OF_MEMORY;
  void *data;
  job.gate = malloc((job.count + 1) * sizeof *job.gate);
  job.chunk = calloc((size_t)1 << (qubits - job.local), sizeof *job.chunk);
  for (size_t i = 0; job.gate && i < job.count; i++) job.gate[i] = &circuit->items[first + i];
  for (unsigned q = 0; q < qubits; q++) job.bit[q] = q;
  if (job.gate && job.chunk) status = run(&job);
  free(job.gate);
  free(job.chunk);
  if (status == MEMORY_STATUS_OK) status = qmem_state_data(state, &data);
  if (status == MEMORY_STATUS_OK) return true;
  char words[512] = "";
  qmem_last_error(words, sizeof words);
  snprintf(error, cap, "gates by chunk: %s%s%s", qmem_status_string(status), words[0] ? ": " : "", words);
  return false;
}
