/* C++'s operator new and delete over the preload's malloc, in C so that an exception may pass through: all the forms that
   C++20 has. Called by C++ code of the program and its libraries. Where memory is short, the program's own C++ library is asked,
   which knows the new-handler and how to throw. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

/* memalign takes any power of two; malloc's blocks are aligned to 16. */
extern void *memalign(size_t alignment, size_t size);

/* What a type's name, an alignment and std::nothrow are to the linker. */
typedef size_t align_val_t;
typedef const void *nothrow_t;

/* The C++ library's own function: of the next library in the search order, or of one that was loaded with a plug-in. */
static void *original(const char *name) {
  static const char *const libraries[] = {"libstdc++.so.6", "libc++abi.so.1", "libc++.so.1"};
  void *found = dlsym(RTLD_NEXT, name);
  for (size_t i = 0; !found && i < sizeof libraries / sizeof *libraries; i++) {
    void *library = dlopen(libraries[i], RTLD_NOLOAD | RTLD_LAZY);
    if (library) found = dlsym(library, name);
  }
  if (found) return found;
  static const char text[] = "qmem: operator new has no memory, and there is no C++ library that could throw std::bad_alloc\n";
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0) abort();
  abort();
}

/* new(name, parameters, arguments, attempt): allocates, or leaves the failure to the function that we stand in for. That one calls
   malloc again, then the new-handler, and so on, and throws or returns NULL in the end. */
#define NEW(name, attempt, parameters, ...)                                                                                    \
  __attribute__((visibility("default"))) void *name parameters {                                                              \
    void *block = attempt;                                                                                                     \
    if (__builtin_expect(block != NULL, 1)) return block;                                                                     \
    void *(*other) parameters;                                                                                                 \
    *(void **)&other = original(#name);                                                                                        \
    return other(__VA_ARGS__);                                                                                                 \
  }

NEW(_Znwm, malloc(size), (size_t size), size)                                                                /* new */
NEW(_Znam, malloc(size), (size_t size), size)                                                                /* new[] */
NEW(_ZnwmRKSt9nothrow_t, malloc(size), (size_t size, nothrow_t nothrow), size, nothrow)                      /* new, nothrow */
NEW(_ZnamRKSt9nothrow_t, malloc(size), (size_t size, nothrow_t nothrow), size, nothrow)                      /* new[], nothrow */
NEW(_ZnwmSt11align_val_t, memalign(align, size), (size_t size, align_val_t align), size, align)              /* new, aligned */
NEW(_ZnamSt11align_val_t, memalign(align, size), (size_t size, align_val_t align), size, align)              /* new[], aligned */
NEW(_ZnwmSt11align_val_tRKSt9nothrow_t, memalign(align, size), (size_t size, align_val_t align, nothrow_t nothrow), size, align,
    nothrow)
NEW(_ZnamSt11align_val_tRKSt9nothrow_t, memalign(align, size), (size_t size, align_val_t align, nothrow_t nothrow), size, align,
    nothrow)

#define DELETE(name, ...)                                                                                                      \
  __attribute__((visibility("default"))) void name(void *block, ##__VA_ARGS__) { free(block); }

DELETE(_ZdlPv)                                                                                               /* delete */
DELETE(_ZdaPv)                                                                                               /* delete[] */
DELETE(_ZdlPvRKSt9nothrow_t, nothrow_t nothrow __attribute__((unused)))                                      /* nothrow */
DELETE(_ZdaPvRKSt9nothrow_t, nothrow_t nothrow __attribute__((unused)))
DELETE(_ZdlPvm, size_t size __attribute__((unused)))                                                         /* sized */
DELETE(_ZdaPvm, size_t size __attribute__((unused)))
DELETE(_ZdlPvSt11align_val_t, align_val_t align __attribute__((unused)))                                     /* aligned */
DELETE(_ZdaPvSt11align_val_t, align_val_t align __attribute__((unused)))
DELETE(_ZdlPvSt11align_val_tRKSt9nothrow_t, align_val_t align __attribute__((unused)), nothrow_t nothrow __attribute__((unused)))
DELETE(_ZdaPvSt11align_val_tRKSt9nothrow_t, align_val_t align __attribute__((unused)), nothrow_t nothrow __attribute__((unused)))
DELETE(_ZdlPvmSt11align_val_t, size_t size __attribute__((unused)), align_val_t align __attribute__((unused))) /* sized, aligned */
DELETE(_ZdaPvmSt11align_val_t, size_t size __attribute__((unused)), align_val_t align __attribute__((unused)))
