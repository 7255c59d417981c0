#!/usr/bin/env bash
# The rehearsal tables of RESULTS.md: every method on seq-mnist with 500 places (the benchmark's one epoch, batches
# of 10 and learning rate 0.1 for all), and er, der, derpp, agem and gem on perm-mnist and rot-mnist and the
# task-free methods on mnist-360 with the DER paper's settings. Finished runs are skipped; `short-cifar`: one
# epoch of a small cnn instead.
#
#     scripts/reproduce/rehearsal.sh [DATA_DIR]      (default: ~/.cache/engram; downloads MNIST if absent)
#     SEEDS="0 1" JOBS=2 OUTPUT_DIR=runs/rehearsal ONLY="seq-mnist" scripts/reproduce/rehearsal.sh
#     ONLY="short-cifar" OUTPUT_DIR=runs/short-cifar scripts/reproduce/rehearsal.sh
# Environment, beside these: EXTRA (more flags for every run), DRY_RUN=1 to print the runs and their cost.
#     python scripts/report.py rehearsal runs/rehearsal --update RESULTS.md
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"
read -ra extra <<<"${EXTRA:-}" # more flags for every run
only=${ONLY:-seq-mnist perm-mnist rot-mnist mnist-360}

train() { # flags of the grid, then -- and those of all its runs
  sweep --seed "${seeds[@]}" --output_dir "${OUTPUT_DIR:-runs/rehearsal}" \
    "$@" "${extra[@]}" --data_dir "$data" --disable_log --ignore_other_metrics
}

replay=(er er_ace er_aml der derpp agem agem_r gem gss mir fdr hal maer)
exemplars=(gdumb herding rainbow_memory goldilocks bcsr pbcs scr xder rpc)

class_il() { # the size of the stream's batches, the flags of the benchmark
  local batch=$1
  shift
  train --model "${replay[@]}" "${exemplars[@]}" -- "$@" --buffer_size 500
  # these three gain from an exemplar batch of the stream's size; the others have their own default, scr 100
  train --model icarl bic lucir -- "$@" --buffer_size 500 --minibatch_size "$batch"
  train --memory balanced class_ring fifo loss_aware loss_aware_balanced -- --model er "$@" --buffer_size 500
  train --order uniform grasp -- --model full_buffer "$@"
  train --model sgd cumulative joint -- "$@"
  train --model pnn -- "$@" --multi_head
}

domain_il() { # the benchmark
  train --model er der derpp agem gem --buffer_size 200 500 5120 -- --dataset "$1" --load_best_args
  train --model sgd joint -- --dataset "$1" --lr 0.2 # the DER paper's rate for sgd serves joint too
}

task_free() { # the flags of the benchmark
  train --model er der derpp agem_r --buffer_size 200 500 1000 -- "$@" --load_best_args
  train --model gss mir er_ace --buffer_size 200 500 1000 -- "$@" --minibatch_size 16
  train --model sgd joint -- "$@" --batch_size 4
}

for benchmark in $only; do
  case $benchmark in
    seq-mnist) class_il 10 --dataset seq-mnist ;;
    perm-mnist | rot-mnist) domain_il "$benchmark" ;;
    mnist-360) task_free --dataset mnist-360 ;;
    short-cifar) class_il 32 --dataset seq-cifar10 --backbone cnn --channels 16,32,64 --lr 0.05 --n_epochs 1 ;;
    *) echo "ONLY=$benchmark: choose from seq-mnist, perm-mnist, rot-mnist, mnist-360, short-cifar" >&2; exit 2 ;;
  esac
done
exit $failed
