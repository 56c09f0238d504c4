/* What cleanup reports: one line per leftover with kind, address and size, bounded, then a sum; blocks with several references and
   tracked blocks too. And that what was given before initialisation is not touched. */
#include "check.h"
#include <quantum_memory.h>
#include <stdint.h>
#include <unistd.h>

static int lines_with(const char *text, const char *word) {
  int n = 0;
  for (; (text = strstr(text, word)) != NULL; text++)
    n++;
  return n;
}

int main(void) {
  static char text[1 << 16], foreign[100];
  memory_allocation_config_t config;
  void *early = qmem_allocate(64, 0), *blocks[40], *shared;
  char want[64];
  int pipes[2], saved = dup(2), i;
  ssize_t n;
  memset(&config, 0, sizeof config);
  config.max_memory = 64 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  for (i = 0; i < 40; i++)
    blocks[i] = qmem_allocate(1000, 0);
  shared = qmem_retain(blocks[7]);
  CHECK(shared == blocks[7] && qmem_unified_interface()->track_allocation(foreign, sizeof foreign));
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  if (pipe(pipes) != 0)
    return 2;
  dup2(pipes[1], 2);
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  dup2(saved, 2);
  n = read(pipes[0], text, sizeof text - 1);
  text[n > 0 ? n : 0] = 0;
  CHECK(lines_with(text, "leak: heap block of 1000 bytes at 0x") == 32);
  CHECK(lines_with(text, "leak: and 8 more blocks of 8000 bytes together") == 1);
  snprintf(want, sizeof want, "leak: tracked block of 100 bytes at %p", (void *)foreign);
  CHECK(lines_with(text, want) == 1);
  CHECK(lines_with(text, "\n") == 34);
  for (i = 0; i < 40; i++)
    CHECK(qmem_kind(blocks[i]) == QMEM_MEMORY_UNKNOWN);
  CHECK(qmem_kind(foreign) == QMEM_MEMORY_UNKNOWN && qmem_kind(early) == QMEM_MEMORY_HEAP);
  CHECK(stats_now().current_allocated == 64);
  qmem_free(early);
  CHECK(stats_now().current_allocated == 0);
  return finish();
}
