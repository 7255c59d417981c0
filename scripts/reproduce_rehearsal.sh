#!/usr/bin/env bash
# The README's rehearsal tables: every method on seq-mnist with 500 places (the benchmark's one epoch, batches
# of 10, learning rate 0.1 for all; `PRESETS=1`: each method's own settings where models/presets/ has them), and
# er, der, derpp, agem and gem on perm-mnist and rot-mnist with the DER paper's settings. Runs are added.
#
#     scripts/reproduce_rehearsal.sh [DATA_DIR]      (default: ~/.cache/engram; downloads MNIST if absent)
#     SEEDS="0 1" JOBS=2 OUTPUT_DIR=runs/rehearsal METHODS="er derpp" scripts/reproduce_rehearsal.sh
#     python scripts/report.py rehearsal runs/rehearsal --update README.md
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-$HOME/.cache/engram}
seeds=${SEEDS:-"0 1 2 3 4"}
jobs=${JOBS:-2}
output=${OUTPUT_DIR:-runs/rehearsal}
methods=${METHODS:-"er er_ace er_aml der derpp agem agem_r gem gss mir fdr maer"}
best=$([ "${PRESETS:-0}" = 1 ] && echo "--load_best_args" || true)

runs() {
  for seed in $seeds; do
    common="--data_dir $data --seed $seed --disable_log --ignore_other_metrics --output_dir $output"
    for method in $methods; do
      preset=$(grep -qs "^seq-mnist" "models/presets/$method.yaml" && echo "$best" || true)
      echo "--dataset seq-mnist --model $method --buffer_size 500 $preset $common"
    done
    for memory in balanced class_ring fifo loss_aware loss_aware_balanced; do
      echo "--dataset seq-mnist --model er --memory $memory --buffer_size 500 $common"
    done
    echo "--dataset seq-mnist --model full_buffer $common"
    echo "--dataset seq-mnist --model full_buffer --order grasp $common"
    for method in sgd cumulative joint; do
      echo "--dataset seq-mnist --model $method $common"
    done
    for dataset in perm-mnist rot-mnist; do
      for size in 200 500 5120; do
        for method in er der derpp agem gem; do
          echo "--dataset $dataset --model $method --buffer_size $size --load_best_args $common"
        done
      done
      # without a memory: the DER paper's rate for sgd, which serves joint too
      echo "--dataset $dataset --model sgd --lr 0.2 $common"
      echo "--dataset $dataset --model joint --lr 0.2 $common"
    done
  done
}

mkdir -p "$output"
runs | xargs -P "$jobs" -I{} scripts/one_run.sh "$output" {}
