/* state.h: the state vector's memory: plain huge pages, or paged by qmem within a budget. Called by the mains; read by the engine. */
#ifndef STATE_H
#define STATE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  bool paged;               /* qmem rather than plain */
  size_t budget;            /* bytes resident at most, paged only; 0: qmem's default */
  bool chunked;             /* by qmem_state_*, paged only */
  double tolerance;         /* relative error that lossy compression may leave; 0: lossless */
  double error_budget;      /* by chunk: infidelity that it may cost in all; 0: lossless */
} memory_options_t;

typedef struct {
  double *amplitude;        /* re, im, re, im ... */
  struct qmem_state_t *chunks; /* NULL unless it is held by chunk; then `amplitude` is its logical order, between gates */
  unsigned qubits, padded;  /* of the circuit, and of the memory */
  size_t bytes;
  bool paged;
  bool zero;                /* as the memory came: nothing to clear */
} state_t;

/* Starts qmem where the options ask for it. False with words in `error`. */
bool memory_open(const memory_options_t *options, char *error, size_t cap);
void memory_close(const memory_options_t *options);

/* Memory for the state, not yet set: engine_reset does that. False with words in `error`. */
bool state_create(state_t *state, unsigned qubits, const memory_options_t *options, char *error, size_t cap);
void state_destroy(state_t *state);
/* Raw complex128, least significant qubit fastest. */
bool state_dump(const state_t *state, const char *path, char *error, size_t cap);
/* Threads that the budget has room for: each holds a group of partner chunks. */
unsigned state_threads(unsigned wanted, const memory_options_t *options, unsigned partner_qubits);
/* "256M" and the like. False: not a size. */
bool parse_bytes(const char *text, size_t *bytes);
/* "1.50 GiB"; four results stay valid at a time. */
const char *bytes_text(double bytes);
#endif
