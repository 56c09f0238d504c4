/* engine.c: see engine.h. A pool of threads that wait between jobs; blocks are gathered into a thread's own buffer, worked on, scattered. */
#define _POSIX_C_SOURCE 200809L
#include "engine.h"
#include "kernels.h"

#include <qmem.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef void (*job_fn)(engine_t *engine, unsigned thread, void *user);

typedef struct {
  engine_t *engine;
  unsigned thread;
  pthread_t id;
  double *re, *im;          /* one block */
} worker_t;

struct engine {
  unsigned threads;
  bool hints;
  worker_t *workers;        /* [0] is the caller */
  pthread_mutex_t mutex;
  pthread_cond_t start, done;
  size_t job;               /* number of jobs begun */
  unsigned running;
  bool quit;
  job_fn fn;
  void *user;
};

static void *work(void *argument) {
  worker_t *worker = argument;
  engine_t *engine = worker->engine;
  size_t seen = 0;
  pthread_mutex_lock(&engine->mutex);
  for (;;) {
    while (engine->job == seen && !engine->quit) pthread_cond_wait(&engine->start, &engine->mutex);
    if (engine->quit) break;
    seen = engine->job;
    pthread_mutex_unlock(&engine->mutex);
    engine->fn(engine, worker->thread, engine->user);
    pthread_mutex_lock(&engine->mutex);
    if (--engine->running == 0) pthread_cond_signal(&engine->done);
  }
  pthread_mutex_unlock(&engine->mutex);
  return NULL;
}

static void run_job(engine_t *engine, job_fn fn, void *user) {
  pthread_mutex_lock(&engine->mutex);
  engine->fn = fn;
  engine->user = user;
  engine->running = engine->threads - 1;
  engine->job++;
  pthread_cond_broadcast(&engine->start);
  pthread_mutex_unlock(&engine->mutex);
  fn(engine, 0, user);
  pthread_mutex_lock(&engine->mutex);
  while (engine->running > 0) pthread_cond_wait(&engine->done, &engine->mutex);
  pthread_mutex_unlock(&engine->mutex);
}

engine_t *engine_create(unsigned threads, bool hints) {
  engine_t *engine = calloc(1, sizeof *engine);
  if (!engine) return NULL;
  engine->hints = hints;
  engine->workers = calloc(threads, sizeof *engine->workers);
  pthread_mutex_init(&engine->mutex, NULL);
  pthread_cond_init(&engine->start, NULL);
  pthread_cond_init(&engine->done, NULL);
  const size_t half = sizeof(double) << BLOCK_QUBITS;
  for (unsigned i = 0; engine->workers && i < threads; i++) {
    worker_t *worker = &engine->workers[i];
    worker->engine = engine;
    worker->thread = i;
    worker->re = aligned_alloc(64, half);
    worker->im = aligned_alloc(64, half);
    bool good = worker->re && worker->im && (i == 0 || pthread_create(&worker->id, NULL, work, worker) == 0);
    if (!good) {
      free(worker->re);
      free(worker->im);
      break;
    }
    engine->threads = i + 1;
  }
  if (engine->threads == threads) return engine;
  engine_destroy(engine);
  return NULL;
}

void engine_destroy(engine_t *engine) {
  if (!engine) return;
  pthread_mutex_lock(&engine->mutex);
  engine->quit = true;
  pthread_cond_broadcast(&engine->start);
  pthread_mutex_unlock(&engine->mutex);
  for (unsigned i = 0; i < engine->threads; i++) {
    if (i > 0) pthread_join(engine->workers[i].id, NULL);
    free(engine->workers[i].re);
    free(engine->workers[i].im);
  }
  pthread_mutex_destroy(&engine->mutex);
  pthread_cond_destroy(&engine->start);
  pthread_cond_destroy(&engine->done);
  free(engine->workers);
  free(engine);
}

/* ---- a sweep ---- */

typedef struct {
  const view_t *view;
  const sweep_t *sweep;
  progress_t *progress;
  unsigned outer[CIRCUIT_MAX_QUBITS], outer_count; /* the sweep's, as far as the view has them */
  unsigned inner;           /* of them, inside a chunk: blocks of one group of chunks are consecutive */
  bool hints;
  atomic_size_t finished;
} sweep_job_t;

static uint64_t deposit(uint64_t value, const unsigned *qubit, unsigned count) {
  uint64_t index = 0;
  for (unsigned j = 0; j < count; j++) index |= (value >> j & 1) << qubit[j];
  return index;
}

static double *at(const view_t *view, uint64_t index) {
  return view->chunk[index >> view->chunk_qubits] + 2 * (index & ((1ull << view->chunk_qubits) - 1));
}

/* The chunks of the group of blocks that follows `block`, announced before they are touched. */
static void hint_group(const sweep_job_t *job, size_t block) {
  const sweep_t *sweep = job->sweep;
  uint64_t base = job->view->first | deposit(block, job->outer, job->outer_count);
  unsigned low = 0;
  while (low < sweep->block_qubits && sweep->qubit[low] < CHUNK_QUBITS) low++;
  for (uint64_t i = 0; i < 1ull << (sweep->block_qubits - low); i++)
    (void)qmem_prefetch(at(job->view, base | deposit(i, sweep->qubit + low, sweep->block_qubits - low)), (size_t)16 << CHUNK_QUBITS);
}

static void do_block(const sweep_job_t *job, const worker_t *worker, size_t block) {
  const sweep_t *sweep = job->sweep;
  const uint64_t base = job->view->first | deposit(block, job->outer, job->outer_count);
  unsigned run = 0; /* the block's lowest qubits, contiguous in the state */
  while (run < sweep->block_qubits && sweep->qubit[run] == run) run++;
  const unsigned above = sweep->block_qubits - run;
  const size_t length = (size_t)1 << run;
  double *re = worker->re, *im = worker->im;
  for (uint64_t r = 0; r < 1ull << above; r++)
    kernel_split(at(job->view, base | deposit(r, sweep->qubit + run, above)), re + r * length, im + r * length, length);
  for (size_t i = 0; i < sweep->count; i++) kernel_apply(&sweep->operations[i], re, im, sweep->block_qubits, base);
  for (uint64_t r = 0; r < 1ull << above; r++)
    kernel_join(at(job->view, base | deposit(r, sweep->qubit + run, above)), re + r * length, im + r * length, length);
}

static void sweep_part(engine_t *engine, unsigned thread, void *user) {
  sweep_job_t *job = user;
  const size_t blocks = (size_t)1 << job->outer_count, group = (size_t)1 << job->inner, groups = blocks >> job->inner;
  size_t unit = groups >= engine->threads ? group : 1;
  size_t first = blocks / unit * thread / engine->threads * unit, end = blocks / unit * (thread + 1) / engine->threads * unit;
  for (size_t block = first; block < end; block++) {
    if (job->hints && block % group == 0 && block + group < end) hint_group(job, block + group);
    do_block(job, &engine->workers[thread], block);
    size_t finished = atomic_fetch_add_explicit(&job->finished, 1, memory_order_relaxed) + 1;
    if (thread == 0 && job->progress && block % 64 == 0) progress_show(job->progress, (double)finished / (double)blocks);
  }
}

void engine_sweep(engine_t *engine, const view_t *view, const sweep_t *sweep, progress_t *progress) {
  sweep_job_t job = {.view = view, .sweep = sweep, .progress = progress, .hints = engine->hints && view->hints};
  for (unsigned i = 0; i < sweep->outer_count; i++) {
    if (!(view->within >> sweep->outer[i] & 1)) continue;
    job.inner += sweep->outer[i] < CHUNK_QUBITS;
    job.outer[job.outer_count++] = sweep->outer[i];
  }
  run_job(engine, sweep_part, &job);
}

view_t engine_view(state_t *state) {
  return (view_t){.chunk = &state->amplitude, .chunk_qubits = 63, .within = (1ull << state->padded) - 1, .hints = state->paged};
}

/* ---- segments ---- */

typedef struct {
  size_t segments, amplitudes;
  segment_fn fn;
  void *user;
} segment_job_t;

size_t engine_segment_count(const state_t *state) {
  return state->padded > SEGMENT_QUBITS ? (size_t)1 << (state->padded - SEGMENT_QUBITS) : 1;
}

static void segment_part(engine_t *engine, unsigned thread, void *user) {
  const segment_job_t *job = user;
  size_t first = job->segments * thread / engine->threads, end = job->segments * (thread + 1) / engine->threads;
  for (size_t s = first; s < end; s++) job->fn(s, (uint64_t)s * job->amplitudes, job->amplitudes, job->user);
}

void engine_segments(engine_t *engine, const state_t *state, segment_fn fn, void *user) {
  segment_job_t job = {.segments = engine_segment_count(state), .fn = fn, .user = user};
  job.amplitudes = ((size_t)1 << state->padded) / job.segments;
  run_job(engine, segment_part, &job);
}

static void clear_segment(size_t segment, uint64_t first, size_t amplitudes, void *user) {
  (void)segment;
  memset((double *)user + 2 * first, 0, 2 * sizeof(double) * amplitudes);
}

void engine_reset(engine_t *engine, state_t *state) {
  if (!state->zero) engine_segments(engine, state, clear_segment, state->amplitude);
  state->zero = false;
  state->amplitude[0] = 1;
}
