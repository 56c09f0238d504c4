/* The unwinder's functions that the Rust code refers to, found when one is first called: when an exception passes through, or a
   panic prints its stack. Nothing else unwinds here, and programs without C++ do without a library that would take 100 KiB of
   each. The unwinder that is loaded must answer, since its contexts are its own: a linked one would be another. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

/* Where `name` is in the unwinder. With `only_loaded`, NULL where no unwinder is loaded: loading may allocate. */
static void *unwinder(const char *name, int only_loaded) {
  void *library = dlopen("libgcc_s.so.1", RTLD_LAZY | (only_loaded ? RTLD_NOLOAD : 0));
  void *found = library ? dlsym(library, name) : NULL;
  if (!found && !only_loaded) {
    static const char text[] = "qmem: an exception passes through it, and libgcc_s.so.1, the unwinder, cannot be loaded\n";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) abort();
    abort();
  }
  return found;
}

#define FORWARD(result, name, parameters, arguments)                     \
  result name parameters;                                                \
  result name parameters {                                               \
    return ((result(*) parameters)unwinder(#name, 0))arguments;          \
  }

FORWARD(void *, _Unwind_GetLanguageSpecificData, (void *context), (context))
FORWARD(uintptr_t, _Unwind_GetIP, (void *context), (context))
FORWARD(uintptr_t, _Unwind_GetIPInfo, (void *context, int *before), (context, before))
FORWARD(uintptr_t, _Unwind_GetRegionStart, (void *context), (context))
FORWARD(uintptr_t, _Unwind_GetTextRelBase, (void *context), (context))
FORWARD(uintptr_t, _Unwind_GetDataRelBase, (void *context), (context))
FORWARD(void, _Unwind_SetGR, (void *context, int number, uintptr_t value), (context, number, value))
FORWARD(void, _Unwind_SetIP, (void *context, uintptr_t address), (context, address))
FORWARD(void, _Unwind_DeleteException, (void *exception), (exception))
FORWARD(void, _Unwind_Resume, (void *exception), (exception))

/* A panic's stack is printed as far as it can be without allocating. */
typedef int (*trace_t)(void *context, void *argument);
int _Unwind_Backtrace(trace_t trace, void *argument);
int _Unwind_Backtrace(trace_t trace, void *argument) {
  int (*found)(trace_t, void *) = (int (*)(trace_t, void *))unwinder("_Unwind_Backtrace", 1);
  return found ? found(trace, argument) : 5; /* the end of the stack */
}
