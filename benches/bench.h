/* What the parts of the benchmark program share: options, clock, threads, random numbers, and the face of each part.
   Included by every .c file here. It knows nothing of who runs the program or of limits imposed from outside. */
#ifndef QMEM_BENCH_H
#define QMEM_BENCH_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_THREADS = 64, MAX_QUBITS = 64, BLOCK_BYTES = 65536, BLOCK_AMPLITUDES = BLOCK_BYTES / 16 };
#define HUGE_PAGE ((size_t)2 << 20)

typedef enum { MEMORY_PLAIN, MEMORY_HUGE, MEMORY_MMAP_FILE, MEMORY_QMEM } memory_kind;

typedef struct {
  size_t bytes, budget;
  memory_kind memory, against;
  bool random_state, streaming, incompressible, fidelity;
  double tolerance;
  unsigned qubits[MAX_QUBITS], num_qubits, rounds, threads, pairs;
  const char *directory, *kind_name, *against_name;
} options;

/* ---- memory.c: one buffer of a given kind ---- */
typedef struct {
  void *data;
  void *map;         /* what munmap gets; NULL for qmem */
  size_t map_bytes;
} buffer;
bool memory_kind_of(const char *name, memory_kind *kind);
buffer memory_allocate(const options *o, memory_kind kind, size_t bytes, bool streaming); /* zeros; exits with a message on failure */
void memory_release(buffer *b);
void memory_print_qmem_stats(void);               /* one JSON member with a leading comma; nothing without the library */
size_t memory_moved_out(void);                    /* chunks that have left qmem's memory so far */
void *memory_geometric(size_t rows, size_t columns, size_t *stride); /* complex<double>, by qmem_allocate_geometric; stride in elements */
void memory_geometric_free(void *matrix);
size_t memory_available(void);                    /* of the machine */
void memory_print_rss(void);                      /* the same: peak resident set and huge-page bytes of this process */

/* ---- state.c: the state vector ---- */
void state_prepare(const options *o);             /* generator tables and the norm; touches no state memory */
void state_fill(const options *o, double *state);
void state_hadamard(const options *o, double *state, unsigned qubit);
typedef struct { uint64_t checksum; double norm; } state_digest;
state_digest state_check(const options *o, const double *state);
double state_fidelity(const options *o, const double *state); /* |<initial|state>|^2 / norms */

/* ---- stream.c, bounds.c, traces.c, layout.c: the other jobs ---- */
int traces_measure(const options *o);
int layout_measure(const options *o);
int stream_fill_verify(const options *o);
int bounds_measure(const options *o);
int bounds_touch(const options *o);

/* ---- parallel.c ---- */
typedef void (*part_fn)(void *shared, unsigned part, unsigned parts);
void parallel(unsigned parts, part_fn fn, void *shared); /* part 0 on the calling thread; returns when all are done */
double seconds(void);
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static inline size_t part_begin(size_t items, unsigned part, unsigned parts) {
  return (size_t)((unsigned __int128)items * part / parts);
}

/* A counter turned into 64 random bits (the finaliser of splitmix64): any element can be computed alone, and it vectorises. */
static inline uint64_t mix(uint64_t x) {
  x *= 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/* xoshiro256+, seeded per block so that the data do not depend on the number of threads. */
typedef struct { uint64_t s[4]; } generator;
static inline generator generator_of(uint64_t seed) {
  generator g;
  for (unsigned i = 0; i < 4; i++) g.s[i] = mix(seed * 4 + i + 1);
  return g;
}
static inline uint64_t generator_next(generator *g) {
  uint64_t *s = g->s, result = s[0] + s[3], t = s[1] << 17;
  s[2] ^= s[0]; s[3] ^= s[1]; s[1] ^= s[2]; s[0] ^= s[3];
  s[2] ^= t;
  s[3] = (s[3] << 45) | (s[3] >> 19);
  return result;
}
#endif
