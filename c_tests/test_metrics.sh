#!/bin/sh
# What qmem exports, read by others: OpenMetrics by prometheus_client's strict parser, JSON by Python's. Usage: test_metrics.sh PROGRAM,
# which is c_tests/monitoring.c. Makes a Python environment under target/venv-metrics when there is none.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
program=${1:?usage: test_metrics.sh PROGRAM}
venv=$root/target/venv-metrics
if ! "$venv/bin/python" -c 'import prometheus_client' 2>/dev/null; then
  mkdir -p "$root/target"
  rm -rf "$venv" # one that was left unfinished is no use
  python3 -m venv "$venv" || { echo "test_metrics: python3 with venv is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
  "$venv/bin/pip" install --quiet --disable-pip-version-check prometheus_client==0.22.1
fi
exec "$venv/bin/python" "$root/c_tests/test_metrics.py" "$program"
