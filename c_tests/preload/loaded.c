/* The preload loaded at run time: dlopen finds room for its thread-local data, its malloc works beside libc's, in threads that
   were there before, and libc's blocks may be freed through it. The path is the first argument. */
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>

static void *(*their_malloc)(size_t);
static void (*their_free)(void *);
static pthread_barrier_t loaded;

static void *works(void *unused) {
  (void)unused;
  pthread_barrier_wait(&loaded);
  for (int i = 0; i < 10000; i++) {
    char *block = their_malloc((size_t)(i % 3000) + 1);
    block[0] = block[i % 3000] = 1;
    their_free(block);
  }
  their_free(strdup("from libc"));
  return NULL;
}

int main(int count, char **arguments) {
  pthread_t threads[3];
  if (count < 2) return 2;
  pthread_barrier_init(&loaded, NULL, 4);
  for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, works, NULL) == 0);
  void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) fprintf(stderr, "%s\n", dlerror());
  CHECK(library != NULL);
  if (!library) return 1;
  *(void **)&their_malloc = dlsym(library, "malloc");
  *(void **)&their_free = dlsym(library, "free");
  CHECK(their_malloc && their_free && their_malloc != malloc);
  pthread_barrier_wait(&loaded);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  their_free(NULL);
  return finish();
}
