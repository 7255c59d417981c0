#!/usr/bin/env bash
# Fifteen minutes on a GPU: every method, waits, numbers against the CPU, speed; what passed and what did not.
# Needs the repository's files, torch and numpy; no data, no MLflow. The sections: --help.
#
#     scripts/gpu_check.sh --out results            writes results/gpu_check.json and results/gpu_check.md
#     scripts/gpu_check.sh --device cpu --quick      the same on a CPU, as far as it goes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m engram.scripts.bench.gpu_check "$@"
