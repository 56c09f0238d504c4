/* needs paged memory. A simulator that knows nothing of qmem, whose user permits a loss: the state vector loses no more than that, and
   nothing else of the program loses anything. Run with QMEM_BUDGET=48M, QMEM_PRELOAD_THRESHOLD=1M, QMEM_ERROR_BUDGET=1e-4 and
   QMEM_ELEMENT=complex128, or without the last two. */
#include "check.h"
#include <stdint.h>

#define STATE ((size_t)64 << 20)
#define ODD ((size_t)20 << 20)   /* no state vector's size */
#define INDEX ((size_t)16 << 20) /* one, but of integers */

static uint64_t mixed(uint64_t i) {
  uint64_t x = i * 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9u;
  return x ^ x >> 32;
}

/* Between -1 and 1, with all 53 bits. */
static double amplitude(uint64_t i) { return (double)(int64_t)(mixed(i) & ~0x7FFull) / 9223372036854775808.0; }

int main(void) {
  const char *variable = getenv("QMEM_ELEMENT");
  int lossy = variable && *variable;
  double *state = (double *)malloc(STATE), *odd = (double *)malloc(ODD), error = 0, norm = 0;
  uint64_t *index = (uint64_t *)malloc(INDEX);
  size_t i, pass;
  CHECK(state && odd && index);
  for (i = 0; i < STATE / 8; i++)
    state[i] = amplitude(i);
  for (i = 0; i < ODD / 8; i++)
    odd[i] = amplitude(i + 1);
  for (i = 0; i < INDEX / 8; i++)
    index[i] = mixed(i) >> 20;
  for (pass = 0; pass < 2; pass++) {
    size_t wrong = 0;
    error = norm = 0;
    for (i = 0; i < STATE / 8; i++) {
      double want = amplitude(i);
      error += (state[i] - want) * (state[i] - want);
      norm += want * want;
    }
    for (i = 0; i < ODD / 8; i++)
      wrong += odd[i] != amplitude(i + 1);
    for (i = 0; i < INDEX / 8; i++)
      wrong += index[i] != mixed(i) >> 20;
    CHECK(wrong == 0);
  }
  CHECK(lossy ? error > 0 && error <= 1e-4 * norm : error == 0);
  free(state);
  free(odd);
  free(index);
  return finish();
}
