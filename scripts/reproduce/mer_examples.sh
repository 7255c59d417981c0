#!/usr/bin/env bash
# Every experiment of the MER paper (Riemer et al. 2019): its 57 commands with their published
# hyper-parameters, and taskinput and agem, which the authors' script leaves out.
#
#     scripts/reproduce/mer_examples.sh SEED [rotations|permutations|manypermutations|all]
#
# Environment: DATA_DIR (default ~/.cache/engram), OUTPUT_DIR (default runs/mer), JOBS (default: cores),
# ONLY (an extended regular expression on the run's name, e.g. ONLY='5120|online'), DRY_RUN=1 to print.
# Finished runs are skipped, so it can be started again after an interruption.
#     python scripts/report.py mer runs/mer
source "$(dirname "$0")/common.sh"
jobs=${JOBS:-$(nproc)}
[ $# -gt 0 ] || {
  echo "usage: scripts/reproduce/mer_examples.sh SEED [rotations|permutations|manypermutations|all]" >&2
  exit 2
}
seed=$1
which=${2:-all}
output=${OUTPUT_DIR:-runs/mer}
data=${DATA_DIR:-$HOME/.cache/engram}
case $which in rotations | permutations | manypermutations | all) ;; *)
  echo "error: unknown benchmark '$which'; choose rotations, permutations, manypermutations or all" >&2
  exit 2 ;;
esac

# name | flags; a name is benchmark-method-memories. GEM's memory is per task: 20 x 256 = 5120, 100 x 51 = 5100.
table() {
  sed -e '/^ *#/d' -e '/^ *$/d' <<'TABLE'
rotations-online            | --model online --lr 0.0003
rotations-independent       | --model independent --lr 0.01
rotations-taskinput         | --model taskinput --lr 0.01
rotations-ewc               | --model ewc --ewc_variant mer --lr 0.001 --n_memories 10 --e_lambda 100
rotations-gem-5120          | --model gem --lr 0.01 --buffer_size 5120 --memory_strength 1.0
rotations-gem-500           | --model gem --lr 0.01 --buffer_size 500 --memory_strength 0.0
rotations-gem-200           | --model gem --lr 0.01 --buffer_size 200 --memory_strength 0.0
rotations-agem-5120         | --model agem --lr 0.01 --buffer_size 5120 --minibatch_size 256
rotations-eralg4-5120       | --model er --er_variant alg4 --lr 0.1 --buffer_size 5120 --minibatch_size 25
rotations-eralg4-500        | --model er --er_variant alg4 --lr 0.1 --buffer_size 500 --minibatch_size 5
rotations-eralg4-200        | --model er --er_variant alg4 --lr 0.1 --buffer_size 200 --minibatch_size 10
rotations-eralg5-5120       | --model er --er_variant alg5 --lr 0.03 --buffer_size 5120 --minibatch_size 100
rotations-eralg5-500        | --model er --er_variant alg5 --lr 0.01 --buffer_size 500 --minibatch_size 100
rotations-eralg5-200        | --model er --er_variant alg5 --lr 0.01 --buffer_size 200 --minibatch_size 50
rotations-meralg1-5120      | --model mer --mer_variant alg1 --lr 0.03 --beta 0.03 --gamma 1 --buffer_size 5120 --minibatch_size 100 --batches_per_example 10
rotations-meralg1-500       | --model mer --mer_variant alg1 --lr 0.1 --beta 0.01 --gamma 1 --buffer_size 500 --minibatch_size 10 --batches_per_example 10
rotations-meralg1-200       | --model mer --mer_variant alg1 --lr 0.1 --beta 0.01 --gamma 1 --buffer_size 200 --minibatch_size 10 --batches_per_example 5
rotations-meralg6-5120      | --model mer --mer_variant alg6 --lr 0.03 --gamma 0.1 --buffer_size 5120 --minibatch_size 100 --batches_per_example 1
rotations-meralg6-500       | --model mer --mer_variant alg6 --lr 0.1 --gamma 0.03 --buffer_size 500 --minibatch_size 10 --batches_per_example 1
rotations-meralg6-200       | --model mer --mer_variant alg6 --lr 0.1 --gamma 0.03 --buffer_size 200 --minibatch_size 25 --batches_per_example 1
rotations-meralg7-5120      | --model mer --mer_variant alg7 --lr 0.03 --gamma 0.03 --buffer_size 5120 --minibatch_size 100 --current_weight 5
rotations-meralg7-500       | --model mer --mer_variant alg7 --lr 0.03 --gamma 0.03 --buffer_size 500 --minibatch_size 50 --current_weight 5
rotations-meralg7-200       | --model mer --mer_variant alg7 --lr 0.03 --gamma 0.03 --buffer_size 200 --minibatch_size 50 --current_weight 5
permutations-online         | --model online --lr 0.003
permutations-independent    | --model independent --lr 0.01
permutations-taskinput      | --model taskinput --lr 0.01
permutations-ewc            | --model ewc --ewc_variant mer --lr 0.01 --n_memories 10 --e_lambda 10
permutations-gem-5120       | --model gem --lr 0.01 --buffer_size 5120 --memory_strength 1.0
permutations-gem-500        | --model gem --lr 0.01 --buffer_size 500 --memory_strength 1.0
permutations-gem-200        | --model gem --lr 0.01 --buffer_size 200 --memory_strength 0.0
permutations-agem-5120      | --model agem --lr 0.01 --buffer_size 5120 --minibatch_size 256
permutations-eralg4-5120    | --model er --er_variant alg4 --lr 0.1 --buffer_size 5120 --minibatch_size 25
permutations-eralg4-500     | --model er --er_variant alg4 --lr 0.1 --buffer_size 500 --minibatch_size 10
permutations-eralg4-200     | --model er --er_variant alg4 --lr 0.1 --buffer_size 200 --minibatch_size 10
permutations-eralg5-5120    | --model er --er_variant alg5 --lr 0.01 --buffer_size 5120 --minibatch_size 25
permutations-eralg5-500     | --model er --er_variant alg5 --lr 0.01 --buffer_size 500 --minibatch_size 25
permutations-eralg5-200     | --model er --er_variant alg5 --lr 0.01 --buffer_size 200 --minibatch_size 10
permutations-meralg1-5120   | --model mer --mer_variant alg1 --lr 0.03 --beta 0.03 --gamma 1 --buffer_size 5120 --minibatch_size 100 --batches_per_example 10
permutations-meralg1-500    | --model mer --mer_variant alg1 --lr 0.03 --beta 0.03 --gamma 1 --buffer_size 500 --minibatch_size 25 --batches_per_example 10
permutations-meralg1-200    | --model mer --mer_variant alg1 --lr 0.03 --beta 0.03 --gamma 1 --buffer_size 200 --minibatch_size 10 --batches_per_example 10
permutations-meralg6-5120   | --model mer --mer_variant alg6 --lr 0.03 --gamma 0.1 --buffer_size 5120 --minibatch_size 50 --batches_per_example 1
permutations-meralg6-500    | --model mer --mer_variant alg6 --lr 0.03 --gamma 0.3 --buffer_size 500 --minibatch_size 10 --batches_per_example 1
permutations-meralg6-200    | --model mer --mer_variant alg6 --lr 0.1 --gamma 0.03 --buffer_size 200 --minibatch_size 5 --batches_per_example 1
permutations-meralg7-5120   | --model mer --mer_variant alg7 --lr 0.01 --gamma 0.1 --buffer_size 5120 --minibatch_size 100 --current_weight 10
permutations-meralg7-500    | --model mer --mer_variant alg7 --lr 0.01 --gamma 0.1 --buffer_size 500 --minibatch_size 25 --current_weight 10
permutations-meralg7-200    | --model mer --mer_variant alg7 --lr 0.03 --gamma 0.1 --buffer_size 200 --minibatch_size 5 --current_weight 2
manypermutations-online       | --model online --lr 0.003
manypermutations-independent  | --model independent --lr 0.01
manypermutations-taskinput    | --model taskinput --lr 0.01
manypermutations-ewc          | --model ewc --ewc_variant mer --lr 0.003 --n_memories 10 --e_lambda 1
manypermutations-gem-5120     | --model gem --lr 0.01 --buffer_size 5100 --memory_strength 0.0
manypermutations-gem-500      | --model gem --lr 0.003 --buffer_size 500 --memory_strength 0.1
manypermutations-agem-5120    | --model agem --lr 0.01 --buffer_size 5100 --minibatch_size 256
manypermutations-eralg4-5120  | --model er --er_variant alg4 --lr 0.1 --buffer_size 5120 --minibatch_size 25
manypermutations-eralg4-500   | --model er --er_variant alg4 --lr 0.1 --buffer_size 500 --minibatch_size 25
manypermutations-eralg5-5120  | --model er --er_variant alg5 --lr 0.003 --buffer_size 5120 --minibatch_size 10
manypermutations-eralg5-500   | --model er --er_variant alg5 --lr 0.01 --buffer_size 500 --minibatch_size 5
manypermutations-meralg1-5120 | --model mer --mer_variant alg1 --lr 0.1 --beta 0.01 --gamma 1 --buffer_size 5120 --minibatch_size 5 --batches_per_example 10
manypermutations-meralg1-500  | --model mer --mer_variant alg1 --lr 0.03 --beta 0.03 --gamma 1 --buffer_size 500 --minibatch_size 5 --batches_per_example 10
manypermutations-meralg6-5120 | --model mer --mer_variant alg6 --lr 0.03 --gamma 0.1 --buffer_size 5120 --minibatch_size 25 --batches_per_example 1
manypermutations-meralg6-500  | --model mer --mer_variant alg6 --lr 0.1 --gamma 0.03 --buffer_size 500 --minibatch_size 5 --batches_per_example 1
manypermutations-meralg7-5120 | --model mer --mer_variant alg7 --lr 0.03 --gamma 0.03 --buffer_size 5120 --minibatch_size 100 --current_weight 10
manypermutations-meralg7-500  | --model mer --mer_variant alg7 --lr 0.03 --gamma 0.03 --buffer_size 500 --minibatch_size 5 --current_weight 10
TABLE
}

todo() {
  table | while IFS='|' read -r name flags; do
    name=${name%% *}
    [ "$which" = all ] || [ "${name%%-*}" = "$which" ] || continue
    [[ $name =~ ${ONLY:-.} ]] || continue
    folder=$output/$name-seed$seed
    finished "$folder" && continue
    echo "--dataset mnist-${name%%-*} $flags --seed $seed --data_dir $data --output_dir $folder" \
      "--experiment_name mer --run_name $name-seed$seed --ignore_other_metrics ${EXTRA:-}"
  done
}

todo | train_all "$output" || failed=1
exit "$failed"
