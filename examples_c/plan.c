/* plan.c: which gates share a sweep. Called by the mains through plan.h. A sweep gathers blocks of 2^14 amplitudes; a gate can take part
   if its targets are inside the block. Controls and diagonal gates need not be: outside the block they are constants. Knows no arithmetic. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

/* The sweep being filled. */
typedef struct {
  uint64_t inside;          /* qubits in the block */
  unsigned room;            /* qubits that can still be taken in */
  unsigned chunk_room;      /* of them, from CHUNK_QUBITS up */
  uint64_t allowed;         /* qubits that may be taken in */
  uint64_t mixed;           /* qubits on which a gate that waits is not diagonal: nothing may pass it there */
  uint64_t phased;          /* qubits on which a gate that waits is diagonal: only what is diagonal there may pass */
} filling_t;

static uint64_t bits(unsigned from, unsigned to) { return ((1ull << to) - 1) & ~((1ull << from) - 1); }

static unsigned smaller(unsigned a, unsigned b) { return a < b ? a : b; }

static uint64_t mixing_qubits(const item_t *item) {
  if (item->diagonal) return 0;
  uint64_t mask = 0;
  for (unsigned i = 0; i < item->targets; i++) mask |= 1ull << item->target[i];
  return mask;
}

static void start_filling(filling_t *filling, unsigned qubits, const plan_options_t *options) {
  memset(filling, 0, sizeof *filling);
  unsigned rows = smaller(qubits, ROW_QUBITS);
  filling->inside = bits(0, rows);
  filling->room = smaller(qubits, BLOCK_QUBITS) - rows;
  filling->mixed = ~bits(0, qubits); /* no such qubits: when all are mixed, nothing more can pass */
  filling->chunk_room = options->within ? BLOCK_QUBITS : options->partner_qubits ? options->partner_qubits : PARTNER_QUBITS;
  filling->allowed = options->within ? options->within : ~0ull;
}

static bool take_in(filling_t *filling, uint64_t wanted) {
  uint64_t more = wanted & ~filling->inside;
  unsigned all = (unsigned)__builtin_popcountll(more), high = (unsigned)__builtin_popcountll(more >> CHUNK_QUBITS);
  if ((more & ~filling->allowed) || all > filling->room || high > filling->chunk_room) return false;
  filling->inside |= more;
  filling->room -= all;
  filling->chunk_room -= high;
  return true;
}

/* Can the gate run in this sweep, before all that waits? */
static bool admit(filling_t *filling, const item_t *item) {
  uint64_t mixing = mixing_qubits(item), all = item_qubits(item);
  bool passes = !(all & filling->mixed) && !(mixing & filling->phased);
  if (passes && take_in(filling, mixing)) return true;
  filling->mixed |= mixing;
  filling->phased |= all & ~mixing;
  return false;
}

/* Fills the block up with the lowest qubits, which makes its rows longer, and lists what is in and out. */
static void settle_block(sweep_t *sweep, filling_t *filling, unsigned qubits) {
  for (unsigned q = 0; q < qubits && filling->room > 0; q++)
    if (!(filling->inside >> q & 1)) take_in(filling, 1ull << q);
  for (unsigned q = 0; q < qubits; q++)
    if (filling->inside >> q & 1)
      sweep->qubit[sweep->block_qubits++] = q;
    else
      sweep->outer[sweep->outer_count++] = q;
}

static bool add_sweep(plan_t *plan, const sweep_t *sweep, size_t *capacity) {
  if (plan->count == *capacity) {
    size_t wanted = *capacity ? 2 * *capacity : 16;
    sweep_t *grown = realloc(plan->sweeps, wanted * sizeof *grown);
    if (!grown) return false;
    plan->sweeps = grown;
    *capacity = wanted;
  }
  plan->sweeps[plan->count++] = *sweep;
  return true;
}

#define WINDOW 8192u /* gates looked at for one sweep: bounds planning time on long circuits */

/* The gates not yet in a sweep: list[first..count), in program order. */
typedef struct {
  const item_t **list, **taken, *kept[WINDOW];
  size_t first, count;
} queue_t;

/* Moves what this sweep takes to `taken`, keeps the rest in order. */
static size_t choose(filling_t *filling, queue_t *queue, size_t window) {
  size_t kept = 0, chosen = 0, end = queue->first;
  while (end < queue->count && end - queue->first < window && filling->mixed != ~0ull) {
    const item_t *item = queue->list[end++];
    if (admit(filling, item))
      queue->taken[chosen++] = item;
    else
      queue->kept[kept++] = item;
  }
  queue->first = end - kept;
  memcpy(queue->list + queue->first, queue->kept, kept * sizeof *queue->list);
  return chosen;
}

static bool fill_sweeps(plan_t *plan, queue_t *queue, unsigned qubits, const plan_options_t *options) {
  size_t capacity = 0;
  while (queue->first < queue->count) {
    filling_t filling;
    sweep_t sweep = {0};
    start_filling(&filling, qubits, options);
    sweep.gates = choose(&filling, queue, options->fuse ? WINDOW : 1);
    settle_block(&sweep, &filling, qubits);
    bool good = fuse_gates(&sweep, queue->taken, sweep.gates, options);
    if (!add_sweep(plan, &sweep, &capacity) || !good) return false;
    plan->operations += sweep.count;
  }
  return true;
}

bool plan_build(const circuit_t *circuit, size_t first, size_t end, unsigned qubits, const plan_options_t *options, plan_t *plan) {
  memset(plan, 0, sizeof *plan);
  plan->gates = end - first;
  queue_t *queue = calloc(1, sizeof *queue);
  bool good = queue != NULL;
  if (good) {
    queue->count = end - first;
    queue->list = malloc((queue->count + 1) * sizeof *queue->list);
    queue->taken = malloc(WINDOW * sizeof *queue->taken);
    good = queue->list && queue->taken;
    for (size_t i = 0; good && i < queue->count; i++) queue->list[i] = &circuit->items[first + i];
    good = good && fill_sweeps(plan, queue, qubits, options);
    free(queue->list);
    free(queue->taken);
  }
  free(queue);
  if (!good) plan_free(plan);
  return good;
}

void plan_free(plan_t *plan) {
  for (size_t i = 0; i < plan->count; i++) {
    for (size_t j = 0; j < plan->sweeps[i].count; j++) {
      operation_t *operation = &plan->sweeps[i].operations[j];
      free(operation->re);
      free(operation->im);
      free(operation->column);
      free(operation->identity);
      free(operation->row_index);
    }
    free(plan->sweeps[i].operations);
  }
  free(plan->sweeps);
  memset(plan, 0, sizeof *plan);
}
