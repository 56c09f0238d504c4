/* main_demo.c: the program demo: a real circuit on a state several times larger than the memory it is given, then the same in plain
   memory, and both compared. A parent process owns the cgroup and removes it whatever happens to the child that computes. */
#define _GNU_SOURCE
#include "cgroup.h"
#include "demo_circuit.h"
#include "program.h"
#include "qasm.h"

#include <qmem.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEADROOM ((size_t)64 << 20) /* for code, stacks, threads, tables: all that is not the state */
#define MAX_SWEEPS 80u

static const char usage[] =
    "usage: demo [options]\n"
    "Runs a circuit on a state larger than the memory it is given, then in plain memory, and compares. Exits with 0 only if memory\n"
    "stayed within the budget and 64 MiB, and both states are the same bit by bit.\n"
    "  --qubits N        8..34 (26: a state of 1 GiB)\n"
    "  --budget SIZE     bytes of the state resident at most (a quarter of the state)\n"
    "  --free-steps N    Trotter steps that leave most amplitudes zero (5)\n"
    "  --field-steps N   Trotter steps that make the state dense (7)\n"
    "  --threads N       default: the processors that are there\n"
    "  --circuit FILE    where the circuit is written (a temporary file)\n";

typedef struct {
  unsigned qubits, free_steps, field_steps, threads;
  size_t budget;
  const char *circuit;
} options_t;

/* What the table shows. */
typedef struct {
  circuit_t circuit;
  program_t program;
  memory_stats_t last;
  double best_ratio;
  size_t most_swapped;
  size_t peak;
  bool by_cgroup;
  double paged_seconds, plain_seconds;
  comparison_t comparison;
} demo_t;

static _Noreturn void die(const char *format, const char *text) {
  fprintf(stderr, "demo: ");
  fprintf(stderr, format, text);
  fputc('\n', stderr);
  exit(1);
}

static unsigned number(const char *option, const char *text, unsigned least, unsigned most) {
  char *end;
  errno = 0;
  unsigned long value = strtoul(text, &end, 10);
  if (end == text || *end || errno || text[0] == '-' || value < least || value > most) {
    fprintf(stderr, "demo: %s: found '%s', expected a whole number from %u to %u\n", option, text, least, most);
    exit(1);
  }
  return (unsigned)value;
}

static options_t read_options(int argc, char **argv) {
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  options_t options = {.qubits = 26, .free_steps = 5, .field_steps = 7, .threads = online > 0 ? (unsigned)online : 1};
  for (int i = 1; i < argc; i += 2) {
    const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
    if (strcmp(option, "--help") == 0) {
      fputs(usage, stdout);
      exit(0);
    }
    if (strcmp(option, "--qubits") == 0)
      options.qubits = number(option, value, 8, 34);
    else if (strcmp(option, "--free-steps") == 0)
      options.free_steps = number(option, value, 0, 1000);
    else if (strcmp(option, "--field-steps") == 0)
      options.field_steps = number(option, value, 0, 1000);
    else if (strcmp(option, "--threads") == 0)
      options.threads = number(option, value, 1, 1024);
    else if (strcmp(option, "--circuit") == 0 && value[0])
      options.circuit = value;
    else if (strcmp(option, "--budget") != 0)
      die("unknown option '%s', or no value; --help lists the options", option);
    else if (!parse_bytes(value, &options.budget) || options.budget == 0)
      die("--budget: found '%s', expected a size such as 256M", value);
  }
  if (options.budget == 0) options.budget = (size_t)4 << options.qubits;
  return options;
}

/* ---- the circuit ---- */

static void load_circuit(const options_t *options, demo_t *demo) {
  char path[64] = "/tmp/qmem-demo-XXXXXX", error[1024];
  const char *file = options->circuit;
  if (!file) {
    int fd = mkstemp(path);
    if (fd < 0) die("cannot make a temporary file: %s", strerror(errno));
    close(fd);
    file = path;
  }
  bool good = demo_circuit_write(file, options->qubits, options->free_steps, options->field_steps, error, sizeof error) &&
              qasm_load(file, &demo->circuit, error, sizeof error);
  if (!options->circuit) unlink(path);
  if (!good) die("%s", error);
  plan_options_t plan = {.fuse = true};
  if (!program_build(&demo->circuit, demo->circuit.count, &plan, &demo->program)) die("%s", "out of memory for the plan");
  printf("circuit    a domain wall of %u spins melts (%u Trotter steps), then a transverse field (%u steps)\n", options->qubits,
         options->free_steps, options->field_steps);
  printf("           OpenQASM 2: %zu gates, fused to %zu operations in %zu sweeps over the state\n", demo->program.gates,
         demo->program.operations, demo->program.sweeps);
  if (demo->program.sweeps > MAX_SWEEPS) printf("           that is more than %u sweeps: it will take a while\n", MAX_SWEEPS);
}

static void print_estimate(const options_t *options) {
  qmem_workload_t workload = {.num_qubits = options->qubits, .bytes_per_amplitude = 16, .copies = 1};
  qmem_estimate_t estimate;
  if (qmem_estimate(&workload, &estimate) != MEMORY_STATUS_OK) die("%s", "qmem_estimate failed");
  printf("estimate   state %s, resident %s, swap %s; fits in memory: %s, in the budget: %s, with swap: %s\n",
         bytes_text((double)estimate.logical_bytes), bytes_text((double)estimate.resident_bytes), bytes_text((double)estimate.swap_bytes),
         estimate.fits_in_memory ? "yes" : "no", estimate.fits_in_budget ? "yes" : "no", estimate.fits_with_swap ? "yes" : "no");
  if (estimate.advice[0]) printf("           %.*s\n", (int)sizeof estimate.advice, estimate.advice);
  fflush(stdout);
}

/* ---- the two runs ---- */

static void sample_stats(void *user) {
  demo_t *demo = user;
  if (qmem_get_stats(&demo->last) != MEMORY_STATUS_OK) return;
  double ratio = demo->last.compressed_bytes ? (double)demo->last.logical_bytes / (double)demo->last.compressed_bytes : 0;
  if (ratio > demo->best_ratio) demo->best_ratio = ratio;
  if (demo->last.swapped_bytes > demo->most_swapped) demo->most_swapped = demo->last.swapped_bytes;
}

static double run_circuit(demo_t *demo, state_t *state, const memory_options_t *memory, unsigned threads) {
  random_t random = {1};
  unsigned char bits[1] = {0}; /* the circuit measures nothing */
  progress_t progress;
  engine_t *engine = engine_create(state_threads(threads, memory, 0), false);
  if (!engine) die("%s", "cannot start the threads");
  progress_start(&progress, progress_style(false, true), memory->paged ? "paged by qmem" : "plain memory ", demo->program.sweeps, demo->program.gates);
  run_t run = {.engine = engine, .progress = &progress, .random = &random, .bits = bits};
  if (memory->paged) run.after = sample_stats, run.user = demo;
  double start = seconds_now();
  char error[1024];
  if (!program_run(&demo->program, state, &run, error, sizeof error)) die("%s", error);
  double seconds = seconds_now() - start;
  progress_end(&progress);
  engine_destroy(engine);
  return seconds;
}

static void run_paged(const options_t *options, const cgroup_t *group, const memory_options_t *memory, demo_t *demo, state_t *state) {
  char error[1024];
  demo->by_cgroup = group->child[0] != '\0';
  if (demo->by_cgroup && !cgroup_enter(group)) die("cannot enter %s", group->child);
  process_peak_reset();
  if (!memory_open(memory, error, sizeof error)) die("%s", error);
  print_estimate(options);
  if (!state_create(state, options->qubits, memory, error, sizeof error)) die("%s", error);
  if (qmem_reset_peaks() != MEMORY_STATUS_OK) die("%s", "qmem_reset_peaks failed");
  demo->paged_seconds = run_circuit(demo, state, memory, options->threads);
  sample_stats(demo);
  if (!demo->by_cgroup)
    demo->peak = process_peak();
  else if (!cgroup_peak(group, &demo->peak) || !cgroup_leave(group))
    die("cannot read the peak of, or leave, %s", group->child);
}

static void print_bytes(const char *name, double bytes) { printf("  %-38s %14s\n", name, bytes_text(bytes)); }

static void print_ratio(const char *name, double ratio) {
  if (ratio > 0)
    printf("  %-38s %13.2fx\n", name, ratio);
  else
    printf("  %-38s %14s\n", name, "none");
}

static bool print_table(const options_t *options, const demo_t *demo, const state_t *state) {
  const memory_stats_t *last = &demo->last;
  size_t allowed = options->budget + HEADROOM;
  bool within = demo->peak <= allowed;
  printf("\n");
  print_bytes("state", (double)state->bytes);
  print_bytes("budget", (double)options->budget);
  print_bytes(demo->by_cgroup ? "peak resident, by the cgroup" : "peak resident, whole process (VmHWM)", (double)demo->peak);
  printf("  %-38s %14s  %s\n", "  allowed: budget and 64 MiB", bytes_text((double)allowed), within ? "kept" : "EXCEEDED");
  print_bytes("peak resident, by qmem", (double)last->peak_resident_bytes);
  print_ratio("logical / compressed bytes, at best", demo->best_ratio);
  print_ratio("logical / compressed bytes, at the end", last->compressed_bytes ? (double)last->logical_bytes / (double)last->compressed_bytes : 0);
  print_bytes("compressed in memory, at the end", (double)last->compressed_bytes);
  print_bytes("swapped, at most", (double)demo->most_swapped);
  print_bytes("swapped, at the end", (double)last->swapped_bytes);
  printf("  %-38s %14zu\n", "page faults", last->page_faults);
  printf("  %-38s %14zu\n", "evictions", last->evictions);
  printf("  %-38s %14.12f\n", "fidelity against plain memory", demo->comparison.fidelity);
  printf("  %-38s %14s\n", "bit-identical", demo->comparison.identical ? "yes" : "NO");
  if (!demo->comparison.identical) printf("  %-38s %14llu\n", "  first different amplitude", (unsigned long long)demo->comparison.first_different);
  printf("  %-38s %12.2f s\n", "time paged", demo->paged_seconds);
  printf("  %-38s %12.2f s\n", "time plain", demo->plain_seconds);
  printf("  %-38s %13.2fx\n", "time ratio", demo->paged_seconds / demo->plain_seconds);
  return within && demo->comparison.identical;
}

static int compute(const options_t *options, const cgroup_t *group, demo_t *demo) {
  char error[1024];
  memory_options_t paged_memory = {.paged = true, .budget = options->budget}, plain_memory = {0};
  state_t paged, plain;
  run_paged(options, group, &paged_memory, demo, &paged);
  if (!state_create(&plain, options->qubits, &plain_memory, error, sizeof error)) die("%s", error);
  demo->plain_seconds = run_circuit(demo, &plain, &plain_memory, options->threads);
  engine_t *engine = engine_create(state_threads(options->threads, &paged_memory, 0), false);
  if (!engine || !measure_compare(engine, &paged, &plain, &demo->comparison)) die("%s", "out of memory to compare");
  engine_destroy(engine);
  bool good = print_table(options, demo, &paged);
  state_destroy(&plain);
  state_destroy(&paged);
  memory_close(&paged_memory);
  program_free(&demo->program);
  circuit_free(&demo->circuit);
  return good ? 0 : 1;
}

/* ---- the parent ---- */

static volatile sig_atomic_t child_id, caught;

static void pass_on(int number) {
  caught = number;
  if (child_id > 0) kill((pid_t)child_id, number);
}

/* Exit status of the demo once the child has ended. */
static int judge(int status, const cgroup_t *group) {
  if (caught) fprintf(stderr, "\ndemo: interrupted\n");
  if (WIFEXITED(status)) return caught ? 128 + caught : WEXITSTATUS(status);
  if (!caught)
    fprintf(stderr, "\ndemo: the computing process was ended by signal %d (%s)%s\n", WTERMSIG(status), strsignal(WTERMSIG(status)),
            WTERMSIG(status) == SIGKILL && group->child[0] ? ": it went over the limit of its cgroup" : "");
  return 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
  options_t options = read_options(argc, argv);
  static demo_t demo;
  cgroup_t group;
  char why[CGROUP_PATH + 128];
  load_circuit(&options, &demo);
  struct sigaction action = {.sa_handler = pass_on};
  const int signals[] = {SIGINT, SIGTERM, SIGHUP};
  for (size_t i = 0; i < 3; i++) sigaction(signals[i], &action, NULL);
  if (cgroup_make(&group, options.budget + HEADROOM, why, sizeof why))
    printf("memory     a cgroup of %s bounds the paged run (budget %s and 64 MiB)\n", bytes_text((double)(options.budget + HEADROOM)),
           bytes_text((double)options.budget));
  else
    printf("memory     %s: the peak is VmHWM of the process, which nothing enforces\n", why);
  fflush(stdout);
  pid_t parent = getpid(), child = caught ? -1 : fork();
  if (child == 0) {
    for (size_t i = 0; i < 3; i++) signal(signals[i], SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    exit(compute(&options, &group, &demo));
  }
  int status = 1 << 8;
  child_id = child;
  if (caught && child > 0) kill(child, caught);
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  child_id = 0;
  int result = judge(status, &group);
  cgroup_remove(&group);
  program_free(&demo.program);
  circuit_free(&demo.circuit);
  return result;
}
