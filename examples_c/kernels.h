/* kernels.h: arithmetic on one block of amplitudes, real and imaginary parts apart. Called by sweep.c, one thread per block.
   Blocks are 64-byte aligned and hold at least 2^STATE_MIN_QUBITS amplitudes. No kernel knows where the block came from. */
#ifndef KERNELS_H
#define KERNELS_H
#include "plan.h"

/* Rows of interleaved amplitudes from and to the two halves; `amplitudes` is a multiple of 8. */
void kernel_split(const double *amplitude, double *re, double *im, size_t amplitudes);
void kernel_join(double *amplitude, const double *re, const double *im, size_t amplitudes);

/* One operation on the block whose outside qubits have the values in `index`. */
void kernel_apply(const operation_t *operation, double *re, double *im, unsigned block_qubits, uint64_t index);
#endif
