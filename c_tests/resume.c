/* needs paged memory */
/* A simulator's loop with a tick per gate and a checkpoint every 100 ticks, killed again and again and each time resumed by a new
   process from the newest checkpoint: the amplitudes at the end are those of a run that nobody disturbed, bit by bit. */
#include "check.h"
#include <qmem.h>
#include <quantum_memory.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { QUBITS = 21, GATES = 500, EVERY = 100, KILLS = 3 };
static const size_t COUNT = (size_t)1 << QUBITS;
static char directory[64];

/* Gate number `gate`: a rotation by an angle of its own, on a qubit and two halves that its number chooses. */
static void apply(double *state, unsigned gate) {
  size_t stride = (size_t)2 << gate * 7 % (QUBITS - 1), i, j;
  double t = (double)(gate * 2654435761u % 1000) / 1000, s = 2 * t / (1 + t * t), c = (1 - t * t) / (1 + t * t);
  for (i = 0; i < 2 * COUNT; i += 2 * stride)
    for (j = i; j < i + stride; j++) {
      double a = state[j], b = state[j + stride];
      state[j] = c * a - s * b;
      state[j + stride] = s * a + c * b;
    }
}

/* Where the number of the next gate is kept: behind the amplitudes, so that it is saved with them. */
static unsigned *next_gate(double *state) { return (unsigned *)(state + 2 * COUNT); }

/* The state of the newer of the two checkpoints; NULL: there is none. */
static double *resume(void) {
  char path[128];
  double *newest = NULL;
  unsigned n;
  for (n = 0; n < 2; n++) {
    void *buffer = NULL;
    snprintf(path, sizeof path, "%s/qmem-checkpoint.%u", directory, n);
    if (qmem_restore(path, "psi", &buffer, NULL) != MEMORY_STATUS_OK)
      continue;
    if (newest && *next_gate(newest) > *next_gate((double *)buffer)) {
      qmem_free(buffer);
    } else {
      qmem_free(newest);
      newest = (double *)buffer;
    }
  }
  return newest;
}

/* Runs the circuit to its end; tells where it began and what came out. */
static void simulate(int out) {
  memory_allocation_config_t config;
  recovery_config_t recovery;
  double *state;
  unsigned long long told[2];
  size_t i;
  memset(&config, 0, sizeof config);
  memset(&recovery, 0, sizeof recovery);
  config.allocation_type = ALLOC_QUANTUM;
  config.max_memory = (size_t)40 << 20; /* of a state of 32 MiB, and of two when it is resumed */
  config.enable_compression = config.enable_swapping = true;
  recovery.checkpoint_interval = EVERY;
  setenv("QMEM_CHECKPOINT_DIR", directory, 1);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  state = resume();
  if (!state) {
    state = (double *)qmem_allocate(COUNT * 16 + sizeof(unsigned), 0);
    CHECK(state != NULL);
    state[0] = 1;
  }
  STATUS(MEMORY_STATUS_OK, qmem_set_name(state, "psi"));
  told[0] = *next_gate(state);
  STATUS(MEMORY_STATUS_OK, initialize_memory_recovery(&recovery));
  while (*next_gate(state) < GATES) {
    apply(state, *next_gate(state));
    *next_gate(state) += 1;
    STATUS(MEMORY_STATUS_OK, qmem_tick());
  }
  for (told[1] = 0, i = 0; i < 2 * COUNT; i++) {
    unsigned long long bits;
    memcpy(&bits, &state[i], sizeof bits);
    told[1] = (told[1] ^ bits) * 0x9E3779B97F4A7C15ull;
  }
  CHECK(write(out, told, sizeof told) == (ssize_t)sizeof told);
  _exit(finish());
}

/* A process that simulates, killed after so many milliseconds (0: never). False: it was killed before its end. */
static bool run(long milliseconds, unsigned long long *told) {
  struct timespec wait = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  int ends[2], status = 0;
  pid_t child;
  bool whole;
  CHECK(pipe(ends) == 0);
  child = fork();
  if (child == 0)
    simulate(ends[1]);
  close(ends[1]);
  if (milliseconds > 0) {
    nanosleep(&wait, NULL);
    kill(child, SIGKILL);
  }
  whole = read(ends[0], told, 2 * sizeof *told) == (ssize_t)(2 * sizeof *told);
  close(ends[0]);
  waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status) ? milliseconds > 0 && WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
  return whole;
}

static void remove_checkpoints(void) {
  static const char *const names[] = {"0", "1", "0.new", "1.new"};
  char path[128];
  size_t n;
  for (n = 0; n < 4; n++) {
    snprintf(path, sizeof path, "%s/qmem-checkpoint.%s", directory, names[n]);
    unlink(path);
  }
}

int main(void) {
  unsigned long long plain[2], resumed[2];
  int kills = 0;
  long undisturbed;
  struct timespec begin, end;
  snprintf(directory, sizeof directory, "qmem-resume-%d", (int)getpid());
  CHECK(mkdir(directory, 0700) == 0);
  clock_gettime(CLOCK_MONOTONIC, &begin);
  CHECK(run(0, plain) && plain[0] == 0);
  clock_gettime(CLOCK_MONOTONIC, &end);
  undisturbed = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
  remove_checkpoints();
  /* Each of them comes as far as a checkpoint, unless the machine is much slower than before. */
  while (kills < KILLS && !run(undisturbed * (4 + kills) / 12 + 1, resumed))
    kills++;
  if (kills == KILLS)
    CHECK(run(0, resumed));
  printf("killed %d times, the last process went on with gate %llu of %d\n", kills, resumed[0], GATES);
  CHECK(resumed[0] % EVERY == 0 && resumed[1] == plain[1]);
  remove_checkpoints();
  CHECK(rmdir(directory) == 0);
  if (resumed[0] == 0 && finish() == 0)
    return skip("no checkpoint was complete when the process was killed");
  return finish();
}
