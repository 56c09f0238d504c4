/* Handlers of a C++ program that throw: the exception ends in qmem, is destroyed, and aborts the operation; the program goes on. */
#include "check.h"
#include <exception>
#include <quantum_memory.h>
#include <stdexcept>
#include <string>

static int alive, unwound, mode;
struct Failure : std::runtime_error {
  Failure() : std::runtime_error(std::string(1000, 'x')) { alive++; }
  Failure(const Failure &other) : std::runtime_error(other) { alive++; }
  ~Failure() override { alive--; }
};
struct OnTheWay {
  ~OnTheWay() { unwound++; }
};

static void throws() {
  OnTheWay here;
  switch (mode) {
    case 0: throw Failure();
    case 1: throw 7;
    case 2:
      try {
        throw Failure();
      } catch (...) {
        std::rethrow_exception(std::current_exception()); /* a dependent exception */
      }
    default: std::throw_with_nested(Failure());
  }
}

void handle_memory_error(memory_error_t) { throws(); }

static void registered(memory_error_t, memory_status_t, const char *, void *) { throws(); }

static memory_status_t device(void *) { return MEMORY_STATUS_DEVICE; }

int main() {
  memory_allocation_config_t config = {};
  config.max_memory = 16 << 20;
  STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  for (int round = 0; round < 8; round++) {
    mode = round % 4;
    unwound = 0;
    qmem_set_error_handler(round < 4 ? nullptr : registered, nullptr, nullptr, nullptr);
    REFUSED("aborted by the error handler", qmem_allocate(32 << 20, 0));
    CHECK(unwound == 1 && alive == 0 && std::uncaught_exceptions() == 0 && std::current_exception() == nullptr);
    FAILS(MEMORY_STATUS_ABORTED, "device", qmem_run_operation(MEMORY_ERROR_DEVICE, "device", device, nullptr));
    CHECK(unwound == 2 && alive == 0);
    try { /* the program's own exceptions are as ever */
      throw Failure();
    } catch (const std::runtime_error &caught) {
      CHECK(std::string(caught.what()).size() == 1000);
    }
    CHECK(alive == 0);
  }
  return finish();
}
