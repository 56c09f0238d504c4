/* needs paged memory */
/* The structs of the refactoring plan: every function pointer of the interface and every field of the pool's config, with
   initialize_unified_memory alone. */
#include "check.h"
#include <quantum_memory.h>

#define MIB ((size_t)1 << 20)

static void every_function(unified_memory_interface_t *memory) {
  size_t dimensions[3] = {4, 8, 64}, i;
  memory_stats_t stats;
  double *block = (double *)memory->allocate(1000 * sizeof(double), 64), *grid, *state, *stream;
  char *foreign = (char *)malloc(4096);
  for (i = 0; i < 1000; i++)
    block[i] = (double)i;
  block = (double *)memory->realloc(block, 100000 * sizeof(double));
  for (i = 0; i < 1000; i++)
    CHECK(block[i] == (double)i);
  grid = (double *)memory->allocate_geometric(dimensions, 3);
  CHECK(grid != NULL && qmem_usable_size(grid) >= 4 * 8 * 64 * 16);
  state = (double *)memory->allocate_hierarchical(8 * MIB, 1e-6);
  stream = (double *)memory->allocate_streaming(16 * MIB, 4 * MIB);
  CHECK(state != NULL && stream != NULL);
  CHECK(qmem_kind(state) == QMEM_MEMORY_PAGED && qmem_kind(stream) == QMEM_MEMORY_PAGED);
  if (state != NULL && stream != NULL) {
    for (i = 0; i < MIB; i++)
      state[i] = (double)i;
    for (i = 0; i < 2 * MIB; i++)
      stream[i] = -(double)i;
    for (i = 0; i < MIB; i += 511)
      CHECK(state[i] == (double)i && stream[2 * i] == -(double)(2 * i));
  }
  CHECK(memory->track_allocation(foreign, 4096));
  memory->get_stats(&stats);
  CHECK(stats.num_allocations >= 5 && stats.current_allocated >= 24 * MIB + 4096 && stats.logical_bytes >= 24 * MIB);
  CHECK(stats.peak_allocated >= stats.current_allocated && stats.largest_allocation == 16 * MIB);
  CHECK(memory->untrack_allocation(foreign));
  free(foreign);
  memory->free(block);
  memory->free(grid);
  memory->free(state);
  memory->free(stream);
  memory->free(NULL);
  memory->get_stats(&stats);
  CHECK(stats.num_frees == stats.num_allocations && stats.current_allocated == 0);
}

int main(void) {
  unified_memory_interface_t *memory = qmem_unified_interface();
  unified_pool_config_t config = {
      .initial_size = 8 * MIB,
      .max_size = 64 * MIB,
      .enable_growth = true,
      .use_geometric_layout = true,
      .enable_streaming = true,
      .chunk_size = 1 * MIB,
      .compression_tolerance = 1e-6,
  };
  tree_tensor_network_t *network;
  STATUS(MEMORY_STATUS_OK, initialize_unified_memory(&config));
  every_function(memory);
  network = create_tree_tensor_network(8, 16, 1e-6);
  if (network != NULL) {
    CHECK(network->root == NULL || network->num_nodes > 0);
    CHECK(network->max_rank == 16 && network->num_qubits == 8 && network->tolerance == 1e-6 && network->memory != NULL);
    CHECK(network->metrics.num_contractions == 0);
    destroy_tree_tensor_network(network);
  } else {
    check_message("not in this version", __FILE__, __LINE__);
  }
  STATUS(MEMORY_STATUS_OK, stop_unified_memory());
  STATUS(MEMORY_STATUS_OK, cleanup_unified_memory());
  return finish();
}
