/* engine.h: threads and their block buffers; runs one sweep, or any function over segments of a state, on all of them.
   Called by program.c, measure.c and compare.c. May not know gates' names nor where the state's memory comes from. */
#ifndef ENGINE_H
#define ENGINE_H
#include "plan.h"
#include "progress.h"
#include "state.h"

typedef struct engine engine_t;

/* NULL: out of memory or no threads to be had. `hints`: tell paged memory which chunks come next. */
engine_t *engine_create(unsigned threads, bool hints);
void engine_destroy(engine_t *engine);

/* The amplitudes that are at hand: those whose index has the bits of `first` outside of `within`. Amplitude i is at
   chunk[i >> chunk_qubits], at the place that the bits below say. */
typedef struct {
  double *const *chunk;
  unsigned chunk_qubits;
  uint64_t within, first;
  bool hints;               /* tell paged memory what comes next, if the engine does */
} view_t;

/* Each of them once; a thread visits its chunks, with their partners, in one ascending run. Blocks must lie within the view. */
void engine_sweep(engine_t *engine, const view_t *view, const sweep_t *sweep, progress_t *progress);
/* All of a state that is one piece of memory. */
view_t engine_view(state_t *state);

/* |0...0> */
void engine_reset(engine_t *engine, state_t *state);

/* Calls `fn` for each segment of the state; segments are fixed by the state's size, so sums over them do not depend on threads. */
#define SEGMENT_QUBITS 16u
typedef void (*segment_fn)(size_t segment, uint64_t first, size_t amplitudes, void *user);
void engine_segments(engine_t *engine, const state_t *state, segment_fn fn, void *user);
size_t engine_segment_count(const state_t *state);
#endif
