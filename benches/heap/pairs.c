/* Instructions of a malloc and free pair: benches/heap/instructions runs this under callgrind for two numbers of rounds and takes
   the difference. `heap_pairs SIZE ROUNDS malloc|empty`: "empty" calls functions that do nothing, for the cost of calls and loop. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OTHERS = 1000 };

/* An instruction beside the ret. */
static __attribute__((noinline)) void *no_malloc(size_t size) {
  __asm__ volatile("");
  return (void *)size;
}
static __attribute__((noinline)) void no_free(void *block) { __asm__ volatile("" : : "r"(block)); }

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "usage: heap_pairs SIZE ROUNDS malloc|empty\n"), 2;
  size_t size = strtoul(argv[1], NULL, 0), rounds = strtoul(argv[2], NULL, 0);
  int real = strcmp(argv[3], "malloc") == 0;
  void *(*volatile take)(size_t) = real ? malloc : no_malloc;
  void (*volatile give)(void *) = real ? free : no_free;
  static void *others[OTHERS];
  for (int i = 0; i < OTHERS; i++) others[i] = malloc(size);
  void *(*take_now)(size_t) = take;
  void (*give_now)(void *) = give;
  for (size_t i = 0; i < rounds; i++) {
    void *block = take_now(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    give_now(block);
  }
  for (int i = 0; i < OTHERS; i++) free(others[i]);
  return 0;
}
