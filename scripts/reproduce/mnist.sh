#!/usr/bin/env bash
# The MNIST tables of RESULTS.md: 5 seeds of every method on seq-mnist, and the order of methods on
# perm-mnist. About half an hour on two cores. Edit the lists and run it again; finished runs are skipped.
# Environment: SEEDS (default "0 1 2 3 4"), JOBS (2), OUTPUT_DIR (runs/mnist), DRY_RUN=1 to print.
#
#     scripts/reproduce/mnist.sh [DATA_DIR]          (default: ~/.cache/engram; downloads MNIST if absent)
#     python scripts/report.py runs/mnist --update RESULTS.md
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"

train() { # the benchmark, flags of the grid, then -- and those of all its runs
  sweep --seed "${seeds[@]}" --output_dir "${OUTPUT_DIR:-runs/mnist}" "${@:2}" \
    --dataset "$1" --data_dir "$data" --disable_log --ignore_other_metrics
}

train seq-mnist --model sgd ewc mas joint --
train seq-mnist --model gem er -- --buffer_size 500
train seq-mnist --buffer_policy min middle -- --model maer --buffer_size 500
train perm-mnist --model sgd ewc joint --
train perm-mnist --model er -- --buffer_size 5120
exit "$failed"
