/* Allocations before the preload's own constructor and after its destructor: a library preloaded behind it (-DLIBRARY), whose
   constructors therefore run first and destructors last, and a program that sees that its blocks were good. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef LIBRARY
char *early_block;
static char *large;
__attribute__((constructor(101))) static void begin(void) {
  early_block = strdup("allocated before main");
  large = malloc(64 << 20); /* a budget is not in force yet */
  memset(large, 1, 1 << 20);
  for (int i = 0; i < 1000; i++) free(malloc((size_t)i * 100));
}
__attribute__((destructor(101))) static void end(void) {
  free(large);
  char *late = malloc(100000);
  memset(late, 1, 100000);
  free(late);
  fputs("ended in order\n", stdout);
  fflush(stdout);
}
#else
extern char *early_block;
static void at_exit(void) { free(malloc(1234)); }
int main(void) {
  if (strcmp(early_block, "allocated before main") != 0) return 1;
  early_block = realloc(early_block, 100000);
  int good = strcmp(early_block, "allocated before main") == 0;
  free(early_block);
  atexit(at_exit);
  return !good;
}
#endif
