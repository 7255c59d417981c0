#!/usr/bin/env bash
# Prompts, adapters, LoRA and alignment, each beside its control, on encoders that a CPU trains or runs: a small
# transformer trained on half of the classes of MNIST and Fashion-MNIST and used on 1,000 images of the others, 5
# tasks, rates chosen on held-out data.
#
#     scripts/reproduce/prompts_small.sh [DATA_DIR]
#     ENCODER=vits14.safetensors scripts/reproduce/prompts_small.sh [DATA_DIR]     600 images of CIFAR-10, a ViT-S
#                                                                   of timm (vit_small_patch14_dinov2) at 56 pixels
# Environment, beside ENCODER: SEEDS, RATES, ONLY (a regular expression of rows), JOBS, OUTPUT_DIR; DRY_RUN=1 prints
# the commands.
#     python scripts/report.py prompts runs/prompts-small
source "$(dirname "$0")/common.sh"
data=${1:-$HOME/.cache/engram}
out=${OUTPUT_DIR:-runs/prompts-small}
sizes=(--backbone small_vit --embed_dim 64 --depth 6 --num_heads 4 --patch_size 7)
common=(--disable_log --num_threads 1)
seeds=${SEEDS:-0,1,2}

sample() { # name of the file, then flags
  [ -f "$out/$1.npz" ] || execute scripts/interop/sample_arrays.py "$out/$1.npz" "${@:2}" --data_dir "$data"
}

study() { # flags of every run
  execute scripts/studies/prompts.py "$out" --seeds "${seeds// /,}" --rates "${RATES:-$rates}" \
    --only "${ONLY:-.}" --jobs "$jobs" -- --dataset seq-arrays --n_tasks 5 --batch_size 20 --augment none \
    "${common[@]}" "$@"
}

[ -n "$dry" ] || mkdir -p "$out"
if [ -n "${ENCODER:-}" ]; then
  rates=0.0005,0.002,0.008
  sample cifar10 cifar10 --train 60 --test 50
  study --arrays "$out/cifar10.npz" --backbone timm:vit_small_patch14_dinov2 --pretrained "$ENCODER" --input_size 56 \
    --n_epochs 2 --precision bf16
else
  rates=0.001,0.005,0.025
  encoder=$out/encoder
  sample half mnist fmnist --classes 0,1,2,3,4 --train 3400
  sample other_half mnist fmnist --classes 5,6,7,8,9
  if ! finished "$encoder"; then
    execute main.py --model joint --dataset seq-arrays --arrays "$out/half.npz" "${sizes[@]}" --n_epochs 3 \
      --batch_size 64 --optimizer adamw --lr 0.001 --optim_wd 0.05 --lr_scheduler cosine --savecheck last --augment none \
      --ignore_other_metrics "${common[@]}" --output_dir "$encoder"
  fi
  [ -n "$dry" ] || cp "$encoder"/*/*/*/weights/last.pt "$out/encoder.pt"
  study --arrays "$out/other_half.npz" "${sizes[@]}" --pretrained "$out/encoder.pt" --n_epochs 3
  # What the encoder has learned: the same methods on random weights.
  sweep --model ncm slda --seed ${seeds//,/ } --output_dir "$out/random" -- --dataset seq-arrays --n_tasks 5 \
    --arrays "$out/other_half.npz" "${sizes[@]}" --permute_classes --ignore_other_metrics "${common[@]}"
fi
exit "$failed"
