#!/usr/bin/env bash
# From a fresh checkout to a trained model that writes, by one command:
#
#   bash launch/quickstart.sh
#
# Needs Debian or Ubuntu with Python 3.10 or newer, a C++ compiler and 8 GiB of disk. Makes .venv and runs/quickstart and
# touches nothing else (DeepSpeed keeps what it compiles in the user's cache). A second run skips what is done; what
# depends on something that has changed is made again. PYTHON and CXX choose the interpreter and the compiler, and
# ROOTS_BUILD=all compiles the CUDA kernels on a machine without a GPU too.
# Exit code: 2 for a machine that lacks something, else that of the step that failed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly FOLDER="runs/quickstart"
readonly CONFIG="configs/run/quickstart.yaml"
readonly VOCAB_SIZE=4096
readonly PROMPT="def __init__(self, name"
readonly NUM_STEPS=8
readonly NEEDED_MIB=512

# Each step's key is a hash over its inputs and the key of the step before it.
key="start"
number=0

main() {
    help_if_asked "$@"
    (($# == 0)) || fail "takes no arguments, was given: $*"
    cd "$ROOTS_HOME"
    check_machine
    say "environment: .venv with pinned versions, the compiled index builder and kernels"
    make_environment plots "$(kernels_here)"
    export VIRTUAL_ENV="$ROOTS_VENV"
    use_python
    mkdir -p "$FOLDER/stamps"

    step corpus "corpus from Python's standard library" \
        "$("$PYTHON" --version) $(<launch/quickstart_corpus.py)" make_corpus
    step tokenizer "BPE tokenizer with $VOCAB_SIZE ids" "$VOCAB_SIZE" train_tokenizer
    step data "tokens" "" preprocess
    step layout "ranks and precision for this machine" \
        "$(count_gpus) $(nproc) $(grep -m1 'model name' /proc/cpuinfo || uname -m) $(<launch/quickstart_layout.py)" choose_layout
    step train "training, recorded in $FOLDER/model" "$(<"$CONFIG") $(<configs/base.yaml)" train
    step evaluate "evaluation on held-out text" "" evaluate
    step generate "three continuations of '$PROMPT'" "$PROMPT" generate

    printf '\n'
    cat "$FOLDER/report.txt" "$FOLDER/evaluation.txt"
    printf '\n'
    cat "$FOLDER/continuations.txt"
    tell_next
}

# tell_next: what can be done with what now is there.
tell_next() {
    local layout
    mapfile -t layout <"$FOLDER/layout.txt"
    cat <<NEXT

all of it lies in $FOLDER; to go on:
  source .venv/bin/activate
  roots generate $FOLDER/model --prompt "import os" --max-new-tokens 64
  roots evaluate $FOLDER/model --data $FOLDER/data/valid
  roots export $FOLDER/model --to exported        # for transformers
  launch/local.sh ${layout[0]} $CONFIG ${layout[*]:1} training.steps=1200
NEXT
}

say() {
    number=$((number + 1))
    printf '[%s/%s] %s\n' "$number" "$NUM_STEPS" "$1"
}

# step NAME TITLE INPUTS FUNCTION
step() {
    local stamp="$FOLDER/stamps/$1"
    key="$(printf '%s\n' "$key" "$1" "$3" | sha256sum | cut -c1-16)"
    if [[ -f "$stamp" && "$(<"$stamp")" == "$key" ]]; then
        say "$2 (done before)"
        return
    fi
    say "$2"
    rm -f "$stamp"
    # A trap, because `"$4" || ...` would let the step go on after a command of it that fails.
    trap 'explain_failure "$?"' EXIT
    "$4"
    trap - EXIT
    printf '%s\n' "$key" >"$stamp"
}

# explain_failure CODE: a full disk is told in one line after all that the step has said. What the step wrote may be gone
# again, hence more than a few bytes. Code 3 is no failure: the training was stopped and has saved.
explain_failure() {
    local free_mib
    if (($1 == 0 || $1 == 3)); then return; fi
    free_mib="$(df -Pk "$FOLDER" | awk 'NR == 2 { print int($4 / 1024) }')" || return 0
    ((free_mib >= NEEDED_MIB)) ||
        fail "$free_mib MiB free in $ROOTS_HOME/$FOLDER: free some space and run this again"
}

make_corpus() {
    "$PYTHON" launch/quickstart_corpus.py "$FOLDER/corpus"
}

train_tokenizer() {
    rm -rf "$FOLDER/tokenizer"
    roots tokenizer train --vocab-size "$VOCAB_SIZE" --out "$FOLDER/tokenizer" "$FOLDER/corpus/train.jsonl"
}

preprocess() {
    local part
    rm -rf "$FOLDER/data"
    for part in train valid; do
        roots preprocess --tokenizer "$FOLDER/tokenizer" --out "$FOLDER/data/$part" "$FOLDER/corpus/$part.jsonl"
    done
}

choose_layout() {
    "$PYTHON" launch/quickstart_layout.py "$(count_gpus)" >"$FOLDER/layout.txt"
    echo "ranks, then what differs from $CONFIG: $(paste -sd' ' "$FOLDER/layout.txt")"
}

# A run that was stopped goes on from its checkpoint; one with other inputs starts afresh.
train() {
    local layout started="$FOLDER/stamps/train.started"
    if [[ ! -f "$started" || "$(<"$started")" != "$key" ]]; then
        rm -rf "$FOLDER/model"
        printf '%s\n' "$key" >"$started"
    fi
    mapfile -t layout <"$FOLDER/layout.txt"
    bash launch/local.sh "${layout[0]}" "$CONFIG" "${layout[@]:1}"
    "$PYTHON" launch/quickstart_report.py "$FOLDER/model" "$FOLDER/loss.png" >"$FOLDER/report.txt"
}

evaluate() {
    roots evaluate "$FOLDER/model" --data "$FOLDER/data/valid" >"$FOLDER/evaluation.txt"
}

generate() {
    roots generate "$FOLDER/model" --prompt "$PROMPT" --prompt "$PROMPT" --prompt "$PROMPT" \
        --max-new-tokens 64 --temperature 0.8 --top-p 0.9 >"$FOLDER/continuations.txt"
}

main "$@"
