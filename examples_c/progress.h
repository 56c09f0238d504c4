/* progress.h: a progress bar on stderr: a line that moves on a terminal, else a line every tenth. Called by engine.c and the mains. */
#ifndef PROGRESS_H
#define PROGRESS_H
#include <stdbool.h>
#include <stddef.h>

typedef enum { PROGRESS_OFF, PROGRESS_LINES, PROGRESS_BAR } progress_style_t;

typedef struct {
  progress_style_t style;
  const char *label;
  size_t sweeps, sweep;     /* in all (0: nobody knows, gates tell how far it is), and finished */
  size_t gates, gates_now, gates_done;
  double started, shown;
  int shown_tenth;
} progress_t;

double seconds_now(void);
/* `lines`: whether to print at all where stderr is no terminal. */
progress_style_t progress_style(bool always, bool lines);
void progress_start(progress_t *progress, progress_style_t style, const char *label, size_t sweeps, size_t gates);
/* Gates of the sweep that begins; needed where the number of sweeps is not known. */
void progress_sweep_begin(progress_t *progress, size_t gates);
/* `fraction` of the current sweep; cheap when nothing is due. One thread at a time. */
void progress_show(progress_t *progress, double fraction);
void progress_sweep_done(progress_t *progress, size_t gates);
void progress_end(progress_t *progress);
#endif
