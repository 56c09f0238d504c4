/* needs paged memory */
/* State vectors by chunk from C: every chunk once, pairs, swaps of qubits against a plain model, the way back to logical order. */
#include "check.h"
#include <qmem.h>
#include <quantum_memory.h>
#include <stdint.h>

typedef struct {
  uint32_t qubits;
  int single; /* floats */
  unsigned char *seen; /* by chunk */
  uint64_t visits;
  size_t stop_after; /* 0: never */
  qmem_state_t *state;
} job_t;

static uint64_t seed = 7;

static uint32_t below(uint32_t bound) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(seed >> 33) % bound;
}

static uint64_t logical_of(const uint8_t *logical_qubit, uint32_t qubits, uint64_t physical) {
  uint64_t index = 0;
  uint32_t bit;
  for (bit = 0; bit < qubits; bit++)
    index |= (physical >> bit & 1) << logical_qubit[bit];
  return index;
}

static uint64_t logical(const qmem_chunk_t *chunk, uint32_t qubits, uint64_t physical) {
  return logical_of(chunk->logical_qubit, qubits, physical);
}

/* Exact in a float too: the index's bits spread over real and imaginary part. */
static double real_of(uint64_t index) { return (double)(index & 0xFFFFF) + 0.5; }
static double imag_of(uint64_t index) { return -(double)(index >> 20) - 0.25; }

static void put(const job_t *job, void *at, size_t i, double re, double im) {
  if (job->single)
    ((float *)at)[2 * i] = (float)re, ((float *)at)[2 * i + 1] = (float)im;
  else
    ((double *)at)[2 * i] = re, ((double *)at)[2 * i + 1] = im;
}

static int is(const job_t *job, const void *at, size_t i, double re, double im) {
  if (job->single)
    return ((const float *)at)[2 * i] == (float)re && ((const float *)at)[2 * i + 1] == (float)im;
  return ((const double *)at)[2 * i] == re && ((const double *)at)[2 * i + 1] == im;
}

static memory_status_t write_chunk(const qmem_chunk_t *chunk, void *user) {
  job_t *job = (job_t *)user;
  size_t i;
  CHECK(chunk->b == NULL && chunk->first_b == 0 && chunk->reserved[0] == 0);
  for (i = 0; i < chunk->amplitudes; i++) {
    uint64_t index = logical(chunk, job->qubits, chunk->first_a + i);
    put(job, chunk->a, i, real_of(index), imag_of(index));
  }
  CHECK(__atomic_fetch_add(&job->seen[chunk->first_a / chunk->amplitudes], 1, __ATOMIC_RELAXED) == 0);
  return MEMORY_STATUS_OK;
}

static memory_status_t check_chunk(const qmem_chunk_t *chunk, void *user) {
  job_t *job = (job_t *)user;
  size_t i, wrong = 0;
  for (i = 0; i < chunk->amplitudes; i++) {
    uint64_t index = logical(chunk, job->qubits, chunk->first_a + i);
    wrong += !is(job, chunk->a, i, real_of(index), imag_of(index));
  }
  CHECK(wrong == 0);
  __atomic_fetch_add(&job->visits, 1, __ATOMIC_RELAXED);
  return MEMORY_STATUS_OK;
}

static memory_status_t check_pair(const qmem_chunk_t *chunk, void *user) {
  job_t *job = (job_t *)user;
  uint64_t bit = chunk->first_a ^ chunk->first_b;
  qmem_chunk_t second = *chunk;
  CHECK(chunk->b != NULL && bit != 0 && (bit & (bit - 1)) == 0 && chunk->first_b > chunk->first_a);
  check_chunk(chunk, user);
  second.a = chunk->b;
  second.first_a = chunk->first_b;
  check_chunk(&second, user);
  CHECK(__atomic_fetch_add(&job->seen[chunk->first_a / chunk->amplitudes], 1, __ATOMIC_RELAXED) == 0);
  CHECK(__atomic_fetch_add(&job->seen[chunk->first_b / chunk->amplitudes], 1, __ATOMIC_RELAXED) == 0);
  return MEMORY_STATUS_OK;
}

/* Answers for the qubits that a group may have. */
static memory_status_t no_group(const qmem_group_t *group, void *user) {
  (void)group;
  (void)user;
  return MEMORY_STATUS_DEVICE;
}

/* What a group must be: its chunks differ in the qubits that were asked for, in their order, and each chunk is seen once. */
typedef struct {
  job_t job;
  uint32_t qubit[64];
  size_t count, groups;
} group_job_t;

static memory_status_t check_group(const qmem_group_t *group, void *user) {
  group_job_t *mine = (group_job_t *)user;
  size_t i, j;
  CHECK(group->count == (size_t)1 << mine->count && group->reserved[0] == 0);
  for (i = 0; i < group->count; i++) {
    qmem_chunk_t chunk;
    uint64_t zero = logical_of(group->logical_qubit, mine->job.qubits, group->first[0]), is = logical_of(group->logical_qubit, mine->job.qubits, group->first[i]);
    memset(&chunk, 0, sizeof chunk);
    chunk.a = group->chunk[i];
    chunk.first_a = group->first[i];
    chunk.amplitudes = group->amplitudes;
    chunk.logical_qubit = group->logical_qubit;
    check_chunk(&chunk, &mine->job);
    CHECK(mine->job.seen[group->first[i] / group->amplitudes]++ == 0);
    for (j = 0; j < mine->count; j++)
      zero |= (uint64_t)(i >> j & 1) << mine->qubit[j];
    CHECK(is == zero);
  }
  mine->groups++;
  return MEMORY_STATUS_OK;
}

/* As many qubits outside of chunks as the budget allows, in any order. */
static void groups(qmem_state_t *state, const job_t *job, uint64_t chunks) {
  group_job_t mine;
  uint32_t q, outside[64], count = 0, i;
  memset(&mine, 0, sizeof mine);
  mine.job = *job;
  for (q = 0; q < job->qubits; q++) { /* the library's own word for what is outside */
    memory_status_t status = qmem_state_for_each_group(state, &q, 1, no_group, NULL);
    CHECK(status == MEMORY_STATUS_INVALID_ARGUMENT || status == MEMORY_STATUS_DEVICE);
    if (status == MEMORY_STATUS_DEVICE)
      outside[count++] = q;
  }
  CHECK((uint64_t)1 << count == chunks && qmem_state_group_qubits(state) <= count);
  while (mine.count < qmem_state_group_qubits(state)) {
    i = below(count);
    mine.qubit[mine.count++] = outside[i];
    outside[i] = outside[--count];
  }
  memset(job->seen, 0, chunks);
  STATUS(MEMORY_STATUS_OK, qmem_state_for_each_group(state, mine.qubit, mine.count, check_group, &mine));
  CHECK(mine.groups == chunks >> mine.count);
  for (i = 0; i < chunks; i++)
    CHECK(job->seen[i] == 1);
  if (mine.count > 0) {
    mine.qubit[mine.count] = mine.qubit[0];
    FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "twice", qmem_state_for_each_group(state, mine.qubit, mine.count + 1, check_group, &mine));
  }
}

static memory_status_t give_up(const qmem_chunk_t *chunk, void *user) {
  job_t *job = (job_t *)user;
  void *data;
  (void)chunk;
  STATUS(MEMORY_STATUS_BUSY, qmem_state_data(job->state, &data)); /* its own state */
  STATUS(MEMORY_STATUS_BUSY, qmem_state_swap_qubits(job->state, 0, 1));
  return __atomic_add_fetch(&job->visits, 1, __ATOMIC_RELAXED) > job->stop_after ? MEMORY_STATUS_DEVICE : MEMORY_STATUS_OK;
}

static void swaps(uint32_t qubits, qmem_element_t element, int rounds) {
  qmem_state_t *state = qmem_state_create(qubits, element);
  job_t job;
  void *data = NULL;
  uint32_t local;
  uint64_t chunks, i;
  int round;
  if (!state) {
    CHECK(state != NULL);
    return;
  }
  memset(&job, 0, sizeof job);
  job.qubits = qubits;
  job.single = element == QMEM_ELEMENT_C64;
  local = qmem_state_local_qubits(state);
  CHECK(local == (qubits < (job.single ? 18u : 17u) ? qubits : (job.single ? 18u : 17u)));
  chunks = (uint64_t)1 << (qubits - local);
  job.seen = (unsigned char *)calloc(1, chunks);
  STATUS(MEMORY_STATUS_OK, qmem_state_data(state, &data));
  CHECK(data != NULL && is(&job, data, 0, 1, 0) && is(&job, data, 1, 0, 0)); /* |0...0> */
  STATUS(MEMORY_STATUS_OK, qmem_state_for_each(state, write_chunk, &job));
  for (i = 0; i < chunks; i++)
    CHECK(job.seen[i] == 1);
  for (round = 0; round < rounds; round++) {
    uint32_t x = below(qubits), y = below(qubits);
    STATUS(MEMORY_STATUS_OK, qmem_state_swap_qubits(state, x, y));
    job.visits = 0;
    STATUS(MEMORY_STATUS_OK, qmem_state_for_each(state, check_chunk, &job));
    CHECK(job.visits == chunks);
    if (chunks > 1) {
      int pairs = 0;
      for (x = 0; x < qubits; x++) {
        memory_status_t status;
        memset(job.seen, 0, chunks);
        job.visits = 0;
        status = qmem_state_for_each_pair(state, x, check_pair, &job);
        CHECK(status == MEMORY_STATUS_OK || status == MEMORY_STATUS_INVALID_ARGUMENT);
        CHECK(job.visits == (status == MEMORY_STATUS_OK ? chunks : 0));
        pairs += status == MEMORY_STATUS_OK;
        if (round % 3 != 0 && pairs > 0)
          break;
      }
      CHECK(round % 3 != 0 || pairs == (int)(qubits - local));
    }
    groups(state, &job, chunks);
    if (round % 4 == 3 || round == rounds - 1) {
      size_t wrong = 0;
      STATUS(MEMORY_STATUS_OK, qmem_state_data(state, &data));
      for (i = 0; i < (uint64_t)1 << qubits; i++)
        wrong += !is(&job, data, i, real_of(i), imag_of(i));
      CHECK(wrong == 0);
    }
  }
  free(job.seen);
  qmem_state_destroy(state);
}

static void refusals(void) {
  qmem_state_t *state;
  job_t job;
  memset(&job, 0, sizeof job);
  REFUSED("num_qubits", qmem_state_create(0, QMEM_ELEMENT_C128));
  REFUSED("num_qubits", qmem_state_create(57, QMEM_ELEMENT_C128));
  REFUSED("element", qmem_state_create(4, QMEM_ELEMENT_BYTES));
  REFUSED("complex", qmem_state_create(4, QMEM_ELEMENT_F64));
  CHECK(qmem_state_create(50, QMEM_ELEMENT_C128) == NULL);
  qmem_state_destroy(NULL);
  CHECK(qmem_state_local_qubits(NULL) == 0);
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_state_for_each(NULL, check_chunk, NULL));
  state = qmem_state_create(20, QMEM_ELEMENT_C128);
  CHECK(state != NULL);
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_state_for_each(state, NULL, NULL));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_state_data(state, NULL));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_state_swap_qubits(state, 0, 20));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "inside every chunk", qmem_state_for_each_pair(state, 3, check_chunk, &job));
  {
    uint32_t qubits[] = {17, 18, 3, 20};
    STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_state_for_each_group(state, NULL, 1, no_group, NULL));
    STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_state_for_each_group(state, qubits, 2, NULL, NULL));
    FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "inside every chunk", qmem_state_for_each_group(state, qubits, 3, no_group, NULL));
    FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "outside 0 to 19", qmem_state_for_each_group(state, qubits + 3, 1, no_group, NULL));
    STATUS(MEMORY_STATUS_DEVICE, qmem_state_for_each_group(state, qubits, 2, no_group, NULL));
    STATUS(MEMORY_STATUS_DEVICE, qmem_state_for_each_group(state, NULL, 0, no_group, NULL));
    CHECK(qmem_state_group_qubits(NULL) == 0);
  }
  job.state = state;
  job.stop_after = 2;
  STATUS(MEMORY_STATUS_DEVICE, qmem_state_for_each(state, give_up, &job));
  CHECK(job.visits >= 3 && job.visits <= 8);
  qmem_state_destroy(state);
}

/* Another buffer holds all that may be pinned: a move that cannot begin changes nothing. */
static void no_room(void) {
  const size_t size = (size_t)64 << 20, chunk = (size_t)2 << 20;
  qmem_state_t *state = qmem_state_create(20, QMEM_ELEMENT_C64);
  char *other = (char *)qmem_allocate_streaming(size, chunk);
  size_t pinned = 0, i, wrong = 0;
  void *data = NULL;
  const uint32_t top = 19;
  job_t job;
  memset(&job, 0, sizeof job);
  job.qubits = 20;
  job.single = 1;
  job.seen = (unsigned char *)calloc(1, 4);
  CHECK(state != NULL && other != NULL);
  STATUS(MEMORY_STATUS_OK, qmem_state_for_each(state, write_chunk, &job));
  while (pinned < size && qmem_pin(other + pinned, chunk) == MEMORY_STATUS_OK)
    pinned += chunk;
  CHECK(pinned > 0 && pinned < size);
  STATUS(MEMORY_STATUS_LIMIT, qmem_state_swap_qubits(state, 0, 19));
  STATUS(MEMORY_STATUS_LIMIT, qmem_state_swap_qubits(state, 0, 5));
  STATUS(MEMORY_STATUS_LIMIT, qmem_state_for_each_group(state, &top, 1, no_group, NULL));
  while (pinned > 0)
    STATUS(MEMORY_STATUS_OK, qmem_unpin(other + (pinned -= chunk), chunk));
  STATUS(MEMORY_STATUS_OK, qmem_state_swap_qubits(state, 0, 19));
  STATUS(MEMORY_STATUS_OK, qmem_state_data(state, &data));
  for (i = 0; i < (size_t)1 << 20; i++)
    wrong += !is(&job, data, i, real_of(i), imag_of(i));
  CHECK(wrong == 0);
  free(job.seen);
  qmem_free(other);
  qmem_state_destroy(state);
}

int main(void) {
  memory_allocation_config_t config;
  uint32_t qubits;
  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_QUANTUM;
  config.max_memory = (size_t)32 << 20;
  config.enable_compression = config.enable_deduplication = config.enable_swapping = true;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  refusals();
  no_room();
  for (qubits = 1; qubits <= 16; qubits += 5)
    swaps(qubits, qubits % 2 ? QMEM_ELEMENT_C128 : QMEM_ELEMENT_C64, 8);
  swaps(20, QMEM_ELEMENT_C64, 12);
  swaps(22, QMEM_ELEMENT_C128, 8); /* twice the budget */
  CHECK(stats_now().current_allocated == 0);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  return finish();
}
