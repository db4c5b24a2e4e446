#!/usr/bin/env bash
# From files of pairs to a trained model and its scores, for translation and for question answering:
#
#   launch/translation.sh [options] TRAIN VALID TEST [section.key=value ...]
#
#   -c CONFIG   (configs/run/translation-en-de.yaml)
#   -o FOLDER   for tokenizer, data, model, written.txt and evaluation.json (runs/translation)
#   -v SIZE     of the vocabulary that both sides share (6000)
#   -s KEY      key or column of the source in the .tsv or .jsonl files (source)
#   -t KEY      the same for the target (target)
#   -r RANKS    (the number of GPUs, or 2)
#
# What was made before is made again, but a training that was stopped goes on from its checkpoint.
# Exit code: 2 for wrong arguments, else that of the step that failed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/translation.sh [-c CONFIG] [-o FOLDER] [-v SIZE] [-s KEY] [-t KEY] [-r RANKS] TRAIN VALID TEST [section.key=value ...]"

config="$ROOTS_HOME/configs/run/translation-en-de.yaml"
folder="runs/translation"
vocab_size=6000
source_key="source"
target_key="target"
ranks=""

main() {
    help_if_asked "$@"
    read_options "$@"
    shift $((OPTIND - 1))
    (($# >= 3)) || fail "$USAGE"
    local train="$1" valid="$2" test="$3" file
    shift 3
    for file in "$train" "$valid" "$test" "$config"; do
        [[ -f "$file" ]] || fail "$file: no such file; $USAGE"
    done
    use_python
    if [[ -z "$ranks" ]]; then
        ranks="$(count_gpus)"
        if ((ranks == 0)); then ranks=2; fi
    fi
    local columns=(--source-key "$source_key" --target-key "$target_key")
    mkdir -p "$folder"

    echo "[1/4] one vocabulary of $vocab_size tokens for both sides"
    run_roots tokenizer train --pairs "${columns[@]}" --vocab-size "$vocab_size" --out "$folder/tokenizer" --overwrite "$train"
    echo "[2/4] tokens"
    run_roots preprocess --pairs "${columns[@]}" --tokenizer "$folder/tokenizer" --out "$folder/data/train" --overwrite "$train"
    run_roots preprocess --pairs "${columns[@]}" --tokenizer "$folder/tokenizer" --out "$folder/data/valid" --overwrite "$valid"
    echo "[3/4] training on $ranks ranks, recorded in $folder/model"
    bash "$ROOTS_HOME/launch/local.sh" "$ranks" "$config" "run.directory=$folder" "run.name=model" \
        "model.vocab_size=$vocab_size" "data.train=[$folder/data/train]" "data.valid=[$folder/data/valid]" \
        "data.tokenizer=$folder/tokenizer" "$@"
    echo "[4/4] scores of what it writes for $test, of copying and of a unigram table"
    run_roots evaluate "$folder/model" --pairs "$test" "${columns[@]}" --baselines "$train" \
        --written "$folder/written.txt" --json >"$folder/evaluation.json"
    cat "$folder/evaluation.json"
}

read_options() {
    local option
    while getopts ":c:o:v:s:t:r:" option; do
        case "$option" in
            c) config="$OPTARG" ;;
            o) folder="$OPTARG" ;;
            v) vocab_size="$OPTARG" ;;
            s) source_key="$OPTARG" ;;
            t) target_key="$OPTARG" ;;
            r) ranks="$OPTARG" ;;
            *) fail "-$OPTARG: unknown option, or its value is missing; $USAGE" ;;
        esac
    done
}

run_roots() {
    "$PYTHON" -m roots.cli.main "$@"
}

main "$@"
