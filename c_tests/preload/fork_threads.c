/* fork while other threads allocate and free without a pause: the child finds the heap whole, allocates, frees what it inherited,
   and execs. Also vfork, posix_spawn, popen and system. Watched: a deadlock ends by SIGALRM. */
#include "check.h"
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 3
#define FORKS 200

extern char **environ;
static atomic_bool stop;
static char *_Atomic shared[64]; /* blocks that threads free for each other */

static unsigned next(unsigned *seed) { return *seed = *seed * 1664525u + 1013904223u, *seed >> 8; }

static void *busy(void *argument) {
  unsigned seed = (unsigned)(size_t)argument;
  while (!stop) {
    size_t size = next(&seed) % 5 ? next(&seed) % 2000 : next(&seed) % 900000;
    char *block = malloc(size + 1);
    block[0] = block[size] = 'x';
    free(atomic_exchange(&shared[next(&seed) % 64], block));
  }
  return NULL;
}

static int child(char *inherited) {
  unsigned seed = 7;
  char *blocks[100];
  if (strcmp(inherited, "inherited") != 0) return 1;
  for (int i = 0; i < 100; i++) {
    size_t size = i % 10 ? next(&seed) % 3000 : 700000;
    blocks[i] = calloc(size + 1, 1);
    if (!blocks[i] || blocks[i][size]) return 2;
  }
  for (int i = 0; i < 100; i++) free(blocks[i]);
  free(inherited);
  pthread_t thread; /* the child may have threads of its own */
  stop = true;
  if (pthread_create(&thread, NULL, busy, NULL) != 0 || pthread_join(thread, NULL) != 0) return 3;
  return 0;
}

int main(void) {
  pthread_t threads[THREADS];
  int status;
  pid_t pid;
  alarm(120);
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, busy, (void *)(i + 1)) == 0);
  for (int i = 0; i < FORKS; i++) {
    char *inherited = strdup("inherited");
    pid = fork();
    if (pid == 0) {
      alarm(30);
      _exit(child(inherited));
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    if (status != 0) fprintf(stderr, "fork %d: the child ended with status %#x\n", i, status);
    CHECK(status == 0);
    free(inherited);
    if (checks_failed) break;
  }
  char *arguments[] = {"true", NULL};
  for (int i = 0; i < 20; i++) {
    if ((pid = vfork()) == 0) {
      execvp("true", arguments);
      _exit(9);
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(posix_spawnp(&pid, "true", NULL, NULL, arguments, environ) == 0 && waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(system("exit 3") == 3 << 8);
    char line[32] = "";
    FILE *pipe = popen("echo spoken", "r");
    CHECK(pipe && fgets(line, sizeof line, pipe) && strcmp(line, "spoken\n") == 0 && pclose(pipe) == 0);
  }
  stop = true;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  return finish();
}
