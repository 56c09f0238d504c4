/* Bad pointers given to qmem_free and qmem_realloc: one line that says what is known, then abort. Good twins stay silent. */
#include "check.h"
#include <quantum_memory.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack_block[256];
static void double_free(void) {
  void *block = qmem_allocate(100, 0);
  qmem_free(block);
  qmem_free(block);
}
static void interior(void) { qmem_free((char *)qmem_allocate(1000, 0) + 64); }
static void foreign(void) { qmem_free(stack_block); }
static void foreign_realloc(void) { qmem_realloc(stack_block, 10); }
static void once_too_often(void) {
  void *block = qmem_allocate(100, 0);
  qmem_retain(block);
  qmem_free(block);
  qmem_free(block);
  qmem_free(block);
}
static void tracked(void) {
  qmem_unified_interface()->track_allocation(stack_block, sizeof stack_block);
  qmem_free(stack_block);
}
static void good(void) {
  void *block = qmem_realloc(qmem_allocate(100, 0), 200);
  qmem_retain(block);
  qmem_free(block);
  qmem_free(block);
  qmem_free(NULL);
}

/* Runs `act` in a child: the signal that ended it, and what it wrote to stderr. */
static int run(void (*act)(void), char *text, size_t cap) {
  int pipes[2], status = 0;
  ssize_t n;
  size_t len = 0;
  pid_t child;
  if (pipe(pipes) != 0)
    exit(2);
  child = fork();
  if (child == 0) {
    dup2(pipes[1], 2);
    act();
    _exit(0);
  }
  close(pipes[1]);
  while (len + 1 < cap && (n = read(pipes[0], text + len, cap - 1 - len)) > 0)
    len += (size_t)n;
  text[len] = 0;
  close(pipes[0]);
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static void dies(const char *name, void (*act)(void), const char *function) {
  char text[4096];
  int ended = run(act, text, sizeof text);
  char *end = strchr(text, '\n');
  if (ended != SIGABRT || strncmp(text, "qmem: ", 6) != 0 || strstr(text, function) == NULL || strstr(text, "0x") == NULL || end == NULL ||
      end[1] != 0) {
    fprintf(stderr, "%s: ended with %d and said: %s\n", name, ended, text);
    checks_failed++;
  }
}

int main(void) {
  char text[256];
  dies("double free", double_free, "qmem_free");
  dies("interior pointer", interior, "qmem_free");
  dies("foreign pointer", foreign, "qmem_free");
  dies("foreign pointer to realloc", foreign_realloc, "qmem_realloc");
  dies("one free too many", once_too_often, "qmem_free");
  dies("tracked block", tracked, "qmem_free");
  CHECK(run(good, text, sizeof text) == 0);
  CHECK(text[0] == 0);
  return finish();
}
