/* kernels.c: see kernels.h. The kernels of kernels_lanes.h through the compiler's vector types, for vectors as wide as registers are:
   wider ones would be kept in memory. Which are used is decided when they are called. */
#include "kernels.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (__typeof__((a) < (b))){__VA_ARGS__})
#endif

typedef struct {
  void (*split)(const double *amplitude, double *re, double *im, size_t amplitudes);
  void (*join)(double *amplitude, const double *re, const double *im, size_t amplitudes);
  void (*dense)(const operation_t *operation, double *re, double *im, unsigned block_qubits);
  void (*sparse)(const operation_t *operation, double *re, double *im, unsigned block_qubits);
  void (*diagonal)(const operation_t *operation, double *re, double *im, unsigned block_qubits, size_t combination);
} kernels_t;

#define LANES 2 /* what every x86-64 and ARMv8 processor has */
#define TARGET
#define NAME(x) x##_2
#include "kernels_lanes.h"

#if defined(__x86_64__)
#define LANES 4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_4
#include "kernels_lanes.h"

#define LANES 8
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma")))
#define NAME(x) x##_8
#include "kernels_lanes.h"
#endif

static const kernels_t *kernels(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) return &kernels_8;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_4;
#endif
  return &kernels_2;
}

void kernel_split(const double *amplitude, double *re, double *im, size_t amplitudes) { kernels()->split(amplitude, re, im, amplitudes); }

void kernel_join(double *amplitude, const double *re, const double *im, size_t amplitudes) { kernels()->join(amplitude, re, im, amplitudes); }

void kernel_apply(const operation_t *operation, double *re, double *im, unsigned block_qubits, uint64_t index) {
  if ((index & operation->controls) != operation->controls) return;
  if (operation->kind == OPERATION_MATRIX) {
    if (operation->dense)
      kernels()->dense(operation, re, im, block_qubits);
    else
      kernels()->sparse(operation, re, im, block_qubits);
    return;
  }
  size_t combination = 0;
  for (unsigned j = 0; j < operation->outside; j++) combination |= (index >> operation->outside_qubit[j] & 1) << j;
  if (!operation->identity[combination]) kernels()->diagonal(operation, re, im, block_qubits, combination);
}
