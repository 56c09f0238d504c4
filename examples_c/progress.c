/* progress.c: see progress.h. */
#define _POSIX_C_SOURCE 200809L
#include "progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define BAR_WIDTH 30
#define BAR_SECONDS 0.1

double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

progress_style_t progress_style(bool always, bool lines) {
  if (always || isatty(STDERR_FILENO)) return PROGRESS_BAR;
  return lines ? PROGRESS_LINES : PROGRESS_OFF;
}

void progress_start(progress_t *progress, progress_style_t style, const char *label, size_t sweeps, size_t gates) {
  *progress = (progress_t){.style = style, .label = label, .sweeps = sweeps, .gates = gates, .started = seconds_now()};
  progress_show(progress, 0);
}

static void print(progress_t *progress, double share, double now) {
  double elapsed = now - progress->started, left = share > 0 ? elapsed * (1 - share) / share : 0;
  char sweeps[64];
  if (progress->sweeps > 0)
    snprintf(sweeps, sizeof sweeps, "sweep %zu/%zu", progress->sweep, progress->sweeps);
  else
    snprintf(sweeps, sizeof sweeps, "sweep %zu", progress->sweep);
  if (progress->style == PROGRESS_LINES) {
    fprintf(stderr, "%s: %3.0f%%  %s  %.1f s\n", progress->label, 100 * share, sweeps, elapsed);
    return;
  }
  char bar[BAR_WIDTH + 1];
  for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < (int)(share * BAR_WIDTH + 0.5) ? '#' : '.';
  bar[BAR_WIDTH] = '\0';
  fprintf(stderr, "\r%s [%s] %3.0f%%  %s  gates %zu/%zu  %.1f s", progress->label, bar, 100 * share, sweeps, progress->gates_done,
          progress->gates, elapsed);
  if (share > 0.01 && share < 1) fprintf(stderr, ", %.0f s left", left);
  fprintf(stderr, "\033[K");
  fflush(stderr);
}

void progress_show(progress_t *progress, double fraction) {
  if (progress->style == PROGRESS_OFF || progress->gates == 0) return;
  double share = progress->sweeps > 0 ? ((double)progress->sweep + fraction) / (double)progress->sweeps
                                      : ((double)progress->gates_done + fraction * (double)progress->gates_now) / (double)progress->gates;
  double now = seconds_now();
  if (progress->style == PROGRESS_LINES) {
    int tenth = (int)(10 * share + 1e-9);
    if (tenth <= progress->shown_tenth) return;
    progress->shown_tenth = tenth;
  } else if (now - progress->shown < BAR_SECONDS && share < 1) {
    return;
  }
  progress->shown = now;
  print(progress, share, now);
}

void progress_sweep_begin(progress_t *progress, size_t gates) { progress->gates_now = gates; }

void progress_sweep_done(progress_t *progress, size_t gates) {
  progress->sweep++;
  progress->gates_done += gates;
  progress_show(progress, 0);
}

void progress_end(progress_t *progress) {
  if (progress->style == PROGRESS_BAR && progress->gates > 0) fputc('\n', stderr);
}
