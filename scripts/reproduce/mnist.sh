#!/usr/bin/env bash
# The MNIST tables of RESULTS.md: 5 seeds of every method on seq-mnist, and the order of methods on
# perm-mnist. About half an hour on two cores. Edit the lists and run it again; runs are added.
# Environment: SEEDS (default "0 1 2 3 4"), JOBS (2), OUTPUT_DIR (runs/mnist), DRY_RUN=1 to print.
#
#     scripts/reproduce/mnist.sh [DATA_DIR]          (default: ~/.cache/engram; downloads MNIST if absent)
#     python scripts/report.py runs/mnist --update RESULTS.md
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
seeds=${SEEDS:-"0 1 2 3 4"}
output=${OUTPUT_DIR:-runs/mnist}

runs() {
  for seed in $seeds; do
    common="--data_dir $data --seed $seed --disable_log --ignore_other_metrics --output_dir $output"
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

runs | train_all "$output"
