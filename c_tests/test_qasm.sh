#!/bin/sh
# Checks the example simulator: amplitudes against qulacs, error messages, fused against unfused. Usage: test_qasm.sh STATEVEC [FILE.qasm ...]
# Makes a Python environment with qulacs under target/venv when there is none (tools/venv).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
statevec=${1:?usage: test_qasm.sh STATEVEC [FILE.qasm ...]}
shift
python=$("$root/tools/venv")
exec "$python" "$root/c_tests/test_qasm.py" "$statevec" "$@"
