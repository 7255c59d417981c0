#!/usr/bin/env bash
# What is lost in a stream when the most memorized samples are left out, against as many random ones
# (memorization/intervention.py): each seed leaves out its own random choice. Edit the lists and run it again;
# finished runs are skipped, so other scores need another OUTPUT_DIR. Environment: SEEDS, JOBS, OUTPUT_DIR,
# DATASET, DATA_DIR, DRY_RUN=1 to print.
#
#     scripts/reproduce/intervention.sh SCORES.npz            (of memorization.eval_splits for digits)
#     python -m memorization.intervention --results runs/intervention
[ $# -gt 0 ] || { echo "usage: scripts/reproduce/intervention.sh SCORES.npz" >&2; exit 2; }
scores=$(realpath -m "$1")
source "$(dirname "$0")/common.sh"
read -ra seeds <<<"${SEEDS:-0 1 2 3 4}"
output=${OUTPUT_DIR:-runs/intervention}
highest=$(printf '%s\n' "${seeds[@]}" | sort -n | tail -n 1)

execute -m memorization.intervention --scores "$scores" --top 5,10,20 --n_random "$((highest + 1))" \
  --out_dir "$output/files"

train() { # flags of the grid, then -- and those of all its runs
  sweep --output_dir "$output" "$@" --dataset "${DATASET:-seq-digits}" --data_dir "${DATA_DIR:-$HOME/.cache/engram}" \
    --disable_log --ignore_other_metrics
}

methods() { # seeds and what is left out
  train --model joint "$@" --
  train --buffer_size 100 500 "$@" -- --model er
}

methods --seed "${seeds[@]}"
methods --seed "${seeds[@]}" --exclude "$output"/files/top_{5,10,20}.npz
for seed in "${seeds[@]}"; do
  methods --seed "$seed" --exclude "$output"/files/random_{5,10,20}"_$seed.npz"
done
exit "$failed"
