/* needs paged memory */
/* Names, snapshots, checkpoints from C: what is saved is restored, bad arguments are told. */
#include "check.h"
#include <qmem.h>
#include <quantum_memory.h>
#include <stdio.h>
#include <unistd.h>

#define COUNT ((size_t)3 << 20)

int main(void) {
  memory_allocation_config_t config;
  char path[64], why[512];
  double *psi, *copy;
  void *restored = NULL;
  size_t size = 0, i;
  int on_heap = 0;

  memset(&config, 0, sizeof config);
  config.allocation_type = ALLOC_QUANTUM;
  config.max_memory = (size_t)64 << 20;
  config.enable_compression = config.enable_swapping = true;
  snprintf(path, sizeof path, "qmem-checkpoint-test-%d", (int)getpid());
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_checkpoint(NULL, path));
  psi = (double *)qmem_allocate(COUNT * sizeof *psi, 0);
  CHECK(psi != NULL);
  for (i = 0; i < COUNT; i++)
    psi[i] = (double)i / 3;
  STATUS(MEMORY_STATUS_OK, qmem_set_name(psi, "psi"));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_set_name(NULL, "psi"));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_set_name(psi, NULL));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_set_name(&on_heap, "x"));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_checkpoint(psi, NULL));
  STATUS(MEMORY_STATUS_IO, qmem_checkpoint(psi, "/no/such/folder/x"));
  STATUS(MEMORY_STATUS_OK, qmem_checkpoint(psi, path));
  copy = (double *)qmem_snapshot(psi);
  CHECK(copy != NULL && copy != psi);
  CHECK(qmem_snapshot(&on_heap) == NULL && qmem_last_error(why, sizeof why) > 0);
  for (i = 0; i < COUNT; i++)
    psi[i] = -1;
  for (i = 0; i < COUNT; i++)
    CHECK(copy[i] == (double)i / 3);
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_restore(path, "phi", &restored, &size));
  STATUS(MEMORY_STATUS_NOT_FOUND, qmem_restore("/no/such/file", NULL, &restored, &size));
  STATUS(MEMORY_STATUS_INVALID_ARGUMENT, qmem_restore(path, "psi", NULL, &size));
  CHECK(restored == NULL);
  STATUS(MEMORY_STATUS_OK, qmem_restore(path, "psi", &restored, NULL));
  qmem_free(restored);
  STATUS(MEMORY_STATUS_OK, qmem_restore(path, NULL, &restored, &size));
  CHECK(size == COUNT * sizeof *psi && qmem_kind(restored) == QMEM_MEMORY_PAGED);
  for (i = 0; i < COUNT; i++)
    CHECK(((double *)restored)[i] == (double)i / 3);
  unlink(path);
  qmem_free(restored);
  qmem_free(copy);
  qmem_free(psi);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  return finish();
}
