/* The malloc family by the words of its manuals: alignment, usable size, errno, zero sizes, overflow. Runs under the preload (with
   a small budget too: then blocks from 1 MiB are paged) and, to show that the checks are fair, under libc's own malloc. */
#include "check.h"
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static volatile size_t opaque = 1; /* sizes that the compiler does not see through */

static bool aligned(const void *block, size_t to) { return block != NULL && (uintptr_t)block % to == 0; }

static void fill(unsigned char *block, size_t size, unsigned seed) {
  for (size_t i = 0; i < size; i += size > MIB ? 509 : 1) block[i] = (unsigned char)(seed + i * 7);
}
static bool holds(const unsigned char *block, size_t size, unsigned seed) {
  for (size_t i = 0; i < size; i += size > MIB ? 509 : 1)
    if (block[i] != (unsigned char)(seed + i * 7)) return false;
  return true;
}
static bool zero(const unsigned char *block, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (block[i]) return false;
  return true;
}

static const size_t sizes[] = {1, 7, 8, 16, 17, 24, 100, 1000, 1024, 4096, 5000, 65536, 100000, 512 * 1024, 600000, 2 * MIB, 5 * MIB + 3};
#define SIZES (sizeof sizes / sizeof *sizes)

static void blocks_of_every_size(void) {
  for (size_t i = 0; i < SIZES; i++) {
    size_t size = sizes[i];
    unsigned char *a = malloc(size), *b = malloc(size);
    CHECK(aligned(a, 16) && aligned(b, 16) && a != b);
    CHECK(malloc_usable_size(a) >= size);
    fill(a, malloc_usable_size(a), 1); /* every usable byte is ours */
    fill(b, malloc_usable_size(b), 2);
    CHECK(holds(a, malloc_usable_size(a), 1));
    size_t usable = malloc_usable_size(a);
    a = realloc(a, size + 5000);
    CHECK(a && holds(a, usable < size + 5000 ? usable : size + 5000, 1)); /* and survives */
    a = realloc(a, size / 2 + 1);
    CHECK(a && holds(a, size / 2 + 1, 1) && holds(b, size, 2));
    free(a);
    free(b);
    unsigned char *c = calloc(size, 1);
    CHECK(c && zero(c, size));
    fill(c, size, 3);
    free(c);
    c = calloc(1, size); /* the same memory again, perhaps */
    CHECK(c && zero(c, size));
    free(c);
  }
}

static void zero_sizes(void) {
  void *a = malloc(opaque - 1), *b = malloc(opaque - 1), *c = calloc(opaque - 1, 8), *d = calloc(8, opaque - 1);
  CHECK(a && b && c && d && a != b && c != d);
  free(a), free(b), free(c), free(d);
  free(NULL);
  errno = 77;
  CHECK(malloc_usable_size(NULL) == 0 && errno == 77);
  a = realloc(NULL, 10);
  CHECK(a && malloc_usable_size(a) >= 10);
  CHECK(realloc(a, opaque - 1) == NULL); /* frees it, as in glibc */
  CHECK(realloc(malloc(5 * MIB), opaque - 1) == NULL);
}

static void too_much(void) {
  size_t most = (size_t)PTRDIFF_MAX, half = SIZE_MAX / 2;
  void *block = malloc(100), *place = &most;
  fill(block, 100, 9);
#define NOMEM(call) \
  do { \
    errno = 0; \
    CHECK((call) == NULL && errno == ENOMEM); \
  } while (0)
  NOMEM(malloc(most + opaque));
  NOMEM(malloc(SIZE_MAX - opaque));
  NOMEM(malloc(most - opaque));
  NOMEM(calloc(half, 2 * opaque + 1));
  NOMEM(calloc(SIZE_MAX, opaque));
  NOMEM(calloc(2 * opaque + 1, half));
  NOMEM(realloc(block, most + opaque));
  NOMEM(reallocarray(block, half, 3 * opaque));
  NOMEM(reallocarray(NULL, half, 3 * opaque));
  NOMEM(memalign(64, most + opaque));
  NOMEM(aligned_alloc(64, most + opaque));
  NOMEM(valloc(most + opaque));
  NOMEM(pvalloc(SIZE_MAX - opaque));
  CHECK(holds(block, 100, 9)); /* a failed realloc leaves it */
  free(block);
  CHECK(posix_memalign(&place, 64, most + opaque) == ENOMEM && place == &most);
}

static void alignments(void) {
  for (size_t align = 1; align <= 4 * MIB; align *= 2)
    for (size_t i = 0; i < SIZES; i += 3) {
      unsigned char *block = memalign(align, sizes[i]);
      CHECK(aligned(block, align) && malloc_usable_size(block) >= sizes[i]);
      fill(block, sizes[i], 4);
      block = realloc(block, sizes[i] * 2);
      CHECK(block && holds(block, sizes[i], 4));
      free(block);
      block = aligned_alloc(align, sizes[i]);
      CHECK(aligned(block, align));
      free(block);
      void *place = NULL;
      if (align >= sizeof(void *)) {
        CHECK(posix_memalign(&place, align, sizes[i]) == 0 && aligned(place, align));
        free(place);
      }
    }
  void *place = &place;
  errno = 77;
  CHECK(posix_memalign(&place, 3 * opaque, 8) == EINVAL && posix_memalign(&place, 4 * opaque, 8) == EINVAL);
  CHECK(posix_memalign(&place, opaque - 1, 8) == EINVAL && posix_memalign(&place, 24 * opaque, 8) == EINVAL);
  CHECK(place == &place && errno == 77);
  CHECK(posix_memalign(&place, 64, opaque - 1) == 0 && aligned(place, 64));
  free(place);
  place = valloc(10);
  CHECK(aligned(place, 4096));
  free(place);
  place = pvalloc(4097);
  CHECK(aligned(place, 4096) && malloc_usable_size(place) >= 8192);
  free(place);
  place = memalign(48, 10); /* rounded up */
  CHECK(aligned(place, 64));
  free(place);
}

static void arrays(void) {
  int *numbers = reallocarray(NULL, 1000, sizeof *numbers);
  for (int i = 0; i < 1000; i++) numbers[i] = i;
  numbers = reallocarray(numbers, 3000000, sizeof *numbers);
  CHECK(numbers && numbers[999] == 999);
  numbers = reallocarray(numbers, 10, sizeof *numbers);
  CHECK(numbers && numbers[9] == 9);
  free(numbers);
}

static void errno_survives_free(void) {
  void *small = malloc(10), *large = malloc(20 * MIB);
  errno = 77;
  free(small);
  CHECK(errno == 77);
  free(large);
  CHECK(errno == 77);
}

static void from_libc(void) { /* what libc allocates by itself is freed by the program */
  char *copy = strdup("copied"), *text = NULL, *line = NULL, *path = realpath("/", NULL);
  size_t room = 0;
  CHECK(copy && strcmp(copy, "copied") == 0 && path && strcmp(path, "/") == 0);
  CHECK(asprintf(&text, "%d-%s", 7, copy) == 8 && strcmp(text, "7-copied") == 0);
  FILE *file = tmpfile();
  CHECK(file && fputs("one line\n", file) >= 0);
  rewind(file);
  CHECK(getline(&line, &room, file) == 9 && room >= 10);
  fclose(file);
  free(copy), free(text), free(line), free(path);
}

static void numbers(void) {
  void *block = malloc(100000);
  struct mallinfo2 info = mallinfo2();
  CHECK(info.arena + info.hblkhd >= 100000 && info.uordblks > 0);
  CHECK(mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1);
  free(block);
  int trimmed = malloc_trim(0);
  CHECK(trimmed == 0 || trimmed == 1);
}

int main(void) {
  blocks_of_every_size();
  zero_sizes();
  too_much();
  alignments();
  arrays();
  errno_survives_free();
  from_libc();
  numbers();
  return finish();
}
