/* gates.c: the matrices of OpenQASM 2's U, CX and qelib1.inc, up to global phase; and the list that holds a circuit.
   Called by qasm_parse.c and the mains. May not know a gate's position in a file nor the state. */
#include "circuit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { SHAPE_ID, SHAPE_X, SHAPE_Y, SHAPE_Z, SHAPE_H, SHAPE_SX, SHAPE_SXDG, SHAPE_PHASE, SHAPE_S, SHAPE_SDG, SHAPE_T,
               SHAPE_TDG, SHAPE_RX, SHAPE_RY, SHAPE_RZ, SHAPE_U2, SHAPE_U3, SHAPE_CU, SHAPE_SWAP, SHAPE_RXX, SHAPE_RZZ } shape_t;

static const double PI = 3.14159265358979323846;

static const builtin_t builtins[] = {
    {"U", 3, 0, 1, SHAPE_U3},     {"CX", 0, 1, 1, SHAPE_X},       {"u3", 3, 0, 1, SHAPE_U3},   {"u2", 2, 0, 1, SHAPE_U2},
    {"u1", 1, 0, 1, SHAPE_PHASE}, {"cx", 0, 1, 1, SHAPE_X},       {"id", 0, 0, 1, SHAPE_ID},   {"u0", 1, 0, 1, SHAPE_ID},
    {"u", 3, 0, 1, SHAPE_U3},     {"p", 1, 0, 1, SHAPE_PHASE},    {"x", 0, 0, 1, SHAPE_X},     {"y", 0, 0, 1, SHAPE_Y},
    {"z", 0, 0, 1, SHAPE_Z},      {"h", 0, 0, 1, SHAPE_H},        {"s", 0, 0, 1, SHAPE_S},     {"sdg", 0, 0, 1, SHAPE_SDG},
    {"t", 0, 0, 1, SHAPE_T},      {"tdg", 0, 0, 1, SHAPE_TDG},    {"rx", 1, 0, 1, SHAPE_RX},   {"ry", 1, 0, 1, SHAPE_RY},
    {"rz", 1, 0, 1, SHAPE_RZ},    {"sx", 0, 0, 1, SHAPE_SX},      {"sxdg", 0, 0, 1, SHAPE_SXDG}, {"cz", 0, 1, 1, SHAPE_Z},
    {"cy", 0, 1, 1, SHAPE_Y},     {"swap", 0, 0, 2, SHAPE_SWAP},  {"ch", 0, 1, 1, SHAPE_H},    {"ccx", 0, 2, 1, SHAPE_X},
    {"cswap", 0, 1, 2, SHAPE_SWAP}, {"crx", 1, 1, 1, SHAPE_RX},   {"cry", 1, 1, 1, SHAPE_RY},  {"crz", 1, 1, 1, SHAPE_RZ},
    {"cu1", 1, 1, 1, SHAPE_PHASE}, {"cp", 1, 1, 1, SHAPE_PHASE},  {"cu3", 3, 1, 1, SHAPE_U3},  {"cu", 4, 1, 1, SHAPE_CU},
    {"csx", 0, 1, 1, SHAPE_SX},   {"rxx", 1, 0, 2, SHAPE_RXX},    {"rzz", 1, 0, 2, SHAPE_RZZ}, {"c3x", 0, 3, 1, SHAPE_X},
    {"c3sqrtx", 0, 3, 1, SHAPE_SX}, {"c4x", 0, 4, 1, SHAPE_X},
};

/* The relative-phase Toffolis have no short closed form: they stay what the standard library says they are. */
const char gates_prelude[] =
    "gate rccx a,b,c { u2(0,pi) c; u1(pi/4) c; cx b,c; u1(-pi/4) c; cx a,c; u1(pi/4) c; cx b,c; u1(-pi/4) c; u2(0,pi) c; }\n"
    "gate rc3x a,b,c,d { u2(0,pi) d; u1(pi/4) d; cx c,d; u1(-pi/4) d; u2(0,pi) d; cx a,d; u1(pi/4) d; cx b,d; u1(-pi/4) d;"
    " cx a,d; u1(pi/4) d; cx b,d; u1(-pi/4) d; u2(0,pi) d; u1(pi/4) d; cx c,d; u1(-pi/4) d; u2(0,pi) d; }\n";

const builtin_t *builtin_find(const char *name) {
  for (size_t i = 0; i < sizeof builtins / sizeof builtins[0]; i++)
    if (strcmp(builtins[i].name, name) == 0) return &builtins[i];
  return NULL;
}

static double complex polar(double angle) { return cos(angle) + I * sin(angle); }

static void set2(double complex *m, double complex a, double complex b, double complex c, double complex d) {
  m[0] = a, m[1] = b, m[2] = c, m[3] = d;
}

static void set_u3(double complex *m, double theta, double phi, double lambda) {
  double c = cos(theta / 2), s = sin(theta / 2);
  set2(m, c, -s * polar(lambda), s * polar(phi), c * polar(phi + lambda));
}

/* A 4x4 matrix that is `outer` on |00> and |11>, and `inner` on |01> and |10>; `flip` couples a state with its complement. */
static void set4(double complex *m, double complex outer, double complex inner, double complex flip) {
  memset(m, 0, 16 * sizeof *m);
  m[0] = m[15] = outer, m[5] = m[10] = inner;
  m[3] = m[6] = m[9] = m[12] = flip;
}

static void set_rotation(shape_t shape, double angle, double complex *m) {
  double c = cos(angle / 2), s = sin(angle / 2);
  if (shape == SHAPE_RX) set2(m, c, -I * s, -I * s, c);
  if (shape == SHAPE_RY) set2(m, c, -s, s, c);
  if (shape == SHAPE_RZ) set2(m, polar(-angle / 2), 0, 0, polar(angle / 2));
  if (shape == SHAPE_RXX) set4(m, c, c, -I * s);
  if (shape == SHAPE_RZZ) set4(m, polar(-angle / 2), polar(angle / 2), 0);
}

static void set_matrix(shape_t shape, const double *p, double complex *m) {
  const double r = sqrt(0.5);
  switch (shape) {
  case SHAPE_ID: set2(m, 1, 0, 0, 1); break;
  case SHAPE_X: set2(m, 0, 1, 1, 0); break;
  case SHAPE_Y: set2(m, 0, -I, I, 0); break;
  case SHAPE_Z: set2(m, 1, 0, 0, -1); break;
  case SHAPE_H: set2(m, r, r, r, -r); break;
  case SHAPE_S: set2(m, 1, 0, 0, I); break;
  case SHAPE_SDG: set2(m, 1, 0, 0, -I); break;
  case SHAPE_T: set2(m, 1, 0, 0, r + r * I); break;
  case SHAPE_TDG: set2(m, 1, 0, 0, r - r * I); break;
  case SHAPE_SX: set2(m, 0.5 + 0.5 * I, 0.5 - 0.5 * I, 0.5 - 0.5 * I, 0.5 + 0.5 * I); break;
  case SHAPE_SXDG: set2(m, 0.5 - 0.5 * I, 0.5 + 0.5 * I, 0.5 + 0.5 * I, 0.5 - 0.5 * I); break;
  case SHAPE_PHASE: set2(m, 1, 0, 0, polar(p[0])); break;
  case SHAPE_U2: set_u3(m, PI / 2, p[0], p[1]); break;
  case SHAPE_U3: set_u3(m, p[0], p[1], p[2]); break;
  case SHAPE_CU:
    set_u3(m, p[0], p[1], p[2]);
    for (int i = 0; i < 4; i++) m[i] *= polar(p[3]);
    break;
  case SHAPE_SWAP:
    memset(m, 0, 16 * sizeof *m);
    m[0] = m[6] = m[9] = m[15] = 1;
    break;
  default: set_rotation(shape, p[0], m); break;
  }
}

void builtin_make(const builtin_t *builtin, const double *params, const uint32_t *qubits, item_t *item) {
  memset(item, 0, sizeof *item);
  item->kind = ITEM_GATE;
  item->targets = builtin->targets;
  for (unsigned i = 0; i < builtin->controls; i++) item->controls |= 1ull << qubits[i];
  for (unsigned i = 0; i < builtin->targets; i++) item->target[i] = (uint8_t)qubits[builtin->controls + i];
  set_matrix((shape_t)builtin->shape, params, item->matrix);
  size_t side = (size_t)1 << builtin->targets;
  item->diagonal = true;
  for (size_t r = 0; r < side; r++)
    for (size_t c = 0; c < side; c++)
      if (r != c && item->matrix[r * side + c] != 0) item->diagonal = false;
}

void circuit_free(circuit_t *circuit) {
  free(circuit->items);
  free(circuit->qregs);
  free(circuit->cregs);
  memset(circuit, 0, sizeof *circuit);
}

bool circuit_add(circuit_t *circuit, const item_t *item) {
  if (circuit->count == circuit->capacity) {
    size_t capacity = circuit->capacity ? 2 * circuit->capacity : 256;
    item_t *grown = capacity > CIRCUIT_MAX_ITEMS ? NULL : realloc(circuit->items, capacity * sizeof *grown);
    if (!grown) return false;
    circuit->items = grown;
    circuit->capacity = capacity;
  }
  circuit->items[circuit->count++] = *item;
  return true;
}

uint64_t item_qubits(const item_t *item) {
  uint64_t mask = item->controls;
  for (unsigned i = 0; i < item->targets; i++) mask |= 1ull << item->target[i];
  return mask;
}

/* Marks, from the end, the measurements that may wait; returns how many. */
static size_t mark_deferred(circuit_t *circuit) {
  uint64_t touched = 0;
  unsigned char rewritten[CIRCUIT_MAX_BITS] = {0}; /* bits that a measurement which stays will write later */
  size_t marked = 0;
  for (size_t i = circuit->count; i-- > 0;) {
    item_t *item = &circuit->items[i];
    item->deferred = item->kind == ITEM_MEASURE && !(touched & item_qubits(item)) && !rewritten[item->bit];
    if (item->deferred) {
      marked++;
      continue;
    }
    if (item->kind == ITEM_MEASURE) rewritten[item->bit] = 1;
    touched |= item_qubits(item);
  }
  return marked;
}

size_t circuit_defer_measurements(circuit_t *circuit) {
  item_t *sorted = malloc((circuit->count + 1) * sizeof *sorted);
  if (!sorted) return circuit->count; /* nothing moves: slower, and as right */
  size_t kept = 0, end = circuit->count - mark_deferred(circuit), next = end;
  for (size_t i = 0; i < circuit->count; i++) sorted[circuit->items[i].deferred ? next++ : kept++] = circuit->items[i];
  free(circuit->items);
  circuit->items = sorted;
  circuit->capacity = circuit->count + 1;
  return end;
}

bool circuit_collapses(const circuit_t *circuit, size_t end) {
  for (size_t i = 0; i < end; i++)
    if (circuit->items[i].kind != ITEM_GATE) return true;
  return false;
}
