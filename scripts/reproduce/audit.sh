#!/usr/bin/env bash
# How many points of accuracy are practices of published code worth? Prompts chosen by a vote of the test batch, a
# reshape that mixes images up, a softmax of the task alone, pixels in [0, 1], releases that differ from their papers:
# runs in pairs, and trained networks that are evaluated again in other ways (scripts/audit_evaluation.py).
#
#     scripts/reproduce/audit.sh [DATA_DIR]      CIFAR-100, ViT-B/16 of ImageNet-21k (timm downloads 350 MB); a GPU
#     DATASET=seq-arrays BACKBONE=timm:vit_small_patch14_dinov2 PRETRAINED=vits14.safetensors \
#       EXTRA="--arrays images.npz --input_size 56 --n_epochs 2" scripts/reproduce/audit.sh
# Environment, beside these: SEEDS, JOBS, OUTPUT_DIR, EXTRA (more flags for every run), DRY_RUN=1 to print the runs.
#     python scripts/report.py audit runs/audit --update RESULTS.md
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
output=${OUTPUT_DIR:-runs/audit}
read -ra seeds <<<"${SEEDS:-0 1 2}"
read -ra extra <<<"${EXTRA:-}"
flags=(--dataset "${DATASET:-seq-cifar100-224}" --data_dir "$data" --disable_log --ignore_other_metrics)
flags+=(--backbone "${BACKBONE:-timm:vit_base_patch16_224.augreg_in21k}" --pretrained "${PRETRAINED:-default}")

sweep scripts/reproduce/audit.yaml --seed "${seeds[@]}" --output_dir "$output" -- "${flags[@]}" --permute_classes "${extra[@]}"
[ -n "$dry" ] || "$python" scripts/audit_evaluation.py "$output" || failed=1
exit "$failed"
