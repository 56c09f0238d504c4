/* What is no block is reported in one line, then the process aborts: pointers into the stack, into static data, into the middle of
   a block, to nothing, and a block that was freed already, one of few or of many. Blocks of another allocator go on to it. */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MANY = 200000, LATE = 150000 /* of a slice that was full when the heap was large */ };
static char static_data[100], *block, *many[MANY];
static int initialised = 7;
extern void *__libc_malloc(size_t size); /* libc's own, past the preload */

static void stack(void) {
  char local[64];
  void *volatile pointer = local;
  free(pointer);
}
static void bss(void) { void *volatile p = static_data; free(p); }
static void data(void) { void *volatile p = &initialised; free(p); }
static void code(void) { void *volatile p = (void *)(size_t)&stack; free(p); }
static void interior(void) { void *volatile p = block + 16; free(p); }
static void large_interior(void) { void *volatile p = (char *)malloc(40 << 20) + 4096; free(p); }
static void nothing(void) { void *volatile p = (void *)16; free(p); }
static void twice(void) { void *volatile p = block; free(p); free(p); }
static void large_twice(void) { void *volatile p = malloc(40 << 20); free(p); free(p); }
static void realloc_interior(void) { void *volatile p = block + 16; block = realloc(p, 100); }
static void realloc_freed(void) { void *volatile p = block; free(p); block = realloc(p, 100); }

/* In a large heap: the block is not looked at at once, but before the process ends. */
static void one_of_many_twice(void) { void *volatile p = many[LATE]; free(p); free(p); }
static void one_of_many_again(void) {
  void *volatile p = many[LATE];
  free(p);
  for (int i = 1000; i < 1100; i++) free(many[LATE + i]);
  free(p);
}
static void one_of_many_realloc(void) { void *volatile p = many[LATE]; free(p); block = realloc(p, 100); }
static void one_of_many_and_exit(void) { one_of_many_again(); exit(0); }
static void one_of_many_and_more(void) {
  one_of_many_again();
  for (int i = 2000; i < 2100; i++) free(many[LATE + i]);
  sleep(60);
}

static unsigned long random_state = 1;
static size_t below(size_t n) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (size_t)(random_state >> 33) % n;
}
static void *replace_one(size_t but) {
  size_t at = (but + 1 + below(MANY - 1)) % MANY;
  free(many[at]);
  return many[at] = malloc(48);
}
/* Freed again before it was given, and seen before it is: of a slice whose blocks are given now or next. */
enum { KILOBYTES = 20000 };
static void *kilobytes[KILOBYTES];
static size_t a_slice(void) { return (size_t)kilobytes[below(KILOBYTES)] >> 16; }
static size_t of_slice(size_t slice, void **found, size_t most) {
  size_t count = 0;
  for (size_t i = 0; i < KILOBYTES && count < most; i++)
    if ((size_t)kilobytes[i] >> 16 == slice) found[count++] = kilobytes[i];
  return count;
}
/* What had free blocks has none after this. */
static void use_up(void) {
  for (size_t left = KILOBYTES / 2; left > 0; left--)
    if (!malloc(1000)) exit(1);
}
static void free_again(void *volatile p, size_t given_before) {
  bool given = false;
  for (; given_before > 0 && !given; given_before--) given = malloc(1000) == p;
  free(p);
  if (given) free(p);
  for (size_t left = 2 * KILOBYTES; left > 0; left--)
    if (malloc(1000) == p) kill(getpid(), SIGKILL); /* too late */
}
static void one_of_the_slice_that_gives(void) {
  void *blocks[64];
  use_up();
  size_t count = of_slice(a_slice(), blocks, 64), at = below(count);
  for (size_t i = 0; i < count; i++) free(blocks[i]);
  free_again(blocks[at], below(100));
}
/* The slice that would have been the next to give is empty once what was put aside is looked at, and the one after it gives. */
static void one_behind_an_emptied_slice(void) {
  void *first[64], *second[64];
  size_t slice = a_slice(), other = slice;
  while (other == slice) other = a_slice();
  use_up();
  size_t in_first = of_slice(slice, first, 64), in_second = of_slice(other, second, 64);
  for (size_t i = 1; i < in_second / 2; i++) free(second[i]);
  for (size_t i = 0; i < in_first; i++) free(first[i]);
  free(second[0]);
  free_again(second[0], below(60));
}

/* Blocks that another thread frees, which come back to the one that made them when that one asks for more. */
enum { PASSED = 8 };
static void *passed[PASSED];
static size_t passed_size;
static void *free_passed(void *arg) {
  void *own = malloc(passed_size); /* a heap of its own */
  for (int i = 0; i < PASSED; i++) free(passed[i]);
  free(own);
  return arg;
}
static void *free_passed_twice(void *arg) {
  free_passed(arg);
  void *volatile p = passed[below(PASSED)];
  free(p);
  return arg;
}
static void pass_on(void *(*to)(void *)) {
  pthread_t thread;
  for (int i = 0; i < PASSED; i++) passed[i] = malloc(passed_size);
  if (pthread_create(&thread, NULL, to, NULL) || pthread_join(thread, NULL)) exit(1);
}
static void use_many(void) {
  for (int i = 0; i < 10000; i++)
    if (!malloc(passed_size)) exit(1);
}
static void passed_on_twice(void) { pass_on(free_passed_twice); }
static void passed_on_and_by_its_maker(void) {
  pass_on(free_passed);
  void *volatile p = passed[below(PASSED)];
  free(p);
}
static void passed_on_and_written_to(void) {
  pass_on(free_passed);
  void *volatile *written = passed[below(PASSED)];
  written[0] = passed, written[1] = passed; /* where the heap keeps its links */
  use_many();
}

static void aborts(const char *name, void (*bad)(void), const char *word) {
  char text[1024] = "";
  int pipes[2], status;
  CHECK(pipe(pipes) == 0);
  pid_t pid = fork();
  if (pid == 0) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    dup2(pipes[1], 2);
    bad();
    _exit(0);
  }
  close(pipes[1]);
  ssize_t n = read(pipes[0], text, sizeof text - 1);
  close(pipes[0]);
  CHECK(waitpid(pid, &status, 0) == pid);
  bool good = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && n > 0 && strncmp(text, "qmem: ", 6) == 0 && strstr(text, word);
  if (!good) fprintf(stderr, "%s: status %d, said: %s\n", name, status, text);
  CHECK(good);
}

int main(void) {
  block = malloc(100);
  aborts("stack", stack, "stack");
  aborts("bss", bss, "own data");
  aborts("data", data, "own data");
  aborts("code", code, "own data");
  aborts("nothing", nothing, "no memory");
  aborts("interior", interior, "16 bytes after its start");
  aborts("large interior", large_interior, "4096 bytes after its start");
  aborts("twice", twice, "freed already");
  aborts("large twice", large_twice, "free: ");
  aborts("realloc interior", realloc_interior, "realloc: ");
  aborts("realloc freed", realloc_freed, "realloc: ");
  static const size_t sizes[] = {112, 1000, 2000, 30000};
  for (int i = 0; i < 32; i++) {
    passed_size = sizes[i % 4];
    aborts("passed on, twice", passed_on_twice, "freed already");
    aborts("passed on, and by its maker", passed_on_and_by_its_maker, "freed already");
    aborts("passed on, and written to", passed_on_and_written_to, "was written to");
  }
  for (int i = 0; i < MANY; i++) many[i] = malloc(48);
  for (int i = 0; i < 20000; i++) replace_one(LATE); /* at random, so that frees are known to be cold */
  aborts("one of many, twice", one_of_many_twice, "freed already");
  aborts("one of many, again", one_of_many_again, "freed already");
  aborts("one of many, realloc", one_of_many_realloc, "realloc: ");
  aborts("one of many, and exit", one_of_many_and_exit, "freed already");
  aborts("one of many, and more", one_of_many_and_more, "freed already");
  for (int i = 0; i < KILOBYTES; i++) kilobytes[i] = malloc(1000);
  for (int round = 0; round < 100; round++) {
    for (int i = 0; i < 1000; i++) {
      size_t at = below(KILOBYTES);
      free(kilobytes[at]);
      kilobytes[at] = malloc(1000);
    }
    aborts("one of the slice that gives", one_of_the_slice_that_gives, "freed already");
    aborts("one behind an emptied slice", one_behind_an_emptied_slice, "freed already");
  }
  for (int i = 0; i < KILOBYTES; i++) free(kilobytes[i]);
  for (int i = 0; i < MANY; i++) free(many[i]);
  /* libc's own blocks are foreign, and go where they came from */
  for (int i = 0; i < 1000; i++) free(__libc_malloc((size_t)i * 300));
  char *foreign = __libc_malloc(100);
  strcpy(foreign, "theirs");
  foreign = realloc(foreign, 5000000);
  CHECK(foreign && strcmp(foreign, "theirs") == 0);
  free(foreign);
  free(block);
  return finish();
}
