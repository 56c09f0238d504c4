/* cgroup.h: a memory cgroup of the demo's own, so that the kernel itself bounds and measures what the paged run takes. v1 and v2.
   Called by main_demo.c alone. May leave nothing behind. */
#ifndef CGROUP_H
#define CGROUP_H
#include <stdbool.h>
#include <stddef.h>

#define CGROUP_PATH 512

typedef struct {
  bool v2;
  char home[CGROUP_PATH];   /* where the process was */
  char child[CGROUP_PATH];  /* ours; empty when there is none */
} cgroup_t;

/* False: `why` says what is missing, and nothing was made. */
bool cgroup_make(cgroup_t *group, size_t limit, char *why, size_t cap);
bool cgroup_enter(const cgroup_t *group);
bool cgroup_leave(const cgroup_t *group);
/* Most bytes charged at any time. False: cannot be read. */
bool cgroup_peak(const cgroup_t *group, size_t *bytes);
/* Waits a moment for processes that are ending. */
void cgroup_remove(cgroup_t *group);
/* Most bytes of this process resident at any time since it was reset, from /proc. */
void process_peak_reset(void);
size_t process_peak(void);
#endif
