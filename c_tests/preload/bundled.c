/* Programs and libraries that bring an allocator along. Compiled three ways:
   -DLIBRARY   a library with a private allocator, which hands out blocks that only its own free knows, and a free that it exports;
   -DPROGRAM   a program that defines malloc, calloc, realloc and free itself: they win over the preload's;
   neither     a program that frees the library's blocks through the free that it sees. */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#if defined LIBRARY || defined PROGRAM
static char *arena, *top;
static int freed;

static void *bump(size_t size) {
  if (!arena) arena = top = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  size_t *block = (size_t *)top;
  top += (size + 31) / 16 * 16;
  block[1] = size;
  return block + 2;
}
static int owns(const void *block) { return (const char *)block >= arena && (const char *)block < arena + (64 << 20); }
#endif

#ifdef LIBRARY
/* The exported free that comes after the preload's: takes its own blocks only. */
void free(void *block) { freed += block && owns(block); }
void *bundled_malloc(size_t size) { return bump(size); }
int bundled_freed(void) { return freed; }

#elif defined PROGRAM
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int given;
void *malloc(size_t size) {
  pthread_mutex_lock(&lock);
  void *block = bump(size);
  given++;
  pthread_mutex_unlock(&lock);
  return block;
}
void free(void *block) {
  if (block && !owns(block)) __builtin_trap();
  freed += block != NULL;
}
void *calloc(size_t count, size_t size) { return memset(malloc(count * size), 0, count * size); }
void *realloc(void *block, size_t size) {
  void *grown = malloc(size);
  if (block) memcpy(grown, block, ((size_t *)block)[-1] < size ? ((size_t *)block)[-1] : size);
  free(block);
  return grown;
}
int main(void) {
  char *copy = strdup("libc's allocations come from here too");
  int before = freed;
  char *volatile block = realloc(copy, 1000);
  free(block);
  FILE *file = fopen("/proc/self/maps", "r");
  int lines = 0;
  for (int c; file && (c = fgetc(file)) != EOF;) lines += c == '\n';
  if (file) fclose(file);
  return !(given >= 3 && freed >= before + 2 && lines > 5);
}

#else
#include "check.h"
void *bundled_malloc(size_t size);
int bundled_freed(void);
int main(void) {
  for (int i = 0; i < 100; i++) {
    char *theirs = bundled_malloc((size_t)i * 10), *ours = malloc((size_t)i * 10);
    memset(theirs, 1, (size_t)i * 10);
    free(theirs);
    free(ours);
  }
  CHECK(bundled_freed() == 100);
  return finish();
}
#endif
