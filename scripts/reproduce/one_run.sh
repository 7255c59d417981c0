#!/usr/bin/env bash
# One run of a study: one_run.sh LOG_DIR "FLAGS". Prints where its results lie; returns 1 if it failed, and
# prints the error and where the rest of its output is. The other runs of the study go on.
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
log=$(mktemp "$1/log.XXXXXX")
# shellcheck disable=SC2086  # the flags are words
if $python main.py $2 >"$log" 2>&1; then
  tail -n 1 "$log"
  rm "$log"
else
  printf 'FAILED: %s\n  python main.py %s (output: %s)\n' "$(tail -n 1 "$log")" "$2" "$log"
  exit 1
fi
