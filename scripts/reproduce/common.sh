# What the studies of this folder share; each of them sources it and then stands in the project's folder.
#
# DRY_RUN=1 prints the commands and trains nothing. JOBS is the number of runs at a time (default: 2), PYTHON the
# interpreter (default: that of .venv, where there is one).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
jobs=${JOBS:-2}
dry=${DRY_RUN:-}

# finished FOLDER: whether a run below this output folder has ended; says so, since it is skipped.
finished() {
  grep -qs '"status": "finished"' "$1"/*/*/*/results.json && echo "finished before: $1" >&2
}

# train_all OUTPUT_DIR: starts a run of main.py for every line of flags on standard input; fails if one of them does.
train_all() {
  if [ -n "$dry" ]; then
    sed 's/^ */python main.py /'
  else
    mkdir -p "$1"
    xargs -P "$jobs" -I{} scripts/reproduce/one_run.sh "$1" {}
  fi
}

# execute ARGUMENTS ...: python with these arguments, or the line that stands for it.
execute() {
  if [ -n "$dry" ]; then echo "python $*"; else "$python" "$@"; fi
}

# A failed run does not end a study; the script then exits with this.
failed=0

# sweep [STUDY.yaml] FLAGS ...: scripts/sweep.py, which skips finished runs.
sweep() {
  local file=()
  [[ $1 == -* ]] || { file=("$1"); shift; }
  "$python" scripts/sweep.py "${file[@]}" ${dry:+--dry_run} --jobs "$jobs" "$@" || failed=1
}
