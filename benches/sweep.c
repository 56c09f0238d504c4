/* The benchmark program: one process, one job, one line of JSON. `run` starts it once per contender and compares the lines;
   it can be used alone, see --help. It measures and checks; it judges nothing. */
#define _GNU_SOURCE
#include "bench.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static const char HELP[] =
    "sweep: Hadamard sweeps and block streams over one kind of memory; prints one line of JSON\n"
    "  --job sweep|resident-pairs|fill-verify|bounds|touch|traces|layout   default sweep\n"
    "  --memory plain|huge|mmap-file|qmem   default plain\n"
    "  --against KIND       resident-pairs: the second buffer, default huge\n"
    "  --bytes N[K|M|G]     size of the state or buffer, a power of two from 64K (touch: any), default 2G\n"
    "  --budget N[K|M|G]    qmem: resident bytes, default a quarter of --bytes\n"
    "  --buffer hierarchical|streaming   sweep, qmem: which allocation, default hierarchical\n"
    "  --tolerance X        qmem, hierarchical: relative L2 error allowed in all, default 0 (lossless)\n"
    "  --state structured|random   default structured\n"
    "  --qubits A,B,...     default 0,7,14,21\n"
    "  --rounds R           default 1; with an even number the state returns to the first one\n"
    "  --fidelity           sweep: compare with the first state (even rounds)\n"
    "  --pairs P            resident-pairs: default 25\n"
    "  --incompressible     fill-verify: a pattern without redundancy\n"
    "  --threads T          default 1\n"
    "  --dir D              a directory on disk for mmap-file and bounds, default /var/tmp\n";

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median_of(const double *times, size_t count) {
  double *sorted = malloc(count * sizeof *sorted);
  if (!sorted) fail("no memory for %zu times", count);
  memcpy(sorted, times, count * sizeof *sorted);
  qsort(sorted, count, sizeof *sorted, by_value);
  double m = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
  free(sorted);
  return m;
}

static void print_times(const char *name, const double *times, size_t count) {
  printf(", \"%s\": [", name);
  for (size_t i = 0; i < count; i++) printf("%s%.6f", i ? ", " : "", times[i]);
  printf("]");
}

static double cpu_seconds(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void print_head(const options *o, const char *job) {
  printf("{\"job\": \"%s\", \"memory\": \"%s\", \"bytes\": %zu, \"state\": \"%s\", \"threads\": %u, \"rounds\": %u, \"qubits\": [", job,
         o->kind_name, o->bytes, o->random_state ? "random" : "structured", o->threads, o->rounds);
  for (unsigned i = 0; i < o->num_qubits; i++) printf("%s%u", i ? ", " : "", o->qubits[i]);
  printf("]");
}

static int job_sweep(const options *o) {
  size_t gates = (size_t)o->rounds * o->num_qubits;
  double *times = malloc(gates * sizeof *times);
  if (!times) fail("no memory for %zu times", gates);
  state_prepare(o);
  buffer b = memory_allocate(o, o->memory, o->bytes, o->streaming);
  double start = seconds();
  state_fill(o, b.data);
  double fill = seconds() - start, cpu = cpu_seconds();
  for (size_t i = 0; i < gates; i++) {
    start = seconds();
    state_hadamard(o, b.data, o->qubits[i % o->num_qubits]);
    times[i] = seconds() - start;
  }
  cpu = cpu_seconds() - cpu;
  print_head(o, "sweep");
  printf(", \"fill_s\": %.6f, \"gate_median_s\": %.6f, \"gates_cpu_s\": %.6f", fill, median_of(times, gates), cpu);
  print_times("gate_s", times, gates);
  memory_print_rss();
  if (o->memory == MEMORY_QMEM) memory_print_qmem_stats();
  state_digest digest = state_check(o, b.data);
  printf(", \"checksum\": \"%016llx\", \"norm\": %.12f", (unsigned long long)digest.checksum, digest.norm);
  if (o->fidelity) printf(", \"tolerance\": %g, \"fidelity\": %.12f", o->tolerance, state_fidelity(o, b.data));
  puts("}");
  memory_release(&b);
  free(times);
  return 0;
}

/* One sample is the whole list of qubits, so that both kinds see every stride in each pair. */
static double sample(const options *o, const buffer *b) {
  double start = seconds();
  for (unsigned i = 0; i < o->num_qubits; i++) state_hadamard(o, b->data, o->qubits[i]);
  return seconds() - start;
}

static int job_resident_pairs(const options *o) {
  double *first = malloc(o->pairs * sizeof *first), *second = malloc(o->pairs * sizeof *second);
  if (!first || !second) fail("no memory for %u pairs", o->pairs);
  state_prepare(o);
  buffer a = memory_allocate(o, o->memory, o->bytes, o->streaming), b = memory_allocate(o, o->against, o->bytes, o->streaming);
  state_fill(o, a.data);
  state_fill(o, b.data);
  for (int warm = 0; warm < 2; warm++) sample(o, &a), sample(o, &b);
  for (unsigned p = 0; p < o->pairs; p++) {
    bool swapped = p & 1;
    if (swapped) second[p] = sample(o, &b);
    first[p] = sample(o, &a);
    if (!swapped) second[p] = sample(o, &b);
  }
  print_head(o, "resident-pairs");
  printf(", \"against\": \"%s\"", o->against_name);
  print_times("memory_s", first, o->pairs);
  print_times("against_s", second, o->pairs);
  memory_print_rss();
  if (o->memory == MEMORY_QMEM || o->against == MEMORY_QMEM) memory_print_qmem_stats();
  state_digest x = state_check(o, a.data), y = state_check(o, b.data);
  printf(", \"checksum\": \"%016llx\", \"checksum_against\": \"%016llx\"}\n", (unsigned long long)x.checksum, (unsigned long long)y.checksum);
  memory_release(&a);
  memory_release(&b);
  free(first);
  free(second);
  if (x.checksum != y.checksum) fputs("sweep: the two buffers ended with different states\n", stderr);
  return x.checksum == y.checksum ? 0 : 1;
}

/* ---- options ---- */
static size_t size_of(const char *name, const char *text) {
  char *end;
  unsigned long long n = strtoull(text, &end, 10);
  unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
  if (end == text || (shift ? end[1] : end[0]) || n == 0 || n > (SIZE_MAX >> shift)) fail("--%s %s: not a size such as 512M", name, text);
  return (size_t)n << shift;
}

static unsigned number_of(const char *name, const char *text, unsigned most) {
  char *end;
  unsigned long n = strtoul(text, &end, 10);
  if (end == text || *end || n == 0 || n > most) fail("--%s %s: not a number from 1 to %u", name, text, most);
  return (unsigned)n;
}

static void read_qubits(options *o, const char *text) {
  o->num_qubits = 0;
  for (const char *p = text;; p++) {
    char *end;
    unsigned long q = strtoul(p, &end, 10);
    if (end == p || q > 60 || o->num_qubits == MAX_QUBITS) fail("--qubits %s: not a list such as 0,7,14", text);
    o->qubits[o->num_qubits++] = (unsigned)q;
    p = end;
    if (*p == 0) return;
    if (*p != ',') fail("--qubits %s: not a list such as 0,7,14", text);
  }
}

static memory_kind kind_of(const char *name, const char *text) {
  memory_kind kind;
  if (!memory_kind_of(text, &kind)) fail("--%s %s: not one of plain, huge, mmap-file, qmem", name, text);
  return kind;
}

static bool either(const char *name, const char *text, const char *no, const char *yes) {
  if (strcmp(text, no) && strcmp(text, yes)) fail("--%s %s: neither %s nor %s", name, text, no, yes);
  return strcmp(text, yes) == 0;
}

static void take(options *o, const char **job, int letter, const char *name, const char *value) {
  switch (letter) {
  case 'j': *job = value; return;
  case 'm': o->memory = kind_of(name, o->kind_name = value); return;
  case 'a': o->against = kind_of(name, o->against_name = value); return;
  case 'b': o->bytes = size_of(name, value); return;
  case 'B': o->budget = size_of(name, value); return;
  case 'u': o->streaming = either(name, value, "hierarchical", "streaming"); return;
  case 't': o->tolerance = strtod(value, NULL); return;
  case 's': o->random_state = either(name, value, "structured", "random"); return;
  case 'q': read_qubits(o, value); return;
  case 'r': o->rounds = number_of(name, value, 1000); return;
  case 'f': o->fidelity = true; return;
  case 'p': o->pairs = number_of(name, value, 10000); return;
  case 'i': o->incompressible = true; return;
  case 'T': o->threads = number_of(name, value, MAX_THREADS); return;
  case 'd': o->directory = value; return;
  case 'h': fputs(HELP, stdout); exit(0);
  default: fail("see --help");
  }
}

static void check_options(options *o) {
  if (o->bytes < BLOCK_BYTES || (o->bytes & (o->bytes - 1))) fail("--bytes %zu: not a power of two from 64K", o->bytes);
  if (o->budget == 0) o->budget = o->bytes / 4;
  for (unsigned i = 0; i < o->num_qubits; i++)
    if (o->bytes / 32 >> o->qubits[i] == 0) fail("qubit %u: a state of %zu bytes has not that many", o->qubits[i], o->bytes);
  if (o->fidelity && o->rounds % 2) fail("--fidelity compares with the first state: --rounds must be even");
}

int main(int argc, char **argv) {
  static const struct option table[] = {
      {"job", 1, NULL, 'j'}, {"memory", 1, NULL, 'm'}, {"against", 1, NULL, 'a'}, {"bytes", 1, NULL, 'b'}, {"budget", 1, NULL, 'B'},
      {"buffer", 1, NULL, 'u'}, {"tolerance", 1, NULL, 't'}, {"state", 1, NULL, 's'}, {"qubits", 1, NULL, 'q'}, {"rounds", 1, NULL, 'r'},
      {"fidelity", 0, NULL, 'f'}, {"pairs", 1, NULL, 'p'}, {"incompressible", 0, NULL, 'i'}, {"threads", 1, NULL, 'T'},
      {"dir", 1, NULL, 'd'}, {"help", 0, NULL, 'h'}, {NULL, 0, NULL, 0}};
  options o = {.bytes = (size_t)2 << 30, .against = MEMORY_HUGE, .qubits = {0, 7, 14, 21}, .num_qubits = 4, .rounds = 1, .threads = 1,
               .pairs = 25, .directory = "/var/tmp", .kind_name = "plain", .against_name = "huge"};
  const char *job = "sweep";
  for (int letter, index = 0; (letter = getopt_long(argc, argv, "", table, &index)) != -1;) take(&o, &job, letter, table[index].name, optarg);
  if (optind < argc) fail("%s: not an option; see --help", argv[optind]);
  if (strcmp(job, "touch") == 0) return bounds_touch(&o);
  if (strcmp(job, "layout") == 0) return layout_measure(&o);
  check_options(&o);
  if (strcmp(job, "traces") == 0) return traces_measure(&o);
  if (strcmp(job, "sweep") == 0) return job_sweep(&o);
  if (strcmp(job, "resident-pairs") == 0) return job_resident_pairs(&o);
  if (strcmp(job, "fill-verify") == 0) return stream_fill_verify(&o);
  if (strcmp(job, "bounds") == 0) return bounds_measure(&o);
  fail("--job %s: not one of sweep, resident-pairs, fill-verify, bounds, touch, traces, layout", job);
}
