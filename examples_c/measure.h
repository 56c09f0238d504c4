/* measure.h: what is read off a state: norms, probabilities, collapse, samples, and how two states compare. Called by program.c and the mains.
   Every sum is made of fixed segments added in order, so that it does not depend on the number of threads. */
#ifndef MEASURE_H
#define MEASURE_H
#include "engine.h"

/* A small generator: the same seed gives the same outcomes everywhere. */
typedef struct {
  uint64_t state;
} random_t;
double random_unit(random_t *random); /* [0, 1) */

double measure_norm(engine_t *engine, const state_t *state); /* sum of |amplitude|^2 */
/* Draws the qubit's value and projects the state onto it. */
bool measure_qubit(engine_t *engine, state_t *state, unsigned qubit, random_t *random);
/* The qubit is measured and set to 0. */
void measure_reset(engine_t *engine, state_t *state, unsigned qubit, random_t *random);
/* Indices of `shots` basis states, drawn independently. False: out of memory. */
bool measure_sample(engine_t *engine, const state_t *state, size_t shots, random_t *random, uint64_t *index);

typedef struct {
  uint64_t index;
  double probability;
} outcome_t;
/* The most probable basis states, most probable first; returns how many (only those above 0). */
size_t measure_top(const state_t *state, outcome_t *top, size_t most);

typedef struct {
  bool identical;           /* bit by bit */
  uint64_t first_different; /* amplitude */
  double fidelity;          /* |<a|b>|^2 over both norms */
} comparison_t;
/* False: out of memory. */
bool measure_compare(engine_t *engine, const state_t *a, const state_t *b, comparison_t *comparison);
#endif
