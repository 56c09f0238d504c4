/* program.h: a circuit made ready to run: plans for its stretches of gates, with the measurements and resets between them. Called by the mains. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include "chunked.h"
#include "measure.h"

typedef struct {
  const item_t *collapse;   /* a measurement or reset, or NULL: */
  size_t first, end;        /* items of the circuit */
  plan_t plan;
} step_of_program_t;

typedef struct {
  const circuit_t *circuit;
  plan_options_t options;
  step_of_program_t *steps;
  size_t count, sweeps, gates, operations;
} program_t;

/* Items [0, end) of the circuit, which must outlive the program. False: out of memory. */
bool program_build(const circuit_t *circuit, size_t end, const plan_options_t *options, program_t *program);
void program_free(program_t *program);

/* Runs it on |0...0>; false with words in `error`, if the state is held by chunk: others have no way to fail. `bits` receives the outcomes of measurements. After every sweep `after` is called, unless NULL. */
typedef void (*after_sweep_fn)(void *user);
typedef struct {
  engine_t *engine;
  progress_t *progress;     /* NULL: none */
  random_t *random;
  unsigned char *bits;
  chunked_work_t *work;     /* what chunks took; NULL unless the state is held by chunk */
  after_sweep_fn after;
  void *user;
} run_t;
bool program_run(const program_t *program, state_t *state, const run_t *run, char *error, size_t cap);
#endif
