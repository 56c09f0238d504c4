/* fuse.c: merges the gates of one sweep into few operations: small matrices, dense or sparse, and diagonals over more qubits.
   Called by plan.c. Two are merged when a model of their cost in cache says that one pass is cheaper than two. May not change the block. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

/* An operation in the making: a matrix (by rows) or, if diagonal, a vector of factors, on `qubit[0..count)`. */
typedef struct {
  bool diagonal;
  unsigned count, qubit[DIAGONAL_MAX_QUBITS];
  uint64_t controls;        /* qubits outside the block */
  uint64_t mixed, phased;   /* qubits on which it is not diagonal, and on which it is */
  double cost;
  double complex *element;
} part_t;

static double complex times(double complex a, double complex b) { /* no detour for infinities, as C's own product takes */
  return CMPLX(creal(a) * creal(b) - cimag(a) * cimag(b), creal(a) * cimag(b) + cimag(a) * creal(b));
}

static size_t elements(const part_t *part) { return (size_t)1 << (part->diagonal ? part->count : 2 * part->count); }

static size_t nonzero(const part_t *part) {
  size_t found = 0;
  for (size_t i = 0; i < elements(part); i++) found += part->element[i] != 0;
  return found;
}

static bool is_real(const part_t *part) {
  for (size_t i = 0; i < elements(part); i++)
    if (cimag(part->element[i]) != 0) return false;
  return true;
}

static bool is_dense(const part_t *part) { return part->count <= 4 && 2 * nonzero(part) > elements(part); }

/* Time per amplitude in cache, in the rough unit of one multiplication: a pass, and the products. */
static double cost_of(const part_t *part) {
  if (part->diagonal) return 2.5;
  double side = (double)(1u << part->count);
  if (is_dense(part)) return 2.0 + side * (is_real(part) ? 0.5 : 1.0);
  return 2.5 + 1.3 * (double)nonzero(part) / side;
}

static unsigned position_of(const part_t *part, unsigned qubit) {
  unsigned j = 0;
  while (j < part->count && part->qubit[j] != qubit) j++;
  return j;
}

static void add_qubits(part_t *part, const part_t *from) {
  for (unsigned j = 0; j < from->count; j++)
    if (position_of(part, from->qubit[j]) == part->count) part->qubit[part->count++] = from->qubit[j];
}

/* The gate as an operation on block qubits, with its outside controls apart. */
static bool part_of_gate(const item_t *item, uint64_t inside, part_t *part) {
  memset(part, 0, sizeof *part);
  part->diagonal = item->diagonal;
  uint64_t listed = item->diagonal ? item->controls : item->controls & inside, all = item_qubits(item);
  part->controls = item->controls & ~listed;
  unsigned controls = 0;
  for (unsigned i = 0; i < item->targets; i++) part->qubit[part->count++] = item->target[i];
  for (unsigned q = 0; q < CIRCUIT_MAX_QUBITS; q++)
    if (listed >> q & 1) part->qubit[part->count++] = q, controls++;
  for (unsigned i = 0; i < item->targets && !item->diagonal; i++) part->mixed |= 1ull << item->target[i];
  part->phased = all & ~part->mixed;
  part->element = calloc(elements(part), sizeof *part->element);
  if (!part->element) return false;
  size_t side = (size_t)1 << part->count, small = (size_t)1 << item->targets, active = (((size_t)1 << controls) - 1) * small;
  for (size_t r = 0; r < side; r++) {
    bool on = (r & active) == active;
    if (part->diagonal)
      part->element[r] = on ? item->matrix[(r & (small - 1)) * (small + 1)] : 1;
    else if (!on)
      part->element[r * side + r] = 1;
    else
      for (size_t c = 0; c < small; c++) part->element[r * side + active + c] = item->matrix[(r & (small - 1)) * small + c];
  }
  part->cost = cost_of(part);
  return true;
}

/* vector := part * vector, the vector over the qubits of `space`. */
static void apply_part(const part_t *part, const part_t *space, double complex *vector) {
  unsigned bit[DIAGONAL_MAX_QUBITS];
  size_t side = (size_t)1 << part->count, mask = 0;
  size_t offset[1u << DIAGONAL_MAX_QUBITS];
  for (unsigned j = 0; j < part->count; j++) bit[j] = position_of(space, part->qubit[j]), mask |= (size_t)1 << bit[j];
  for (size_t r = 0; r < side; r++) {
    offset[r] = 0;
    for (unsigned j = 0; j < part->count; j++) offset[r] |= (r >> j & 1) << bit[j];
  }
  double complex in[1u << MATRIX_MAX_QUBITS];
  for (size_t base = 0; base < (size_t)1 << space->count; base++) {
    if (base & mask) continue;
    if (part->diagonal) {
      for (size_t r = 0; r < side; r++) vector[base | offset[r]] = times(part->element[r], vector[base | offset[r]]);
      continue;
    }
    for (size_t r = 0; r < side; r++) in[r] = vector[base | offset[r]];
    for (size_t r = 0; r < side; r++) {
      double complex sum = 0;
      for (size_t c = 0; c < side; c++)
        if (part->element[r * side + c] != 0 && in[c] != 0) sum += times(part->element[r * side + c], in[c]);
      vector[base | offset[r]] = sum;
    }
  }
}

static bool may_merge(const part_t *a, const part_t *b, uint64_t inside, unsigned matrix_qubits, part_t *merged) {
  *merged = *a;
  add_qubits(merged, b);
  merged->diagonal = a->diagonal && b->diagonal;
  if (a->controls != b->controls) return false;
  if (merged->diagonal) return true;
  if (merged->count > matrix_qubits) return false;
  for (unsigned j = 0; j < merged->count; j++)
    if (!(inside >> merged->qubit[j] & 1)) return false;
  return true;
}

/* `b` after `a` as one operation. False: out of memory. Leaves merged->element NULL where they cannot be merged. */
static bool merge(const part_t *a, const part_t *b, uint64_t inside, unsigned matrix_qubits, part_t *merged) {
  part_t together = *a;
  merged->element = NULL;
  unsigned distinct = a->count;
  for (unsigned j = 0; j < b->count; j++) distinct += position_of(a, b->qubit[j]) == a->count;
  if (distinct > DIAGONAL_MAX_QUBITS || !may_merge(a, b, inside, matrix_qubits, &together)) return true;
  size_t side = (size_t)1 << together.count;
  together.element = calloc(elements(&together), sizeof *together.element);
  double complex *column = malloc(side * sizeof *column);
  if (!together.element || !column) {
    free(together.element);
    free(column);
    return false;
  }
  if (together.diagonal) {
    for (size_t r = 0; r < side; r++) together.element[r] = 1;
    apply_part(a, &together, together.element);
    apply_part(b, &together, together.element);
  }
  for (size_t c = 0; c < side && !together.diagonal; c++) {
    memset(column, 0, side * sizeof *column);
    column[c] = 1;
    apply_part(a, &together, column);
    apply_part(b, &together, column);
    for (size_t r = 0; r < side; r++) together.element[r * side + c] = column[r];
  }
  free(column);
  together.mixed = a->mixed | b->mixed;
  together.phased = (a->phased | b->phased) & ~together.mixed;
  together.cost = cost_of(&together);
  *merged = together;
  return true;
}

static bool commute(const part_t *a, const part_t *b) {
  return !(a->mixed & (b->mixed | b->phased)) && !(a->phased & b->mixed);
}

#define LOOK_BACK 24u /* operations tried as partners of a gate */

/* Adds the gate to the operation that saves most by it, or as a new one; takes over part->element. */
static bool place(part_t *parts, size_t *count, part_t *part, uint64_t inside, unsigned matrix_qubits) {
  part_t best = {0};
  size_t best_at = 0;
  double best_saving = -1e-9;
  for (size_t i = *count, tried = 0; i-- > 0 && tried < LOOK_BACK; tried++) {
    part_t merged;
    if (!merge(&parts[i], part, inside, matrix_qubits, &merged)) {
      free(best.element);
      return false;
    }
    double saving = merged.element ? parts[i].cost + part->cost - merged.cost : -1;
    if (saving > best_saving) {
      free(best.element);
      best = merged, best_at = i, best_saving = saving;
    } else {
      free(merged.element);
    }
    if (!commute(&parts[i], part)) break;
  }
  if (best.element) {
    free(parts[best_at].element);
    free(part->element);
    parts[best_at] = best;
  } else {
    parts[(*count)++] = *part;
  }
  part->element = NULL;
  return true;
}

/* ---- to what the kernels run ---- */

static unsigned block_position(const sweep_t *sweep, unsigned qubit) {
  unsigned p = 0;
  while (p < sweep->block_qubits && sweep->qubit[p] != qubit) p++;
  return p;
}

static bool lower_matrix(const sweep_t *sweep, const part_t *part, operation_t *operation) {
  size_t side = (size_t)1 << part->count, count = nonzero(part), used = 0;
  operation->kind = OPERATION_MATRIX;
  operation->controls = part->controls;
  operation->count = part->count;
  operation->dense = is_dense(part);
  operation->real = is_real(part);
  for (unsigned j = 0; j < part->count; j++) operation->position[j] = block_position(sweep, part->qubit[j]);
  if (operation->dense) count = side * side;
  operation->re = malloc((count + 1) * sizeof(double));
  operation->im = malloc((count + 1) * sizeof(double));
  operation->column = malloc((count + 1) * sizeof(uint16_t));
  if (!operation->re || !operation->im || !operation->column) return false;
  for (size_t r = 0; r < side; r++) {
    operation->row[r] = (uint16_t)used;
    for (size_t c = 0; c < side; c++) {
      double complex value = part->element[r * side + c];
      if (!operation->dense && value == 0) continue;
      operation->re[used] = creal(value);
      operation->im[used] = cimag(value);
      operation->column[used++] = (uint16_t)c;
    }
  }
  operation->row[side] = (uint16_t)used;
  return true;
}

/* The factors reordered: outside qubits first, then rows of eight, and within them the lanes spelt out. */
static void fill_factors(const part_t *part, operation_t *operation, const unsigned *outside_bit, const unsigned *row_bit,
                         const unsigned *lane_bit) {
  size_t rows = (size_t)1 << operation->row_bits;
  for (size_t u = 0; u < (size_t)1 << operation->outside; u++) {
    operation->identity[u] = true;
    for (size_t w = 0; w < rows; w++)
      for (size_t lane = 0; lane < 8; lane++) {
        size_t index = 0;
        for (unsigned j = 0; j < operation->outside; j++) index |= (u >> j & 1) << outside_bit[j];
        for (unsigned j = 0; j < operation->row_bits; j++) index |= (w >> j & 1) << row_bit[j];
        for (unsigned j = 0; j < LANE_QUBITS; j++)
          if (lane_bit[j] < part->count) index |= (lane >> j & 1) << lane_bit[j];
        size_t to = (u * rows + w) * 8 + lane;
        operation->re[to] = creal(part->element[index]);
        operation->im[to] = cimag(part->element[index]);
        if (part->element[index] != 1) operation->identity[u] = false;
      }
  }
}

static bool lower_diagonal(const sweep_t *sweep, const part_t *part, operation_t *operation) {
  unsigned outside_bit[DIAGONAL_MAX_QUBITS], row_bit[DIAGONAL_MAX_QUBITS], row_position[DIAGONAL_MAX_QUBITS];
  unsigned lane_bit[LANE_QUBITS] = {part->count, part->count, part->count};
  operation->kind = OPERATION_DIAGONAL;
  for (unsigned j = 0; j < part->count; j++) {
    unsigned position = block_position(sweep, part->qubit[j]);
    if (position == sweep->block_qubits)
      operation->outside_qubit[operation->outside] = part->qubit[j], outside_bit[operation->outside++] = j;
    else if (position < LANE_QUBITS)
      lane_bit[position] = j;
    else
      row_position[operation->row_bits] = position - LANE_QUBITS, row_bit[operation->row_bits++] = j;
  }
  size_t factors = (size_t)8 << (operation->outside + operation->row_bits), groups = (size_t)1 << (sweep->block_qubits - LANE_QUBITS);
  operation->re = aligned_alloc(64, factors * sizeof(double));
  operation->im = aligned_alloc(64, factors * sizeof(double));
  operation->identity = malloc(((size_t)1 << operation->outside) * sizeof(bool));
  operation->row_index = malloc(groups * sizeof(uint16_t));
  if (!operation->re || !operation->im || !operation->identity || !operation->row_index) return false;
  fill_factors(part, operation, outside_bit, row_bit, lane_bit);
  for (size_t g = 0; g < groups; g++) {
    size_t w = 0;
    for (unsigned j = 0; j < operation->row_bits; j++) w |= (g >> row_position[j] & 1) << j;
    operation->row_index[g] = (uint16_t)w;
  }
  return true;
}

bool fuse_gates(sweep_t *sweep, const item_t *const *gates, size_t count, const plan_options_t *options) {
  uint64_t inside = 0;
  size_t num_parts = 0;
  unsigned matrix_qubits = options->matrix_qubits ? options->matrix_qubits : MATRIX_MAX_QUBITS;
  for (unsigned p = 0; p < sweep->block_qubits; p++) inside |= 1ull << sweep->qubit[p];
  part_t *parts = calloc(count + 1, sizeof *parts);
  bool good = parts != NULL;
  for (size_t i = 0; good && i < count; i++) {
    part_t part;
    good = part_of_gate(gates[i], inside, &part) && place(parts, &num_parts, &part, inside, matrix_qubits);
    if (part.element) free(part.element);
  }
  sweep->operations = good ? calloc(num_parts + 1, sizeof *sweep->operations) : NULL;
  good = good && sweep->operations;
  for (size_t i = 0; good && i < num_parts; i++) {
    sweep->count = i + 1;
    good = parts[i].diagonal ? lower_diagonal(sweep, &parts[i], &sweep->operations[i]) : lower_matrix(sweep, &parts[i], &sweep->operations[i]);
  }
  for (size_t i = 0; parts && i < num_parts; i++) free(parts[i].element);
  free(parts);
  return good;
}
