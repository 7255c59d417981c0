#!/usr/bin/env bash
# Prompts, adapters and LoRA in a vision transformer beside the controls that a reviewer asks for: fine-tuning one
# task after the other, with everything, little or nothing below the head learning, or slowly, over the task's
# classes or all; a method without its mechanism; classifiers of features that never change; all tasks at once.
#
#     scripts/reproduce/prompts.sh [DATA_DIR]      CIFAR-100, ViT-B/16 of ImageNet-21k (timm downloads 350 MB); a GPU
#     DATASET=seq-cifar10 BACKBONE=timm:vit_small_patch14_dinov2 PRETRAINED=vits14.safetensors \
#       EXTRA="--input_size 112 --n_epochs 2" scripts/reproduce/prompts.sh
#     DATASET=seq-cifar10 BACKBONE=small_vit PRETRAINED=ENCODER.pt scripts/reproduce/prompts.sh
# Environment, beside these: SEEDS, JOBS, OUTPUT_DIR, EXTRA (more flags for every run), DRY_RUN=1 to print the runs.
#     python scripts/report.py prompts runs/prompts
# On a CPU: prompts_small.sh.
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
read -ra seeds <<<"${SEEDS:-0 1 2}"
read -ra extra <<<"${EXTRA:-}"
flags=(--dataset "${DATASET:-seq-cifar100-224}" --data_dir "$data" --disable_log --ignore_other_metrics)
flags+=(${BACKBONE:+--backbone "$BACKBONE"} ${PRETRAINED:+--pretrained "$PRETRAINED"})

sweep scripts/reproduce/prompts.yaml --seed "${seeds[@]}" --output_dir "${OUTPUT_DIR:-runs/prompts}" -- \
  "${flags[@]}" --permute_classes "${extra[@]}"
exit "$failed"
