/* plan.h: how a circuit is applied to a state: as few sweeps over all amplitudes as possible, each a list of fused operations on blocks.
   Built by plan.c and fuse.c from a circuit_t, run by sweep.c. A plan depends on the circuit and the options alone, never on the
   memory or the number of threads: so do the results, bit by bit. */
#ifndef PLAN_H
#define PLAN_H
#include "circuit.h"

#define BLOCK_QUBITS 14u    /* a block of 2^14 amplitudes, 256 KiB, stays in a core's cache while a sweep's operations pass over it */
#define ROW_QUBITS 8u       /* these qubits are in every block, so that a block is made of rows of 4 KiB */
#define CHUNK_QUBITS 17u    /* 2^17 amplitudes are the 2 MiB in which paged memory comes and goes */
#define PARTNER_QUBITS 4u   /* a block may spread over 2^4 such chunks, not more */
#define GROUP_MAX_QUBITS 16u /* a visit by chunk brings at most 2^16 chunks together */
#define LANE_QUBITS 3u      /* eight doubles are handled at once */
#define STATE_MIN_QUBITS 8u /* smaller registers are padded to this */
#define MATRIX_MAX_QUBITS 5u
#define DIAGONAL_MAX_QUBITS 8u

typedef enum { OPERATION_MATRIX, OPERATION_DIAGONAL } operation_kind_t;

/* One fused operation, in terms of positions inside a block. */
typedef struct {
  operation_kind_t kind;
  uint64_t controls;        /* qubits outside the block: skip the block unless all are 1 */
  /* matrix on `count` positions; index bit j belongs to position[j] */
  unsigned count;
  unsigned position[MATRIX_MAX_QUBITS];
  bool dense, real;
  double *re, *im;          /* dense: 4^count elements by rows; else the non-zero ones */
  uint16_t *column;         /* of the non-zero ones */
  uint16_t row[(1u << MATRIX_MAX_QUBITS) + 1]; /* where each row's begin */
  /* diagonal: factors in re, im; [outside combination][row combination][lane] */
  unsigned outside;         /* number of qubits outside the block */
  unsigned outside_qubit[DIAGONAL_MAX_QUBITS];
  unsigned row_bits;
  bool *identity;           /* per outside combination */
  uint16_t *row_index;      /* row combination of each group of eight amplitudes */
} operation_t;

typedef struct {
  unsigned block_qubits;    /* qubits inside a block */
  unsigned qubit[BLOCK_QUBITS]; /* by position, ascending */
  unsigned outer[CIRCUIT_MAX_QUBITS]; /* the others, ascending */
  unsigned outer_count;
  operation_t *operations;
  size_t count, gates;
} sweep_t;

typedef struct {
  sweep_t *sweeps;
  size_t count, gates, operations;
} plan_t;

typedef struct {
  bool fuse;                /* false: a sweep for every gate, for checking */
  unsigned matrix_qubits;   /* 0: MATRIX_MAX_QUBITS */
  unsigned partner_qubits;  /* 0: PARTNER_QUBITS */
  unsigned group_qubits;    /* by chunk: at most so many qubits outside of chunks at a visit */
  uint64_t within;          /* blocks spread over these qubits only, and over as many chunks as it takes: all are in memory; 0: over all */
} plan_options_t;

/* Plans items [first, end), gates all of them, on a state of `qubits` (padded) qubits. False: out of memory. */
bool plan_build(const circuit_t *circuit, size_t first, size_t end, unsigned qubits, const plan_options_t *options, plan_t *plan);
void plan_free(plan_t *plan);

/* fuse.c: merges `gates`, in order, into the operations of `sweep`, whose block is settled. */
bool fuse_gates(sweep_t *sweep, const item_t *const *gates, size_t count, const plan_options_t *options);
#endif
