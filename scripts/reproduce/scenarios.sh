#!/usr/bin/env bash
# The three scenarios of van de Ven & Tolias 2019 (arXiv 1904.07734) with their settings: split MNIST
# (400-400 units, Adam 1e-3, 2,000 steps of 128 samples per task) and permuted MNIST (10 tasks, 1000-1000
# units, Adam 1e-4, 5,000 steps of 256), every method of the importance family beside the bounds. As in that
# paper's code Adam's state is kept from task to task, each seed splits the digits its own way, and permuted
# images have a black border.
#
#     scripts/reproduce/scenarios.sh [split|perm|all]         5 seeds on the test set
#     scripts/reproduce/scenarios.sh split tune               the grid the strengths below were chosen from:
#                                                             seed 0, 10 % of the training data held out
#     python scripts/report.py scenarios runs/scenarios [--update RESULTS.md]
#     python scripts/report.py runs/scenarios-tune
#
# Environment: SEEDS (default "0 1 2 3 4"), JOBS (2), DATA_DIR (~/.cache/engram), OUTPUT_DIR (runs/scenarios,
# runs/scenarios-tune), ITERS (steps per task), ONLY (an extended regular expression on the run's name, e.g.
# ONLY='-task-il-(ewc|si)'), DRY_RUN=1 to print. Finished runs are skipped. On one core a run of split MNIST
# takes about a minute, one of permuted MNIST three quarters of an hour.
source "$(dirname "$0")/common.sh"
which=${1:-all}
stage=${2:-run}
data=${DATA_DIR:-$HOME/.cache/engram}
case $which-$stage in split-run | perm-run | all-run | split-tune | perm-tune | all-tune) ;; *)
  echo "usage: scripts/reproduce/scenarios.sh [split|perm|all] [tune]" >&2
  exit 2 ;;
esac
if [ "$stage" = tune ]; then
  output=${OUTPUT_DIR:-runs/scenarios-tune} seeds=0 held="--validation 10"
else
  output=${OUTPUT_DIR:-runs/scenarios} seeds=${SEEDS:-0 1 2 3 4} held=
fi

# lwf has that paper's loss: λ = T² = 4 and the mean over classes (models/lwf.py), so T²/C for each head.
# benchmark method | flags for all scenarios | strength in task-IL | domain-IL | class-IL
table() {
  sed -e '/^ *#/d' -e '/^ *$/d' <<'TABLE'
split sgd        | | | |
split ewc        | --ewc_mode separate | --e_lambda 1e5 | --e_lambda 1e3 | --e_lambda 1e5
split ewc_online | --model ewc --ewc_mode online | --e_lambda 1e5 | --e_lambda 1e3 | --e_lambda 1e5
split si         | | --si_c 10 | --si_c 10 | --si_c 10
split mas        | --mas_n 1000 | --mas_lambda 0.1 | --mas_lambda 1 | --mas_lambda 1
split rwalk      | | --rwalk_lambda 1 | --rwalk_lambda 10 | --rwalk_lambda 10
split lwf        | | --lwf_lambda 2 | --lwf_lambda 4 --lwf_distill seen | --lwf_lambda 4 --lwf_distill seen
split lwf_mc     | | | |
split ebll       | --lwf_lambda 1 | --ebll_alpha 0.1 | --ebll_alpha 1 | --ebll_alpha 0.1
split imm_mean   | | --imm_lambda 0.1 | --imm_lambda 0.001 | --imm_lambda 0.001
split imm_mode   | | --imm_lambda 0.1 | --imm_lambda 0.001 | --imm_lambda 0.001
split joint      | --model joint --n_iters 10000 | | |
perm sgd         | | | |
perm ewc         | --ewc_mode separate | --e_lambda 100 | --e_lambda 100 | --e_lambda 100
perm ewc_online  | --model ewc --ewc_mode online | --e_lambda 100 | --e_lambda 100 | --e_lambda 100
perm si          | | --si_c 10 | --si_c 10 | --si_c 10
perm mas         | --mas_n 1000 | --mas_lambda 0.1 | --mas_lambda 0.1 | --mas_lambda 0.1
perm lwf         | | --lwf_lambda 0.4 | --lwf_lambda 4 --lwf_distill seen | --lwf_lambda 4 --lwf_distill seen
perm joint       | --model joint --n_iters 50000 | | |
TABLE
}

# method | strengths of the tuning grid, split MNIST | permuted MNIST
grid() {
  sed -e '/^ *#/d' <<'TABLE'
ewc      | e_lambda     | 1e2 1e3 1e4 1e5 1e6 | 1 10 1e2 1e3
si       | si_c         | 0.1 1 10 100 1000   | 0.1 1 10 100
mas      | mas_lambda   | 0.01 0.1 1 10 100   | 0.01 0.1 1
rwalk    | rwalk_lambda | 0.1 1 10 100 1000   |
ebll     | ebll_alpha   | 0.1 1 10            |
imm_mean | imm_lambda   | 0.001 0.01 0.1      |
imm_mode | imm_lambda   | 0.001 0.01 0.1      |
TABLE
}

common_of() {
  if [ "$1" = split ]; then
    echo "--dataset seq-mnist --permute_classes --hidden_sizes 400,400 --lr 0.001 --n_iters ${ITERS:-2000}" \
      "--batch_size 128"
  else
    echo "--dataset perm-mnist --padding 2 --n_tasks 10 --hidden_sizes 1000,1000 --lr 0.0001" \
      "--n_iters ${ITERS:-5000} --batch_size 256"
  fi
}

# name | flags of every run of a benchmark, method and scenario
runs() {
  table | while IFS='|' read -r name flags task domain class; do
    read -r benchmark method <<<"$name"
    [ "$which" = all ] || [ "$which" = "$benchmark" ] || continue
    [[ $flags == *--model* ]] || flags="--model $method $flags"
    for pair in "task-il:$task" "domain-il:$domain" "class-il:$class"; do
      scenario=${pair%%:*} strength=${pair#*:}
      if [ "$stage" = run ]; then
        echo "$benchmark-$scenario-$method | $(common_of "$benchmark") --scenario $scenario $flags $strength"
        continue
      fi
      grid | while IFS='|' read -r of flag on_split on_perm; do
        [ "$(echo "$of" | tr -d ' ')" = "$method" ] || continue
        [ "$benchmark" = split ] && values=$on_split || values=$on_perm
        for value in $values; do
          echo "$benchmark-$scenario-$method-$value | $(common_of "$benchmark") --scenario $scenario $flags" \
            "$strength --$(echo "$flag" | tr -d ' ') $value"
        done
      done
    done
  done
}

todo() {
  runs | while IFS='|' read -r name flags; do
    name=${name%% *}
    [[ $name =~ ${ONLY:-.} ]] || continue
    for seed in $seeds; do
      folder=$output/$name-seed$seed
      finished "$folder" && continue
      echo "$flags --optimizer adam --keep_optimizer --seed $seed --data_dir $data --output_dir $folder" \
        "--disable_log --ignore_other_metrics $held" | tr -s ' '
    done
  done
}

todo | train_all "$output"
