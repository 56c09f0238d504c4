/* A program that defines both functions itself: its own are called, also by the library, with the .so and with the .a. */
#include "check.h"
#include <quantum_memory.h>
#include <setjmp.h>

static int errors, cleanups, inside;
static memory_error_t last;
static jmp_buf jump;
static bool leave;

void handle_memory_error(memory_error_t error) {
  errors++;
  last = error;
  if (leave)
    longjmp(jump, 1);
  if (!inside) {
    inside = 1;
    CHECK(qmem_allocate(64 << 20, 0) == NULL); /* fails too, and is not dispatched again */
    enable_swapping();
    retry_allocation();
    inside = 0;
  }
}

void cleanup_memory_system(void) {
  cleanups++;
  stop_memory_allocation();
  cleanup_allocation_resources();
}

int main(void) {
  memory_allocation_config_t config;
  memset(&config, 0, sizeof config);
  config.max_memory = 4 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  CHECK(qmem_allocate(32 << 20, 0) == NULL);
  check_message("33554432", __FILE__, __LINE__); /* the refusal's message, not that of what the handler called */
  CHECK(errors == 1 && last == MEMORY_ERROR_ALLOCATION);
  CHECK(qmem_allocate(1, 3) == NULL); /* a bad argument is the caller's mistake, nothing for the handler */
  CHECK(errors == 1);
  cleanup_memory_system();
  CHECK(cleanups == 1);
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  leave = true;
  if (setjmp(jump) == 0) {
    CHECK(qmem_allocate(32 << 20, 0) == NULL);
    CHECK(0); /* the handler jumped */
  }
  leave = false;
  CHECK(errors == 2);
  CHECK(qmem_allocate(32 << 20, 0) == NULL);
  CHECK(errors == 3); /* a jump out of the handler does not switch the dispatch off */
  cleanup_memory_system();
  return finish();
}
