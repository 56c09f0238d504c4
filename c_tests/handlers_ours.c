/* A program that defines neither handle_memory_error nor cleanup_memory_system: qmem's own are there. */
#include "check.h"
#include <quantum_memory.h>
#include <unistd.h>

int main(void) {
  memory_allocation_config_t config;
  char text[4096];
  ssize_t n;
  int pipes[2], saved = dup(2);
  memset(&config, 0, sizeof config);
  config.max_memory = 4 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  if (pipe(pipes) != 0)
    return 2;
  dup2(pipes[1], 2);
  CHECK(qmem_allocate(64 << 20, 0) == NULL); /* one line */
  handle_memory_error(MEMORY_ERROR_CACHE);   /* one line */
  log_memory_error(MEMORY_ERROR_IO);         /* one line */
  dup2(saved, 2);
  n = read(pipes[0], text, sizeof text - 1);
  text[n > 0 ? n : 0] = 0;
  CHECK(strncmp(text, "qmem: MEMORY_ERROR_ALLOCATION: ", 31) == 0);
  CHECK(strstr(text, "\nqmem: MEMORY_ERROR_CACHE: ") != NULL && strstr(text, "\nqmem: MEMORY_ERROR_IO: ") != NULL);
  cleanup_memory_system();
  REFUSED("cleaned up", qmem_allocate(1, 0));
  return finish();
}
