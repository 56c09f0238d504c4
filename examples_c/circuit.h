/* circuit.h: a quantum circuit as data: gates, measurements and resets in program order, and the registers' names.
   Filled by qasm_parse.c through gates.c, read by plan.c and the mains. Knows neither OpenQASM's text nor the state. */
#ifndef CIRCUIT_H
#define CIRCUIT_H
#include <complex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CIRCUIT_MAX_QUBITS 48u
#define CIRCUIT_MAX_BITS 4096u
#define CIRCUIT_MAX_ITEMS (4u << 20)
#define GATE_MAX_QUBITS 5u
#define GATE_MAX_PARAMS 4u

typedef enum { ITEM_GATE, ITEM_MEASURE, ITEM_RESET } item_kind_t;

/* A gate is a 2x2 or 4x4 matrix on its targets, applied where every control qubit is 1. */
typedef struct {
  item_kind_t kind;
  uint8_t targets;          /* 1 or 2; 1 for measure and reset */
  uint8_t target[2];        /* matrix index bit 0 is target[0] */
  bool diagonal;            /* the matrix is: then targets and controls play the same part */
  bool deferred;            /* a measurement that circuit_defer_measurements moved to the end */
  uint32_t bit;             /* measure: the classical bit */
  uint64_t controls;        /* mask of qubits */
  double complex matrix[16];
} item_t;

typedef struct {
  char name[64];
  uint32_t first, size;
} circuit_register_t;

typedef struct {
  item_t *items;
  size_t count, capacity;
  circuit_register_t *qregs, *cregs;
  size_t num_qregs, num_cregs;
  uint32_t num_qubits, num_bits;
} circuit_t;

void circuit_free(circuit_t *circuit);
uint64_t item_qubits(const item_t *item);
/* False when the circuit is too long or memory ran out. */
bool circuit_add(circuit_t *circuit, const item_t *item);
/* Moves measurements of qubits that nothing touches afterwards to the end, which changes no outcome, and says where they begin. */
size_t circuit_defer_measurements(circuit_t *circuit);
/* Any measurement or reset before `end`? Then every shot is a run of its own. */
bool circuit_collapses(const circuit_t *circuit, size_t end);

/* A gate that is built in: U, CX and those of qelib1.inc that need no definition in terms of others. */
typedef struct {
  const char *name;
  uint8_t params, controls, targets;
  int shape;
} builtin_t;
const builtin_t *builtin_find(const char *name);
/* The item for `builtin` on qubits (controls first, then targets, as OpenQASM writes them). */
void builtin_make(const builtin_t *builtin, const double *params, const uint32_t *qubits, item_t *item);
/* OpenQASM text of the gates of qelib1.inc that are not built in. */
extern const char gates_prelude[];
#endif
