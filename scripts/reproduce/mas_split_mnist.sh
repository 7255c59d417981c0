#!/usr/bin/env bash
# The split-MNIST demo of the MAS authors' repository: pairs 1-2, 3-4, 5-6, 7-8, 9-0, a perceptron
# 784-256-256 with a head for each pair, SGD with momentum 0.9, batches of 200, 20 epochs a task, in both
# of its settings: learning rate 0.01 ("sequence": average accuracy 99.27 %, average forgetting 0.083
# points) and 0.001 ("accumulation": 98.86 %, 0.071 points). About two minutes a run on an
# idle core.
#
#     scripts/reproduce/mas_split_mnist.sh [DATA_DIR]          (default: ~/.cache/engram; downloads MNIST if absent)
#
# Environment: SEEDS (default "0 1 2"), LAMBDA (default 0.5), JOBS (default 2), OUTPUT_DIR (default
# runs/mas-split-mnist), EXTRA (more flags), DRY_RUN=1 to print. Finished runs are
# skipped.
#
# --mas_lambda is what that code calls reg_lambda. Its 1 is 0.5 here: its importances are |sum of a batch's
# gradients|, ours the mean of each sample's |gradient| (eq. 3 of the paper), after the first pair 1.6
# (weights) to 2.4 times (biases) as large. Differs from that code: importances are added up in both
# settings, never recomputed on old data; 20 epochs for the first task too (there 10) and batches of 200
# throughout (there 150 from the second task on); no shipped initial weights, no L1 weight decay of 1e-5;
# and the last epoch's network counts, not the one that is best on test data, which in its log is worth up to
# 0.45 points of a task (7-8 at rate 0.01: 98.75 % in the last epoch, 99.20 % in the best).
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
output=${OUTPUT_DIR:-runs/mas-split-mnist}

todo() {
  for seed in ${SEEDS:-0 1 2}; do
    for lr in 0.01 0.001; do
      folder=$output/lr$lr-seed$seed
      finished "$folder" && continue
      echo "--model mas --mas_lambda ${LAMBDA:-0.5} --dataset seq-mnist --data_dir $data --multi_head" \
        "--class_order 1,2,3,4,5,6,7,8,9,0 --pixel_mean 0.1307 --pixel_std 0.3081 --hidden_sizes 256,256" \
        "--lr $lr --optim_mom 0.9 --batch_size 200 --n_epochs 20 --seed $seed --disable_log" \
        "--output_dir $folder ${EXTRA:-}"
    done
  done
}

todo | train_all "$output" || failed=1
[ -z "$dry" ] || exit 0
for run in "$output"/*/*/*/*/; do
  grep -qs '"status": "finished"' "$run/results.json" || continue
  echo "== $run"
  [ -d "${run}tasks" ] || $python scripts/interop/export_tasks.py "$run" "${run}tasks"
  $python scripts/interop/compute_forgetting.py "${run}tasks"
done
exit "$failed"
