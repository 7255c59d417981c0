#!/usr/bin/env bash
# maer's policies against a class-balanced and a plain reservoir, at several sizes of the memory, 5 seeds:
# what the memorization paper's figure of buffer sizes and tables show, small enough for a CPU.
#
#     scripts/reproduce/maer.sh digits [DATA_DIR]     175 runs of seconds
#     scripts/reproduce/maer.sh mnist [DATA_DIR]      145 runs of seconds
#     scripts/reproduce/maer.sh cifar10 [DATA_DIR]    110 runs of a small cnn, one epoch: 45 minutes of a core
#     python scripts/report.py memorization runs/maer/digits      paired differences, LaTeX
#     python -m memorization.plots --runs runs/maer/digits --out_dir runs/maer/digits/figures
#
# SCORES=FILE (of memorization.eval_splits) also logs accuracy by memorization; SEEDS, SIZES, JOBS, OUTPUT_DIR,
# DRY_RUN=1 to print.
# Finished runs are skipped, so it can be started again after an interruption.
source "$(dirname "$0")/common.sh"
study=${1:?digits, mnist or cifar10}
data=${2:-$HOME/.cache/engram}
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"

case $study in
  digits)
    sizes=(20 50 100 200 500)
    benchmark=(--dataset seq-digits) ;;
  mnist)
    sizes=(100 500 2000 10000)
    benchmark=(--dataset seq-mnist) ;;
  cifar10)
    sizes=(200 1000 5000)
    benchmark=(--dataset seq-cifar10 --backbone cnn --channels 16,32,64 --n_epochs 1 --lr 0.05 --lr_scheduler none) ;;
  *) echo "unknown study $study: digits, mnist or cifar10" >&2; exit 2 ;;
esac
[ -n "${SIZES:-}" ] && read -ra sizes <<<"$SIZES"
# given scores would choose in maer's place; its proxy is asked for by name
[ -n "${SCORES:-}" ] && benchmark+=(--memorization_scores "$(realpath "$SCORES")")

train() { # the grid, then -- and the flags of all its runs
  sweep "$@" "${benchmark[@]}" --data_dir "$data" --disable_log --ignore_other_metrics
}

common=(--output_dir "${OUTPUT_DIR:-runs/maer/$study}" --seed "${seeds[@]}")
train scripts/reproduce/maer.yaml "${common[@]}" --buffer_size "${sizes[@]}" --
train "${common[@]}" -- --model joint
exit $failed
