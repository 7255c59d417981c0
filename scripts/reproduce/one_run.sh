#!/usr/bin/env bash
# One run of a sweep: one_run.sh LOG_DIR "FLAGS". Prints where its results lie, or that it failed
# and where its output is; a failure does not stop the sweep.
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
log=$(mktemp "$1/log.XXXXXX")
# shellcheck disable=SC2086  # the flags are words
if $python main.py $2 >"$log" 2>&1; then
  tail -n 1 "$log"
  rm "$log"
else
  echo "FAILED: python main.py $2 (output: $log)"
fi
