#!/usr/bin/env bash
# Methods on the features of a pre-trained encoder that never changes: the rungs of RanPAC's CIFAR-100 table, or
# every such method on data and an encoder of your own. Each image is encoded once ever; then a run takes seconds.
#
#     scripts/reproduce/pretrained.sh [DATA_DIR]      CIFAR-100, ViT-B/16 of ImageNet-21k (timm downloads 350 MB)
#     DATASET=seq-cifar10 BACKBONE=timm:tf_efficientnet_lite0 PRETRAINED=lite0.safetensors \
#       scripts/reproduce/pretrained.sh
# Environment, beside these: SEEDS, JOBS, OUTPUT_DIR, EXTRA (more flags for every run), DRY_RUN=1 to print the runs.
#     python scripts/report.py pretrained runs/pretrained --update RESULTS.md
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"
# Pixels in [0, 1], as published: the weights themselves were trained with mean and deviation 0.5.
read -ra extra <<<"${EXTRA:---n_tasks 10 --pixel_mean 0 --pixel_std 1}"
flags=(--dataset "${DATASET:-seq-cifar100}" --backbone "${BACKBONE:-timm:vit_base_patch16_224.augreg_in21k}"
  --pretrained "${PRETRAINED:-default}" --permute_classes --augment none --data_dir "$data" --disable_log "${extra[@]}")

train() { # flags of the grid, then -- and those of all its runs
  sweep --seed "${seeds[@]}" --output_dir "${OUTPUT_DIR:-runs/pretrained}" "$@" "${flags[@]}" --ignore_other_metrics
}

train --model ncm ridge ranpac acil slda fecam knn fetril --
train --model linear_probe linear_probe_joint sgd -- --cache_features on --n_epochs 5
train --model er derpp maer -- --cache_features on --n_epochs 5 --buffer_size 500
exit "$failed"
