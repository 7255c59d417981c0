#!/usr/bin/env bash
# The three scenarios of van de Ven & Tolias 2019 (arXiv 1904.07734) with their settings: split MNIST
# (400-400 units, Adam 1e-3, 2,000 steps of 128 samples per task) and permuted MNIST (10 tasks, 1000-1000
# units, Adam 1e-4, 5,000 steps of 256), every method of the importance family beside the bounds. As in that
# paper's code Adam's state is kept from task to task, each seed splits the digits its own way, permuted
# images have a black border, and weights and biases begin as PyTorch's do (--mlp_init torch): from Xavier
# weights, our usual ones, its own code too keeps some of an old task in class-IL (RESULTS.md). In class-IL the
# softmax of training is over the classes seen so far, and the Fisher information is that of the labels the
# network predicts, on all training samples. The strengths of ewc, its online form and si are that code's
# (github.com/GMvandeVen/continual-learning, commit 9945f84, param_values.py).
#
# perm-small is permuted MNIST at a size at which that code was run too, on the permutations of our seeds: 5 tasks,
# 400-400 units, Adam 1e-3, 200 steps of 256. In class-IL its strengths are larger, so that they show at all. Its
# upper bound is that code's, which goes on training on the data of all tasks so far (cumulative, not joint).
#
#     scripts/reproduce/scenarios.sh [split|perm|all]         on the test set
#     scripts/reproduce/scenarios.sh perm-small
#     scripts/reproduce/scenarios.sh split tune               the grid the other strengths were chosen from:
#                                                             seed 0, 10 % of the training data held out
#     python scripts/report.py scenarios runs/scenarios [--update RESULTS.md]
#     python scripts/report.py perm-small runs/perm-small [--update RESULTS.md]
#     python scripts/report.py runs/scenarios-tune
#
# Environment: SEEDS (default "0 1 2 3 4"; split MNIST in domain-IL "1 2 ... 20", the paper's, as the pairs of
# digits that a seed draws move its accuracy by several points; perm-small "0 1 2"), JOBS (2), DATA_DIR
# (~/.cache/engram), OUTPUT_DIR (runs/scenarios, runs/scenarios-tune, runs/perm-small), ITERS (steps per task), ONLY
# (an extended regular expression on the run's name, e.g. ONLY='-task-il-(ewc|si)'), DRY_RUN=1 to print. Finished
# runs are skipped. On one core a run of split MNIST takes about a minute, one of permuted MNIST three quarters of
# an hour, one of perm-small half a minute.
source "$(dirname "$0")/common.sh"
which=${1:-all}
stage=${2:-run}
data=${DATA_DIR:-$HOME/.cache/engram}
case $which-$stage in split-run | perm-run | all-run | perm-small-run | split-tune | perm-tune | all-tune) ;; *)
  echo "usage: scripts/reproduce/scenarios.sh [split|perm|all] [tune] or scenarios.sh perm-small" >&2
  exit 2 ;;
esac
if [ "$stage" = tune ]; then
  output=${OUTPUT_DIR:-runs/scenarios-tune} held="--validation 10"
else
  [ "$which" = perm-small ] && folder=perm-small || folder=scenarios
  output=${OUTPUT_DIR:-runs/$folder} held=
fi

fisher="--fisher argmax --fisher_n 0"

# lwf has that paper's loss: λ = T² = 4 and the mean over classes (models/lwf.py), so T²/C for each head.
# benchmark method | flags for all scenarios | strength in task-IL | domain-IL | class-IL
table() {
  sed -e '/^ *#/d' -e '/^ *$/d' <<TABLE
split sgd        | | | |
split ewc        | --ewc_mode separate $fisher | --e_lambda 1e7 | --e_lambda 1e6 | --e_lambda 1e8
split ewc_online | --model ewc --ewc_mode online $fisher | --e_lambda 1e8 --gamma 0.8 | --e_lambda 1e8 --gamma 0.7 | --e_lambda 1e9 --gamma 0.8
split si         | | --si_c 50 | --si_c 500 | --si_c 0.5
split mas        | --mas_n 1000 | --mas_lambda 0.1 | --mas_lambda 1 | --mas_lambda 1
split rwalk      | | --rwalk_lambda 1 | --rwalk_lambda 10 | --rwalk_lambda 10
split lwf        | | --lwf_lambda 2 | --lwf_lambda 4 --lwf_distill seen | --lwf_lambda 4 --lwf_distill seen
split lwf_mc     | | | |
split ebll       | --lwf_lambda 1 | --ebll_alpha 0.1 | --ebll_alpha 1 | --ebll_alpha 0.1
split imm_mean   | | --imm_lambda 0.1 | --imm_lambda 0.001 | --imm_lambda 0.001
split imm_mode   | | --imm_lambda 0.1 | --imm_lambda 0.001 | --imm_lambda 0.001
split joint      | --model joint --n_iters 10000 | | |
split cumulative | | | |
perm sgd         | | | |
perm ewc         | --ewc_mode separate $fisher | --e_lambda 500 | --e_lambda 500 | --e_lambda 1
perm ewc_online  | --model ewc --ewc_mode online $fisher | --e_lambda 500 --gamma 0.8 | --e_lambda 1000 --gamma 0.9 | --e_lambda 5 --gamma 1
perm si          | | --si_c 5 | --si_c 5 | --si_c 0.1
perm mas         | --mas_n 1000 | --mas_lambda 0.1 | --mas_lambda 0.1 | --mas_lambda 0.1
perm lwf         | | --lwf_lambda 0.4 | --lwf_lambda 4 --lwf_distill seen | --lwf_lambda 4 --lwf_distill seen
perm joint       | --model joint --n_iters 50000 | | |
perm-small sgd        | | | |
perm-small ewc        | --ewc_mode separate $fisher | --e_lambda 500 | --e_lambda 500 | --e_lambda 100
perm-small ewc_online | --model ewc --ewc_mode online $fisher | --e_lambda 500 --gamma 0.8 | --e_lambda 1000 --gamma 0.9 | --e_lambda 100 --gamma 1
perm-small si         | | --si_c 5 | --si_c 5 | --si_c 10
perm-small lwf        | | --lwf_lambda 0.4 | --lwf_lambda 4 --lwf_distill seen | --lwf_lambda 4 --lwf_distill seen
perm-small cumulative | | | |
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
  case $1 in
    split) echo "--dataset seq-mnist --permute_classes --hidden_sizes 400,400 --mlp_init torch --lr 0.001" \
      "--n_iters ${ITERS:-2000} --batch_size 128" ;;
    perm) echo "--dataset perm-mnist --padding 2 --n_tasks 10 --hidden_sizes 1000,1000 --mlp_init torch --lr 0.0001" \
      "--n_iters ${ITERS:-5000} --batch_size 256" ;;
    perm-small) echo "--dataset perm-mnist --padding 2 --n_tasks 5 --hidden_sizes 400,400 --mlp_init torch --lr 0.001" \
      "--n_iters ${ITERS:-200} --batch_size 256" ;;
  esac
}

# In class-IL the softmax is over the classes seen so far; lwf_mc has none.
softmax_of() {
  [ "$1" != class-il ] || [ "$2" = lwf_mc ] || echo "--train_classes seen"
}

seeds_of() {
  if [ "$stage" = tune ]; then
    echo 0
  elif [[ $1 == split-domain-il-* ]]; then
    echo "${SEEDS:-$(seq -s " " 1 20)}"
  elif [[ $1 == perm-small-* ]]; then
    echo "${SEEDS:-0 1 2}"
  else
    echo "${SEEDS:-0 1 2 3 4}"
  fi
}

# without FLAG FLAGS ...: the flags but for this one and its value.
without() {
  sed -E "s/--$1 [^ ]+ ?//" <<<"${*:2}"
}

# name | flags of every run of a benchmark, method and scenario
runs() {
  table | while IFS='|' read -r name flags task domain class; do
    read -r benchmark method <<<"$name"
    [ "$which" = "$benchmark" ] || [[ $which == all && $benchmark != perm-small ]] || continue
    [[ $flags == *--model* ]] || flags="--model $method $flags"
    common=$(common_of "$benchmark")
    [[ $flags != *--n_iters* ]] || common=$(without n_iters "$common")
    for pair in "task-il:$task" "domain-il:$domain" "class-il:$class"; do
      scenario=${pair%%:*}
      strength="$(softmax_of "$scenario" "$method") ${pair#*:}"
      if [ "$stage" = run ]; then
        echo "$benchmark-$scenario-$method | $common --scenario $scenario $flags $strength"
        continue
      fi
      grid | while IFS='|' read -r of flag on_split on_perm; do
        read -r of <<<"$of"
        read -r flag <<<"$flag"
        [ "$of" = "$method" ] || continue
        [ "$benchmark" = split ] && values=$on_split || values=$on_perm
        for value in $values; do
          echo "$benchmark-$scenario-$method-$value | $common --scenario $scenario $flags" \
            "$(without "$flag" "$strength") --$flag $value"
        done
      done
    done
  done
}

todo() {
  runs | while IFS='|' read -r name flags; do
    name=${name%% *}
    [[ $name =~ ${ONLY:-.} ]] || continue
    for seed in $(seeds_of "$name"); do
      folder=$output/$name-seed$seed
      finished "$folder" && continue
      echo "$flags --optimizer adam --keep_optimizer --seed $seed --data_dir $data --output_dir $folder" \
        "--disable_log --ignore_other_metrics $held" | tr -s ' '
    done
  done
}

todo | train_all "$output" || failed=1
exit "$failed"
