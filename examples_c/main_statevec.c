/* main_statevec.c: the program statevec: runs an OpenQASM 2 file on a state vector, in plain memory or in memory paged by qmem. */
#define _POSIX_C_SOURCE 200809L
#include "program.h"
#include "qasm.h"

#include <qmem.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: statevec [options] FILE.qasm\n"
    "Simulates an OpenQASM 2 circuit on a state vector of complex<double>.\n"
    "  --memory plain|qmem    where the state lies (plain)\n"
    "  --budget SIZE          qmem: bytes resident at most, such as 256M; 0: qmem's default\n"
    "  --tolerance T          qmem: relative error that lossy compression may leave; 0: lossless\n"
    "  --error-budget X       --chunked: infidelity that lossy compression may cost in all; 0: lossless\n"
    "  --chunked              qmem: gates visit chunks, several at a visit, with qubits remapped; not with --tolerance\n"
    "  --hints                qmem: announce the next chunks before they are touched\n"
    "  --threads N            default: the processors that are there\n"
    "  --shots N              samples of the classical bits; default: 1 if the circuit measures\n"
    "  --no-final-measure     ignore measurements that nothing follows\n"
    "  --seed N               of measurements and samples (1)\n"
    "  --probabilities N      print the N most probable basis states, qubit 0 last\n"
    "  --dump FILE            write the amplitudes before final measurements: complex128, qubit 0 fastest\n"
    "  --no-fuse              a sweep for every gate\n"
    "  --fuse-qubits K        matrices of at most K qubits, 1..5 (5)\n"
    "  --partner-qubits C     a block spreads over at most 2^C chunks of 2 MiB, 2..6 (4)\n"
    "  --group-qubits K       --chunked: at most 2^K chunks at a visit, 0..16 (as the budget permits)\n"
    "  --progress[=always]    a bar on stderr if that is a terminal, or always\n"
    "  --stats                print sweeps, times and memory on stderr\n";

typedef struct {
  const char *file, *dump;
  memory_options_t memory;
  plan_options_t plan;
  unsigned threads;
  size_t shots, probabilities;
  bool shots_given, final_measure, hints, progress, progress_always, stats;
  uint64_t seed;
} options_t;

static _Noreturn void die(const char *format, const char *text) {
  fprintf(stderr, "statevec: ");
  fprintf(stderr, format, text);
  fputc('\n', stderr);
  exit(1);
}

static uint64_t number(const char *option, const char *text, uint64_t least, uint64_t most) {
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (end == text || *end || errno || text[0] == '-' || value < least || value > most) {
    fprintf(stderr, "statevec: %s: found '%s', expected a whole number from %llu to %llu\n", option, text, (unsigned long long)least,
            (unsigned long long)most);
    exit(1);
  }
  return value;
}

static void set_memory(options_t *options, const char *option, const char *value) {
  char *end;
  if (strcmp(option, "--memory") == 0) {
    options->memory.paged = strcmp(value, "qmem") == 0;
    if (!options->memory.paged && strcmp(value, "plain") != 0) die("--memory: found '%s', expected plain or qmem", value);
  } else if (strcmp(option, "--budget") == 0) {
    if (!parse_bytes(value, &options->memory.budget)) die("--budget: found '%s', expected a size such as 256M", value);
  } else {
    double *loss = strcmp(option, "--tolerance") == 0 ? &options->memory.tolerance : &options->memory.error_budget;
    *loss = strtod(value, &end);
    if (end == value || *end || !(*loss >= 0 && *loss < 1)) {
      fprintf(stderr, "statevec: %s: found '%s', expected a number from 0 to below 1\n", option, value);
      exit(1);
    }
  }
}

/* Options with a value; false if there is no such option. */
static bool set_value(options_t *options, const char *option, const char *value) {
  if (strcmp(option, "--memory") == 0 || strcmp(option, "--budget") == 0 || strcmp(option, "--tolerance") == 0 ||
      strcmp(option, "--error-budget") == 0)
    set_memory(options, option, value);
  else if (strcmp(option, "--threads") == 0)
    options->threads = (unsigned)number(option, value, 1, 1024);
  else if (strcmp(option, "--shots") == 0)
    options->shots = number(option, value, 0, 1u << 30), options->shots_given = true;
  else if (strcmp(option, "--seed") == 0)
    options->seed = number(option, value, 0, UINT64_MAX);
  else if (strcmp(option, "--probabilities") == 0)
    options->probabilities = number(option, value, 0, 1u << 20);
  else if (strcmp(option, "--dump") == 0)
    options->dump = value;
  else if (strcmp(option, "--fuse-qubits") == 0)
    options->plan.matrix_qubits = (unsigned)number(option, value, 1, MATRIX_MAX_QUBITS);
  else if (strcmp(option, "--partner-qubits") == 0)
    options->plan.partner_qubits = (unsigned)number(option, value, 2, BLOCK_QUBITS - ROW_QUBITS);
  else if (strcmp(option, "--group-qubits") == 0)
    options->plan.group_qubits = (unsigned)number(option, value, 0, GROUP_MAX_QUBITS);
  else
    return false;
  return true;
}

static bool set_flag(options_t *options, const char *option) {
  if (strcmp(option, "--no-final-measure") == 0)
    options->final_measure = false;
  else if (strcmp(option, "--no-fuse") == 0)
    options->plan.fuse = false;
  else if (strcmp(option, "--hints") == 0)
    options->hints = true;
  else if (strcmp(option, "--chunked") == 0)
    options->memory.chunked = options->memory.paged = true;
  else if (strcmp(option, "--stats") == 0)
    options->stats = true;
  else if (strcmp(option, "--progress") == 0)
    options->progress = true;
  else if (strcmp(option, "--progress=always") == 0)
    options->progress = options->progress_always = true;
  else
    return false;
  return true;
}

static options_t read_options(int argc, char **argv) {
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  options_t options = {.plan.fuse = true, .plan.group_qubits = GROUP_MAX_QUBITS, .threads = online > 0 ? (unsigned)online : 1, .final_measure = true, .seed = 1};
  for (int i = 1; i < argc; i++) {
    char *equals = argv[i][0] == '-' ? strchr(argv[i], '=') : NULL;
    if (strcmp(argv[i], "--help") == 0) {
      fputs(usage, stdout);
      exit(0);
    }
    if (argv[i][0] != '-') {
      if (options.file) die("found a second file '%s', expected one", argv[i]);
      options.file = argv[i];
      continue;
    }
    if (set_flag(&options, argv[i])) continue;
    char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (equals) *equals = '\0', value = equals + 1;
    if (!value) die("found '%s' without a value or unknown; --help lists the options", option);
    if (!set_value(&options, option, value)) die("unknown option '%s'; --help lists the options", option);
    if (!equals) i++;
  }
  if (options.memory.chunked && (!options.memory.paged || options.memory.tolerance > 0))
    die("%s", "--chunked goes with --memory qmem, and without --tolerance");
  if (options.memory.error_budget > 0 && !options.memory.chunked) die("%s", "--error-budget goes with --chunked; without it: --tolerance");
  if (!options.file) die("%s", "no file given; --help lists the options");
  return options;
}

/* ---- outcomes ---- */

/* All classical bits as text, the last register first and in each the highest bit first. */
static void spell_bits(const circuit_t *circuit, const unsigned char *bits, char *text) {
  for (size_t r = circuit->num_cregs; r-- > 0;) {
    for (uint32_t i = circuit->cregs[r].size; i-- > 0;) *text++ = bits[circuit->cregs[r].first + i] ? '1' : '0';
    if (r > 0) *text++ = ' ';
  }
  *text = '\0';
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void print_counts(char **texts, size_t shots) {
  qsort(texts, shots, sizeof *texts, by_text);
  for (size_t i = 0, next; i < shots; i = next) {
    for (next = i + 1; next < shots && strcmp(texts[next], texts[i]) == 0;) next++;
    printf("%s  %zu\n", texts[i], next - i);
  }
}

static void final_bits(const circuit_t *circuit, size_t end, uint64_t index, unsigned char *bits) {
  for (size_t i = end; i < circuit->count; i++) bits[circuit->items[i].bit] = index >> circuit->items[i].target[0] & 1;
}

/* ---- a run ---- */

typedef struct {
  const options_t *options;
  circuit_t circuit;
  size_t end;               /* of what is not a final measurement */
  program_t program;
  state_t state;
  engine_t *engine;
  random_t random;
  unsigned char *bits;
  double seconds;
  chunked_work_t work;
} job_t;

static void run_once(job_t *job, bool show) {
  progress_t progress;
  const options_t *options = job->options;
  bool bar = show && options->progress;
  char error[1024];
  progress_start(&progress, bar ? progress_style(options->progress_always, true) : PROGRESS_OFF, options->memory.paged ? "qmem " : "plain",
                 options->memory.chunked ? 0 : job->program.sweeps, job->program.gates);
  run_t run = {.engine = job->engine, .progress = bar ? &progress : NULL, .random = &job->random, .bits = job->bits, .work = &job->work};
  double start = seconds_now();
  if (!program_run(&job->program, &job->state, &run, error, sizeof error)) die("%s", error);
  job->seconds += seconds_now() - start;
  progress_end(&progress);
}

static void run_shots(job_t *job, size_t shots) {
  const circuit_t *circuit = &job->circuit;
  bool again = circuit_collapses(circuit, job->end); /* then no two shots share a state */
  size_t width = circuit->num_bits + circuit->num_cregs + 1;
  char **texts = calloc(shots + 1, sizeof *texts), *storage = malloc((shots + 1) * width);
  uint64_t *index = calloc(shots + 1, sizeof *index);
  if (!texts || !storage || !index) die("%s", "out of memory for the shots");
  if (!again && !measure_sample(job->engine, &job->state, shots, &job->random, index)) die("%s", "out of memory for the shots");
  for (size_t i = 0; i < shots; i++) {
    if (again && i > 0) memset(job->bits, 0, CIRCUIT_MAX_BITS), run_once(job, false);
    if (again && !measure_sample(job->engine, &job->state, 1, &job->random, &index[i])) die("%s", "out of memory for the shots");
    final_bits(circuit, job->end, index[i], job->bits);
    spell_bits(circuit, job->bits, texts[i] = storage + i * width);
  }
  if (circuit->num_bits > 0) print_counts(texts, shots);
  free(texts);
  free(storage);
  free(index);
}

static void print_probabilities(const job_t *job) {
  outcome_t *top = malloc((job->options->probabilities + 1) * sizeof *top);
  if (!top) die("%s", "out of memory for the probabilities");
  size_t count = measure_top(&job->state, top, job->options->probabilities);
  const memory_options_t *memory = &job->options->memory;
  double norm = memory->tolerance > 0 || memory->error_budget > 0 ? measure_norm(job->engine, &job->state) : 1; /* loss changes it */
  for (size_t i = 0; i < count; i++) {
    for (unsigned q = job->state.qubits; q-- > 0;) putchar(top[i].index >> q & 1 ? '1' : '0');
    printf("  %.15g\n", top[i].probability / norm);
  }
  free(top);
}

static void print_stats(job_t *job, unsigned threads) {
  fprintf(stderr, "%u qubits, %s; %zu gates in %zu operations in %zu sweeps, %u threads\n", job->state.qubits,
          bytes_text((double)job->state.bytes), job->program.gates, job->program.operations, job->program.sweeps, threads);
  if (job->state.chunks) fprintf(stderr, "by chunk: %zu visits with %zu sweeps in memory, %zu swaps of qubits\n", job->work.visits, job->work.sweeps, job->work.swaps);
  fprintf(stderr, "%.3f s, norm %.15f\n", job->seconds, measure_norm(job->engine, &job->state));
  memory_stats_t stats;
  if (!job->options->memory.paged || qmem_get_stats(&stats) != MEMORY_STATUS_OK) return;
  fprintf(stderr, "qmem: budget %s, resident %s at most, compressed %s, swapped %s\n", bytes_text((double)stats.budget_bytes),
          bytes_text((double)stats.peak_resident_bytes), bytes_text((double)stats.compressed_bytes), bytes_text((double)stats.swapped_bytes));
  fprintf(stderr, "qmem: %zu page faults, %zu evictions, infidelity spent %.3g\n", stats.page_faults, stats.evictions, stats.error_spent);
}

int main(int argc, char **argv) {
  options_t options = read_options(argc, argv);
  char error[1024];
  job_t job = {.options = &options, .random.state = options.seed, .bits = calloc(1, CIRCUIT_MAX_BITS)};
  if (!job.bits) die("%s", "out of memory");
  if (!qasm_load(options.file, &job.circuit, error, sizeof error)) die("%s", error);
  job.end = circuit_defer_measurements(&job.circuit);
  bool measures = job.end < job.circuit.count;
  if (!options.final_measure) job.circuit.count = job.end;
  if (!program_build(&job.circuit, job.end, &options.plan, &job.program)) die("%s", "out of memory for the plan");
  if (!memory_open(&options.memory, error, sizeof error)) die("%s", error);
  if (!state_create(&job.state, job.circuit.num_qubits, &options.memory, error, sizeof error)) die("%s", error);
  unsigned threads = options.memory.chunked ? options.threads : state_threads(options.threads, &options.memory, options.plan.partner_qubits);
  job.engine = engine_create(threads, options.hints);
  if (!job.engine) die("%s", "cannot start the threads; --threads 1 needs none");
  run_once(&job, true);
  if (options.stats) print_stats(&job, threads);
  bool good = !options.dump || state_dump(&job.state, options.dump, error, sizeof error);
  if (!good) fprintf(stderr, "statevec: %s\n", error);
  if (options.probabilities > 0) print_probabilities(&job);
  size_t shots = options.shots_given ? options.shots : options.final_measure && (measures || circuit_collapses(&job.circuit, job.end));
  if (shots > 0) run_shots(&job, shots);
  engine_destroy(job.engine);
  state_destroy(&job.state);
  memory_close(&options.memory);
  program_free(&job.program);
  circuit_free(&job.circuit);
  free(job.bits);
  return good ? 0 : 1;
}
