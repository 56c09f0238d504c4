/* chunked.h: runs gates on a state that qmem holds by chunk (qmem_state_*): as many gates as can go share a visit of the state, in groups of
   chunks that stay in memory for all of them; qubits trade places where a gate fits into no group. Called by program.c; knows nothing of
   memory but chunks. */
#ifndef CHUNKED_H
#define CHUNKED_H
#include "engine.h"
#include "plan.h"

#include <qmem.h>

/* What it took. */
typedef struct {
  size_t visits;            /* of all chunks, for gates */
  size_t sweeps;            /* over what is in memory, in all visits together */
  size_t swaps;             /* qubits that traded places, and so moved data */
} chunked_work_t;

typedef struct {
  const plan_options_t *plan;
  engine_t *engine;
  progress_t *progress;     /* NULL: none */
} chunked_options_t;

/* Items [first, end), gates all of them; the state is in logical order before and after. False with words in `error`. */
bool chunked_run(const circuit_t *circuit, size_t first, size_t end, const chunked_options_t *options, qmem_state_t *state, unsigned qubits,
                 chunked_work_t *work, char *error, size_t cap);
#endif
