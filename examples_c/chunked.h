/* chunked.h: runs gates on a state that qmem holds by chunk (qmem_state_*): as many gates as can go share a visit of a chunk, and qubits
   trade places so that those that are busy lie inside. Called by program.c; knows nothing of memory but chunks. */
#ifndef CHUNKED_H
#define CHUNKED_H
#include "plan.h"

#include <qmem.h>

/* What it took. */
typedef struct {
  size_t visits;            /* of all chunks, for gates; with pairs: of those too */
  size_t swaps;             /* qubits that traded places, and so moved data */
} chunked_work_t;

/* Items [first, end), gates all of them; the state is in logical order before and after. False with words in `error`. */
bool chunked_run(const circuit_t *circuit, size_t first, size_t end, const plan_options_t *options, qmem_state_t *state, unsigned qubits,
                 chunked_work_t *work, char *error, size_t cap);
#endif
