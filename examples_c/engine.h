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

/* Every amplitude once; a thread visits its chunks, with their partners, in one ascending run. */
void engine_sweep(engine_t *engine, state_t *state, const sweep_t *sweep, progress_t *progress);

/* One block of a sweep: where its amplitudes begin, for blocks in the order of the qubits outside of them; and the sweep's operations on
   it. `base` counts from `amplitude`; `index` is the same in the whole state. `re` and `im` have room for a block each. */
uint64_t engine_block_start(const sweep_t *sweep, size_t block);
void engine_block(const sweep_t *sweep, double *amplitude, uint64_t base, uint64_t index, double *re, double *im);

/* |0...0> */
void engine_reset(engine_t *engine, state_t *state);

/* Calls `fn` for each segment of the state; segments are fixed by the state's size, so sums over them do not depend on threads. */
#define SEGMENT_QUBITS 16u
typedef void (*segment_fn)(size_t segment, uint64_t first, size_t amplitudes, void *user);
void engine_segments(engine_t *engine, const state_t *state, segment_fn fn, void *user);
size_t engine_segment_count(const state_t *state);
#endif
