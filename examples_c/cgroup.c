/* cgroup.c: see cgroup.h. */
#define _POSIX_C_SOURCE 200809L
#include "cgroup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINE 4096

static bool write_text(const char *directory, const char *name, const char *text) {
  char path[CGROUP_PATH + 64];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE *file = fopen(path, "we");
  if (!file) return false;
  bool good = fputs(text, file) >= 0;
  return fclose(file) == 0 && good;
}

static bool read_text(const char *directory, const char *name, char *text, size_t cap) {
  char path[CGROUP_PATH + 64];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE *file = fopen(path, "re");
  if (!file) return false;
  size_t got = fread(text, 1, cap - 1, file);
  text[got] = '\0';
  fclose(file);
  return got > 0;
}

static bool has_word(const char *list, const char *word) {
  size_t length = strlen(word);
  for (const char *at = list; (at = strstr(at, word)); at += length) {
    bool starts = at == list || strchr(" ,\n", at[-1]), ends = !at[length] || strchr(" ,\n", at[length]);
    if (starts && ends) return true;
  }
  return false;
}

/* This process's place in the hierarchy with the memory controller: v1's if there is one, else v2's. */
static bool find_place(bool *v2, char *place, size_t cap) {
  char line[LINE];
  bool found = false;
  FILE *file = fopen("/proc/self/cgroup", "re");
  while (file && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = '\0';
    char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!path) continue;
    *controllers++ = '\0', *path++ = '\0';
    bool memory = has_word(controllers, "memory");
    if (!memory && (found || controllers[0])) continue;
    *v2 = !memory;
    snprintf(place, cap, "%s", path);
    found = true;
    if (memory) break;
  }
  if (file) fclose(file);
  return found;
}

/* Where that hierarchy is mounted, and which part of it. */
static bool find_mount(bool v2, char *point, char *root, size_t cap) {
  char line[LINE], type[64], options[LINE], mounted_root[LINE], mounted_point[LINE];
  bool found = false;
  FILE *file = fopen("/proc/self/mountinfo", "re");
  while (file && !found && fgets(line, sizeof line, file)) {
    char *rest = strstr(line, " - ");
    if (!rest || sscanf(line, "%*s %*s %*s %4095s %4095s", mounted_root, mounted_point) != 2) continue;
    if (sscanf(rest, " - %63s %*s %4095s", type, options) != 2) continue;
    found = v2 ? strcmp(type, "cgroup2") == 0 : strcmp(type, "cgroup") == 0 && has_word(options, "memory");
  }
  if (file) fclose(file);
  if (!found || strlen(mounted_point) >= cap || strlen(mounted_root) >= cap) return false;
  strcpy(point, mounted_point);
  strcpy(root, strcmp(mounted_root, "/") == 0 ? "" : mounted_root);
  return true;
}

static bool make_child(cgroup_t *group, const char *parent, size_t limit) {
  char text[64];
  size_t length = strlen(parent);
  if (length + 32 > sizeof group->child) return false;
  memcpy(group->child, parent, length);
  snprintf(group->child + length, sizeof group->child - length, "/qmem-demo-%ld", (long)getpid());
  if (mkdir(group->child, 0755) != 0) {
    group->child[0] = '\0';
    return false;
  }
  snprintf(text, sizeof text, "%zu", limit);
  size_t peak;
  bool good = write_text(group->child, group->v2 ? "memory.max" : "memory.limit_in_bytes", text) && cgroup_peak(group, &peak);
  if (good) { /* the kernel's own swap must not help; where it cannot be bounded there is none */
    if (group->v2)
      write_text(group->child, "memory.swap.max", "0");
    else
      write_text(group->child, "memory.memsw.limit_in_bytes", text);
    return true;
  }
  cgroup_remove(group);
  return false;
}

bool cgroup_make(cgroup_t *group, size_t limit, char *why, size_t cap) {
  char place[CGROUP_PATH] = "", point[CGROUP_PATH / 2], root[CGROUP_PATH / 2], parent[CGROUP_PATH], control[LINE] = "";
  memset(group, 0, sizeof *group);
  if (!find_place(&group->v2, place, sizeof place) || !find_mount(group->v2, point, root, sizeof point)) {
    snprintf(why, cap, "no memory cgroup is mounted here");
    return false;
  }
  const char *below = strncmp(place, root, strlen(root)) == 0 ? place + strlen(root) : place;
  snprintf(group->home, sizeof group->home, "%s%s", point, strcmp(below, "/") == 0 ? "" : below);
  strcpy(parent, group->home);
  if (group->v2) { /* a v2 group with processes in it cannot have children with controllers: then a sibling */
    bool here = read_text(parent, "cgroup.subtree_control", control, sizeof control) && has_word(control, "memory");
    char *slash = strrchr(parent, '/');
    if (!here && slash && strlen(group->home) > strlen(point)) *slash = '\0';
    if (!read_text(parent, "cgroup.subtree_control", control, sizeof control) || !has_word(control, "memory")) {
      snprintf(why, cap, "the memory controller is not delegated below %s", parent);
      return false;
    }
  }
  errno = 0;
  if (make_child(group, parent, limit)) return true;
  snprintf(why, cap, "no memory cgroup can be made below %s: %s", parent, strerror(errno));
  return false;
}

static bool move_to(const char *directory) {
  char text[32];
  snprintf(text, sizeof text, "%ld", (long)getpid());
  return write_text(directory, "cgroup.procs", text);
}

bool cgroup_enter(const cgroup_t *group) { return move_to(group->child); }
bool cgroup_leave(const cgroup_t *group) { return move_to(group->home); }

bool cgroup_peak(const cgroup_t *group, size_t *bytes) {
  char text[64];
  if (!read_text(group->child, group->v2 ? "memory.peak" : "memory.max_usage_in_bytes", text, sizeof text)) return false;
  *bytes = strtoull(text, NULL, 10);
  return true;
}

void cgroup_remove(cgroup_t *group) {
  for (int i = 0; i < 200 && group->child[0]; i++) {
    if (rmdir(group->child) == 0 || errno != EBUSY) group->child[0] = '\0';
    else nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  }
  if (group->child[0]) fprintf(stderr, "demo: %s is still busy; rmdir it later\n", group->child);
}

void process_peak_reset(void) { (void)write_text("/proc/self", "clear_refs", "5"); }

size_t process_peak(void) {
  char text[LINE];
  const char *at = read_text("/proc/self", "status", text, sizeof text) ? strstr(text, "VmHWM:") : NULL;
  return at ? strtoull(at + 6, NULL, 10) * 1024 : 0;
}
