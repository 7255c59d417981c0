#!/usr/bin/env bash
# The MNIST tables of RESULTS.md: 5 seeds of every method on seq-mnist, and the order of methods on
# perm-mnist. About half an hour on two cores. Edit the lists and run it again; runs are added.
#
#     scripts/reproduce/mnist.sh [DATA_DIR]          (default: ~/.cache/engram; downloads MNIST if absent)
#     python scripts/report.py runs/mnist --update RESULTS.md
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:-$HOME/.cache/engram}
seeds=${SEEDS:-"0 1 2 3 4"}
jobs=${JOBS:-2}

runs() {
  for seed in $seeds; do
    common="--data_dir $data --seed $seed --disable_log --ignore_other_metrics --output_dir ${OUTPUT_DIR:-runs/mnist}"
    echo "--dataset seq-mnist --model sgd $common"
    echo "--dataset seq-mnist --model ewc $common"
    echo "--dataset seq-mnist --model mas $common"
    echo "--dataset seq-mnist --model gem --buffer_size 500 $common"
    echo "--dataset seq-mnist --model er --buffer_size 500 $common"
    echo "--dataset seq-mnist --model maer --buffer_policy min --buffer_size 500 $common"
    echo "--dataset seq-mnist --model maer --buffer_policy middle --buffer_size 500 $common"
    echo "--dataset seq-mnist --model joint $common"
    echo "--dataset perm-mnist --model sgd $common"
    echo "--dataset perm-mnist --model ewc $common"
    echo "--dataset perm-mnist --model er --buffer_size 5120 $common"
    echo "--dataset perm-mnist --model joint $common"
  done
}

output=${OUTPUT_DIR:-runs/mnist}
mkdir -p "$output"
runs | xargs -P "$jobs" -I{} scripts/reproduce/one_run.sh "$output" {}
