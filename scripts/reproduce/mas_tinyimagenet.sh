#!/usr/bin/env bash
# MAS-PyTorch's experiment: Tiny-ImageNet in 4 tasks of 50 classes, AlexNet with torchvision's ImageNet
# weights, its first two convolutions frozen, a head for each task.
#
#     scripts/reproduce/mas_tinyimagenet.sh [DATA_DIR]  (default: ~/.cache/engram; downloads Tiny-ImageNet if absent)
#
# Environment: EPOCHS (default 10), LAMBDA (default 0.01), FREEZE (default 2), PRETRAINED (default 1; 0:
# random weights, where the pre-trained ones cannot be had), INPUT_SIZE (default 224; 0: the images' own 64),
# SEEDS (default 0), DATASET (default seq-tinyimg), OUTPUT_DIR (default runs/mas-tinyimagenet), EXTRA (more
# flags), DRY_RUN=1 to print. Images of your own: DATASET=seq-imagefolder EXTRA="--image_dir DIR --img_size 64".
#
# That code's flags: --batch_size and --num_freeze_layers are the same; --num_epochs is --n_epochs,
# --init_lr --lr, --reg_lambda --mas_lambda; "rate times 0.1 every 20 epochs" is --lr_milestones 20,40,...,
# which its default of 10 epochs never reaches. Differs from that code: there no penalty is in force from the
# second task on (its importances are keyed by parameters that no longer exist after loading), and all but the
# first 5 - n convolutions are frozen, in the first task only. Here images are cropped with padding 4 and
# flipped at 64x64, then enlarged (there random resized crops), and importance comes from 1,000 un-augmented
# images of each task, sample by sample.
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
epochs=${EPOCHS:-10}
milestones=$(seq -s, 20 20 "$((epochs > 20 ? epochs : 20))")
log=$(mktemp)
trap 'rm -f "$log"' EXIT

for seed in ${SEEDS:-0}; do
  # shellcheck disable=SC2086  # EXTRA is words
  command=(main.py --model mas --mas_lambda "${LAMBDA:-0.01}" --mas_n 1000 \
    --dataset "${DATASET:-seq-tinyimg}" --data_dir "$data" --n_tasks 4 --multi_head \
    --backbone alexnet --pretrained "${PRETRAINED:-1}" --num_freeze_layers "${FREEZE:-2}" \
    --input_size "${INPUT_SIZE:-224}" --batch_size 32 --n_epochs "$epochs" \
    --lr 0.001 --lr_scheduler multistep --lr_milestones "$milestones" --ignore_other_metrics \
    --seed "$seed" --output_dir "${OUTPUT_DIR:-runs/mas-tinyimagenet}" ${EXTRA:-})
  execute "${command[@]}" | tee "$log"
  [ -z "$dry" ] || continue
  run=$(dirname "$(tail -n 1 "$log" | sed 's/^results: //')")
  $python scripts/interop/export_tasks.py "$run" "$run/models"
  $python scripts/interop/compute_forgetting.py "$run/models"
done
