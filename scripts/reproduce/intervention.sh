#!/usr/bin/env bash
# What is lost in a stream when the most memorized samples are left out, against as many random ones
# (memorization/intervention.py). Edit the lists and run it again; runs are added.
#
#     scripts/reproduce/intervention.sh SCORES.npz            (of memorization.eval_splits for digits)
#     python -m memorization.intervention --results runs/intervention
set -euo pipefail
scores=$(realpath "$1")
cd "$(dirname "$0")/../.."
seeds=${SEEDS:-"0 1 2 3 4"}
jobs=${JOBS:-2}
output=${OUTPUT_DIR:-runs/intervention}
dataset=${DATASET:-seq-digits}
data=${DATA_DIR:-$HOME/.cache/engram}
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)

mkdir -p "$output"
$python -m memorization.intervention --scores "$scores" --top 5,10,20 --n_random 5 --out_dir "$output/files"

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

runs | xargs -P "$jobs" -I{} scripts/reproduce/one_run.sh "$output" {}
