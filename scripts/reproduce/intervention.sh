#!/usr/bin/env bash
# What is lost in a stream when the most memorized samples are left out, against as many random ones
# (memorization/intervention.py). Edit the lists and run it again; runs are added. Environment: SEEDS, JOBS,
# OUTPUT_DIR, DATASET, DATA_DIR, DRY_RUN=1 to print.
#
#     scripts/reproduce/intervention.sh SCORES.npz            (of memorization.eval_splits for digits)
#     python -m memorization.intervention --results runs/intervention
scores=$(realpath "${1:?usage: scripts/reproduce/intervention.sh SCORES.npz}")
source "$(dirname "$0")/common.sh"
seeds=${SEEDS:-"0 1 2 3 4"}
output=${OUTPUT_DIR:-runs/intervention}
dataset=${DATASET:-seq-digits}
data=${DATA_DIR:-$HOME/.cache/engram}

execute "$python" -m memorization.intervention --scores "$scores" --top 5,10,20 --n_random 5 --out_dir "$output/files"

runs() {
  for seed in $seeds; do
    for method in "--model joint" "--model er --buffer_size 100" "--model er --buffer_size 500"; do
      common="$method --dataset $dataset --data_dir $data --seed $seed --disable_log --ignore_other_metrics --output_dir $output"
      echo "$common"
      for percent in 5 10 20; do
        echo "$common --exclude $output/files/top_$percent.npz"
        echo "$common --exclude $output/files/random_${percent}_$seed.npz"
      done
    done
  done
}

runs | train_all "$output"
