#!/usr/bin/env bash
# maer's policies against a class-balanced and a plain reservoir, at several sizes of the memory, 5 seeds:
# what the memorization paper's figure of buffer sizes and tables show, small enough for a CPU.
#
#     scripts/reproduce/maer.sh digits [DATA_DIR]     175 runs of seconds
#     scripts/reproduce/maer.sh mnist [DATA_DIR]      145 runs of seconds
#     scripts/reproduce/maer.sh cifar10 [DATA_DIR]    110 runs of a small cnn, one epoch: 45 minutes of a core
#     SCORES=FILE SHARE=0.1 scripts/reproduce/maer.sh cifar10-mlp [DATA_DIR]      the paper's 50 epochs, in seconds each
#     SCORES=FILE SHARE=0.1 EPOCHS=8 scripts/reproduce/maer.sh cifar10-narrow [DATA_DIR]      a narrow ResNet-18
#     python scripts/report.py memorization runs/maer/digits      paired differences, LaTeX
#     python -m memorization.plots --runs runs/maer/digits --out_dir runs/maer/digits/figures
#
# The last two ask the paper's question, which samples a memory of each size should hold (claim.yaml): SCORES, which
# they need, are a published vector or those of memorization.eval_splits; SHARE is the part of the training set that
# the vector and the stream are made of (memorization.subsets draws it), and the sizes of the memory shrink with it.
# EPOCHS, WIDTH (20/64 of the channels) and PRECISION (bf16) change the narrow network's cost. ARMS=given runs only the
# policies that SCORES decide, and the balanced reservoir (claim_given.yaml): for a second file of scores.
# SCORES=FILE also logs accuracy by memorization in the others; SEEDS, SIZES, JOBS, OUTPUT_DIR, DRY_RUN=1 to print.
# Finished runs are skipped, so it can be started again after an interruption.
source "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || {
  echo "usage: scripts/reproduce/maer.sh digits|mnist|cifar10|cifar10-mlp|cifar10-narrow [DATA_DIR]" >&2
  exit 2
}
study=$1
data=${2:-$HOME/.cache/engram}
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"

spec=scripts/reproduce/maer.yaml
share=${SHARE:-1}
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
  cifar10-mlp)
    benchmark=(--dataset seq-cifar10 --augment none --backbone mlp --n_epochs "${EPOCHS:-50}" --lr 0.05) ;;
  cifar10-narrow)
    benchmark=(--dataset seq-cifar10 --backbone resnet18 --width "${WIDTH:-0.3125}" --precision "${PRECISION:-bf16}"
      --n_epochs "${EPOCHS:-50}") ;;
  *) echo "unknown study $study: digits, mnist, cifar10, cifar10-mlp or cifar10-narrow" >&2; exit 2 ;;
esac
if [[ $study == cifar10-* ]]; then
  [ -n "${SCORES:-}" ] || {
    echo "$study needs SCORES=FILE, which choose the samples: a published vector, or of memorization.eval_splits" >&2
    exit 2
  }
  [[ -n $dry || -f $SCORES ]] || { echo "SCORES=$SCORES: there is no such file" >&2; exit 2; }
  [[ $share =~ ^(1|0?\.[0-9]+)$ ]] || { echo "SHARE=$share: expected a number up to 1, e.g. 0.1" >&2; exit 2; }
  [[ ${EPOCHS:-50} =~ ^([2-9]|[1-9][0-9]+)$ ]] || { echo "EPOCHS=$EPOCHS: expected 2 or more" >&2; exit 2; }
  spec=scripts/reproduce/claim${ARMS:+_$ARMS}.yaml
  [ -f "$spec" ] || { echo "ARMS=$ARMS: given, or unset for all of claim.yaml" >&2; exit 2; }
  read -ra sizes <<<"$("$python" -c "print(*(round($share * size) for size in (200, 1000, 5000, 20000)))")"
  epochs=${EPOCHS:-50} # the rate falls after 70 and 90 % of them, as the paper's does
  benchmark+=(--lr_milestones "$((epochs * 7 / 10)),$((epochs * 9 / 10))")
fi
[ -n "${SIZES:-}" ] && read -ra sizes <<<"$SIZES"
# given scores would choose in maer's place; its proxy is asked for by name
[ -n "${SCORES:-}" ] && benchmark+=(--memorization_scores "$(realpath "$SCORES")")
if [ "$share" != 1 ]; then
  benchmark+=(--exclude unscored)
  [[ ${SCORES:-} == *.npy ]] && benchmark+=(--memorization_fraction "$share")
fi

train() { # the grid, then -- and the flags of all its runs
  sweep "$@" "${benchmark[@]}" --data_dir "$data" --disable_log --ignore_other_metrics
}

common=(--output_dir "${OUTPUT_DIR:-runs/maer/$study}" --seed "${seeds[@]}")
train "$spec" "${common[@]}" --buffer_size "${sizes[@]}" --
train "${common[@]}" -- --model joint
exit $failed
