/* program.c: see program.h. */
#include "program.h"

#include <stdlib.h>
#include <string.h>

static bool add_gates(const circuit_t *circuit, size_t first, size_t end, const plan_options_t *options, program_t *program) {
  unsigned qubits = circuit->num_qubits < STATE_MIN_QUBITS ? STATE_MIN_QUBITS : circuit->num_qubits;
  step_of_program_t *step = &program->steps[program->count++];
  step->first = first;
  step->end = end;
  plan_t *plan = &step->plan;
  if (!plan_build(circuit, first, end, qubits, options, plan)) return false;
  program->sweeps += plan->count;
  program->gates += plan->gates;
  program->operations += plan->operations;
  return true;
}

bool program_build(const circuit_t *circuit, size_t end, const plan_options_t *options, program_t *program) {
  memset(program, 0, sizeof *program);
  program->circuit = circuit;
  program->options = *options;
  size_t collapses = 0, first = 0;
  for (size_t i = 0; i < end; i++) collapses += circuit->items[i].kind != ITEM_GATE;
  program->steps = calloc(2 * collapses + 1, sizeof *program->steps);
  bool good = program->steps != NULL;
  for (size_t i = 0; good && i < end; i++) {
    if (circuit->items[i].kind == ITEM_GATE) continue;
    if (i > first) good = add_gates(circuit, first, i, options, program);
    program->steps[program->count++].collapse = &circuit->items[i];
    first = i + 1;
  }
  if (good && end > first) good = add_gates(circuit, first, end, options, program);
  if (!good) program_free(program);
  return good;
}

void program_free(program_t *program) {
  for (size_t i = 0; i < program->count; i++) plan_free(&program->steps[i].plan);
  free(program->steps);
  memset(program, 0, sizeof *program);
}

bool program_run(const program_t *program, state_t *state, const run_t *run, char *error, size_t cap) {
  engine_reset(run->engine, state);
  const view_t view = engine_view(state);
  const chunked_options_t chunked = {.plan = &program->options, .engine = run->engine, .progress = run->progress};
  for (size_t i = 0; i < program->count; i++) {
    const step_of_program_t *step = &program->steps[i];
    const item_t *collapse = step->collapse;
    if (collapse && collapse->kind == ITEM_MEASURE)
      run->bits[collapse->bit] = measure_qubit(run->engine, state, collapse->target[0], run->random);
    else if (collapse)
      measure_reset(run->engine, state, collapse->target[0], run->random);
    if (state->chunks && step->end > step->first) {
      bool good = chunked_run(program->circuit, step->first, step->end, &chunked, state->chunks, state->padded, run->work, error, cap);
      if (!good) return false;
      continue;
    }
    for (size_t s = 0; s < step->plan.count; s++) {
      engine_sweep(run->engine, &view, &step->plan.sweeps[s], run->progress);
      if (run->progress) progress_sweep_done(run->progress, step->plan.sweeps[s].gates);
      if (run->after) run->after(run->user);
    }
  }
  return true;
}
