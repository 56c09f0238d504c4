/* state.c: see state.h. The only file that allocates a state; all that qmem needs of a program is here and in one hint in engine.c. */
#define _GNU_SOURCE
#include "state.h"
#include "plan.h"

#include <qmem.h>
#include <quantum_memory.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK_BYTES ((size_t)16 << CHUNK_QUBITS)

static bool say(char *error, size_t cap, const char *what, memory_status_t status) {
  char words[512] = "";
  qmem_last_error(words, sizeof words);
  snprintf(error, cap, "%s: %s%s%s", what, qmem_status_string(status), words[0] ? ": " : "", words);
  return false;
}

bool memory_open(const memory_options_t *options, char *error, size_t cap) {
  if (!options->paged) return true;
  memory_allocation_config_t config = {
      .allocation_type = ALLOC_QUANTUM,
      .strategy = STRATEGY_ADAPTIVE,
      .max_memory = options->budget,
      .enable_compression = true,
      .enable_deduplication = true,
      .enable_swapping = true,
  };
  memory_status_t status = initialize_memory_allocation(&config);
  if (status == MEMORY_STATUS_OK) status = qmem_set_error_budget(options->error_budget);
  return status == MEMORY_STATUS_OK || say(error, cap, "qmem could not start", status);
}

void memory_close(const memory_options_t *options) {
  if (!options->paged) return;
  stop_memory_allocation();
  cleanup_allocation_resources();
}

bool state_create(state_t *state, unsigned qubits, const memory_options_t *options, char *error, size_t cap) {
  memset(state, 0, sizeof *state);
  state->qubits = qubits;
  state->padded = qubits < STATE_MIN_QUBITS ? STATE_MIN_QUBITS : qubits;
  state->bytes = (size_t)16 << state->padded;
  state->paged = options->paged;
  if (options->chunked) {
    void *data = NULL;
    state->chunks = qmem_state_create(state->padded, QMEM_ELEMENT_C128);
    if (state->chunks && qmem_state_data(state->chunks, &data) == MEMORY_STATUS_OK) state->amplitude = data;
    state->zero = true;
  } else if (options->paged && options->tolerance > 0) {
    state->amplitude = qmem_allocate_hierarchical(state->bytes, options->tolerance);
  } else if (options->paged) {
    state->amplitude = qmem_allocate_zeroed(state->bytes, CHUNK_BYTES);
    state->zero = true;
  } else {
    size_t alignment = state->bytes < CHUNK_BYTES ? 64 : CHUNK_BYTES;
    state->amplitude = aligned_alloc(alignment, state->bytes);
    if (state->amplitude && alignment == CHUNK_BYTES) madvise(state->amplitude, state->bytes, MADV_HUGEPAGE);
  }
  if (state->amplitude) return true;
  char what[128];
  snprintf(what, sizeof what, "a state of %u qubits needs %s", qubits, bytes_text((double)state->bytes));
  if (options->paged) return say(error, cap, what, MEMORY_STATUS_OUT_OF_MEMORY);
  snprintf(error, cap, "%s: %s; --memory qmem --budget SIZE makes do with less", what, strerror(errno));
  return false;
}

void state_destroy(state_t *state) {
  if (state->chunks)
    qmem_state_destroy(state->chunks);
  else if (state->paged)
    qmem_free(state->amplitude);
  else
    free(state->amplitude);
  state->amplitude = NULL;
}

bool state_dump(const state_t *state, const char *path, char *error, size_t cap) {
  static char bounce[1 << 20]; /* the kernel may not read pages that are not resident */
  FILE *file = fopen(path, "wb");
  bool good = file != NULL;
  size_t total = (size_t)16 << state->qubits;
  for (size_t at = 0; good && at < total; at += sizeof bounce) {
    size_t part = total - at < sizeof bounce ? total - at : sizeof bounce;
    memcpy(bounce, (const char *)state->amplitude + at, part);
    good = fwrite(bounce, 1, part, file) == part;
  }
  if (!good) snprintf(error, cap, "%s: cannot be written: %s", path, strerror(errno));
  if (file && fclose(file) != 0 && good) {
    snprintf(error, cap, "%s: cannot be written: %s", path, strerror(errno));
    good = false;
  }
  return good;
}

unsigned state_threads(unsigned wanted, const memory_options_t *options, unsigned partner_qubits) {
  if (!options->paged || options->budget == 0) return wanted;
  size_t group = CHUNK_BYTES << (partner_qubits ? partner_qubits : PARTNER_QUBITS);
  size_t room = options->budget / 4 / group; /* the rest is for what is read ahead and for compressed chunks */
  if (room < 1) room = 1;
  return wanted < room ? wanted : (unsigned)room;
}

bool parse_bytes(const char *text, size_t *bytes) {
  char *end;
  errno = 0;
  double value = strtod(text, &end);
  if (end == text || errno || !(value >= 0)) return false;
  static const char units[] = "KMGT";
  for (int i = 0; i < 4 && *end; i++)
    if ((*end & ~32) == units[i]) {
      for (int j = 0; j <= i; j++) value *= 1024;
      end++;
      if (*end == 'i') end++;
      break;
    }
  if (*end == 'B') end++;
  if (*end || value > 9e15) return false;
  *bytes = (size_t)value;
  return true;
}

const char *bytes_text(double bytes) {
  static char buffers[4][32];
  static unsigned next;
  static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  char *buffer = buffers[next++ % 4];
  int unit = 0;
  while (bytes >= 1024 && unit < 5) bytes /= 1024, unit++;
  snprintf(buffer, sizeof buffers[0], unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
  return buffer;
}
