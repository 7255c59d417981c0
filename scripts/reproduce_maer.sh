#!/usr/bin/env bash
# maer's policies against a class-balanced and a plain reservoir, at several sizes of the memory, 5 seeds:
# what the memorization paper's figure of buffer sizes and tables show, small enough for a CPU.
#
#     scripts/reproduce_maer.sh digits [DATA_DIR]     175 runs of seconds
#     scripts/reproduce_maer.sh mnist [DATA_DIR]      135 runs of a minute
#     scripts/reproduce_maer.sh cifar10 [DATA_DIR]    135 runs of the small cnn, 5 epochs a task: hours
#     python scripts/report.py memorization runs/maer/digits      paired differences, LaTeX
#     python -m memorization.plots --runs runs/maer/digits --out_dir runs/maer/digits/figures
#
# SCORES=FILE (of memorization.eval_splits) also logs accuracy by memorization; SEEDS, JOBS and OUTPUT_DIR
# as in the other sweeps. Runs that a stopped sweep had finished are skipped when it is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
study=${1:?digits, mnist or cifar10}
data=${2:-$HOME/.cache/engram}
seeds=${SEEDS:-"0 1 2 3 4"}
jobs=${JOBS:-2}
output=${OUTPUT_DIR:-runs/maer/$study}

case $study in
  digits)
    sizes="20 50 100 200 500"
    common="--dataset seq-digits" ;;
  mnist)
    sizes="100 500 2000 10000"
    common="--dataset seq-mnist" ;;
  cifar10)
    sizes="200 1000 5000 20000"
    common="--dataset seq-cifar10 --backbone cnn --n_epochs 5 --lr 0.03 --lr_scheduler none" ;;
  *) echo "unknown study $study: digits, mnist or cifar10" >&2; exit 2 ;;
esac
# given scores would choose in maer's place; its proxy is asked for by name
[ -n "${SCORES:-}" ] && common="$common --memorization_scores $(realpath "$SCORES")"
common="$common --data_dir $data --disable_log --ignore_other_metrics --output_dir $output"

runs() {
  for seed in $seeds; do
    for size in $sizes; do
      flags="$common --seed $seed --buffer_size $size"
      echo "$flags --model er"
      echo "$flags --model er --memory balanced"
      for policy in min middle max; do
        echo "$flags --model maer --buffer_policy $policy --mem_proxy learning_order"
      done
      echo "$flags --model maer_high --buffer_policy min --mem_proxy learning_order"
      echo "$flags --model maer_adaptive --mem_proxy learning_order"
    done
    echo "$common --seed $seed --model joint"
  done
}

mkdir -p "$output"
touch "$output/done.txt"
runs | grep -vxFf "$output/done.txt" | xargs -P "$jobs" -I{} sh -c \
  'line=$(scripts/one_run.sh "$1" "$2"); echo "$line"; case $line in results:*) echo "$2" >>"$1/done.txt" ;; esac' \
  _ "$output" {}
