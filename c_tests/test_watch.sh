#!/usr/bin/env bash
# qmem top seen in tmux, and the page of qmem report opened in headless Chromium: both show the numbers of a run. Usage:
#   test_watch.sh QMEM top|report       (77 and a reason where tmux or Chromium is not installed)
set -euo pipefail
qmem=$1 what=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
server=qmem-test-$$
finish() {
  exec 9>&- || true # the program ends with its input
  wait || true
  [ "$what" != top ] || tmux -L "$server" kill-server 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

if [ "$what" = top ]; then
  command -v tmux >/dev/null || { echo "skipped: tmux is not installed"; exit 77; }
else
  browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
  [ -n "$browser" ] || { echo "skipped: Chromium is not installed"; exit 77; }
fi

cat > "$work/sweep.c" <<'C'
/* Sweeps over 192 MiB until its input ends. */
#include <poll.h>
#include <stdlib.h>
int main(void) {
  size_t size = (size_t)192 << 20, i;
  struct pollfd in = {0, POLLIN, 0};
  double *state = malloc(size);
  if (!state) return 2;
  do
    for (i = 0; i < size / sizeof *state; i += 8) state[i] += (double)(i % 1000);
  while (poll(&in, 1, 0) == 0);
  return 0;
}
C
cc -O1 "$work/sweep.c" -o "$work/sweep"
mkfifo "$work/input"
"$qmem" run --quiet --budget 64M --record "$work/record" --report "$work/report.json" -- "$work/sweep" < "$work/input" &
run=$!
exec 9> "$work/input"

if [ "$what" = top ]; then
  tmux -L "$server" -f /dev/null new-session -d -x 110 -y 34 "sleep 1; '$qmem' top $run || sleep 5"
  for _ in $(seq 100); do
    sleep 0.3
    tmux -L "$server" capture-pane -p > "$work/screen" || true
    if grep -q 'of 64.0 MiB' "$work/screen" && grep -q 'faults/s: [1-9]' "$work/screen" && grep -q '0x[0-9a-f]* *192.0 MiB' "$work/screen"; then
      cat "$work/screen"
      tmux -L "$server" send-keys q
      for _ in $(seq 30); do
        sleep 0.2
        tmux -L "$server" has-session 2>/dev/null || exit 0 # it has ended, and the terminal with it
      done
      echo "q does not end it"
      exit 1
    fi
  done
  cat "$work/screen"
  echo "qmem top did not show the run's numbers"
  exit 1
fi

sleep 3
exec 9>&-
wait $run
"$qmem" report "$work/record" --output "$work/page.html"
"$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$work/profile" --virtual-time-budget=2000 --dump-dom "file://$work/page.html" > "$work/dom" 2> "$work/browser.log"
"$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$work/profile" --window-size=900,1200 --screenshot="$work/page.png" "file://$work/page.html" 2>> "$work/browser.log"
exec python3 "$here/check_report.py" "$work/dom" "$work/report.json" "$work/page.png"
