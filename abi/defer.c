/* One process, one qmem: every function that libqmem.so and libqmem.a export is a jump through a slot. The slots lead to the
   library's own functions, unless libqmem_preload.so is in the process: then to the preload's, so that a program that is linked
   and preloaded has one registry of pointers, one budget and one pager. Compiled by tools/link into both libraries (in which the
   library's own functions are called qmem_own_NAME); it writes functions.inc, a line FUNCTION(NAME) for each. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

#define HIDDEN __attribute__((visibility("hidden"), used))

#if defined __x86_64__
#define JUMP(name) "endbr64\n\tjmp *qmem_slot_" #name "(%rip)\n"
#elif defined __aarch64__
#define JUMP(name) "bti c\n\tadrp x16, qmem_slot_" #name "\n\tldr x16, [x16, :lo12:qmem_slot_" #name "]\n\tbr x16\n"
#else
#error "defer.c has no jump for this architecture"
#endif

#define DEFINE(binding, name)                                                                                                  \
  HIDDEN extern void qmem_own_##name(void);                                                                                    \
  HIDDEN void (*qmem_slot_##name)(void) = qmem_own_##name;                                                                     \
  __asm__(".pushsection .text." #name ",\"ax\",@progbits\n" binding " " #name "\n.type " #name ", @function\n.balign 16\n" #name    \
          ":\n\t" JUMP(name) ".size " #name ", . - " #name "\n.popsection\n");

#define FUNCTION(name) DEFINE(".globl", name)
/* A program may define this one itself. */
#define WEAK_FUNCTION(name) DEFINE(".weak", name)
#include "functions.inc"
#undef FUNCTION
#undef WEAK_FUNCTION

extern void handle_memory_error(int error);
HIDDEN extern void qmem_own_default_handler(int error);

/* What the library's own code calls when an operation fails ... */
HIDDEN void qmem_own_handle_memory_error(int error) { handle_memory_error(error); }
/* ... which a program may define itself; if it does not, a record of the failure. */
static void (*default_slot)(int) = qmem_own_default_handler;
static void default_handler(int error) { default_slot(error); }
__attribute__((weak, visibility("default"), alias("default_handler"))) void handle_memory_error(int error);

typedef struct {
  const char *name;
  void (**slot)(void);
} slot_t;

static const slot_t slots[] = {
#define FUNCTION(name) {#name, &qmem_slot_##name},
#define WEAK_FUNCTION FUNCTION
#include "functions.inc"
};
#define COUNT (sizeof slots / sizeof *slots)

/* Before the program's own constructors: all slots, or none if the preload lacks a function. */
__attribute__((constructor(101))) static void defer_to_preload(void) {
  Dl_info info;
  void *found[COUNT], *adopt = dlsym(RTLD_DEFAULT, "qmem_preload_adopt_handler");
  if (!adopt || !dladdr(adopt, &info)) return;
  void *preload = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  for (size_t i = 0; i < COUNT; i++) {
    found[i] = preload ? dlvsym(preload, slots[i].name, "QMEM_0") : NULL;
    if (!found[i]) {
      fprintf(stderr, "qmem: %s has no %s: it is older than the library that this program is linked with; both work on their own\n",
              info.dli_fname, slots[i].name);
      return;
    }
  }
  for (size_t i = 0; i < COUNT; i++) *(void **)slots[i].slot = found[i];
  *(void **)&default_slot = dlvsym(preload, "handle_memory_error", "QMEM_0");
  if (handle_memory_error == default_handler) return;
  void (*adopt_handler)(void (*)(int));
  *(void **)&adopt_handler = adopt;
  adopt_handler(handle_memory_error);
}
