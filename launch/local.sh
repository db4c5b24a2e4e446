#!/usr/bin/env bash
# Train, or use a trained model, on N ranks of this machine through the deepspeed launcher.
#
#   launch/local.sh N CONFIG [section.key=value ...]
#   launch/local.sh N generate|evaluate CHECKPOINT [--option ...]
#
# On GPUs, N is the number of GPUs; without, N processes share the cores (OMP_NUM_THREADS decides otherwise).
# INT, TERM and USR1 go to every rank, which finishes its step, saves and exits 3; so does Ctrl-C. The ranks do the same
# by themselves when this script or DeepSpeed's launcher is killed.
# Exit code: that of ROOTS (0 done, 2 bad input, 3 interrupted, saved, 4 diverged, 6 not saved, 7 a rank died or hung;
# 1 anything else).
# launch/supervise.sh starts a run again that has crashed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/local.sh N CONFIG [section.key=value ...], or N generate|evaluate CHECKPOINT [--option ...]"

records=""
launcher=""
stopped=""

main() {
    trap 'forward INT' INT
    trap 'forward TERM' TERM HUP
    trap 'forward USR1' USR1
    help_if_asked "$@"
    (($# >= 2)) || fail "$USAGE"
    local ranks="$1" words=()
    [[ "$ranks" =~ ^[1-9][0-9]*$ ]] || fail "N=$ranks: must be a positive number of ranks; $USAGE"
    shift
    if [[ "$1" == generate || "$1" == evaluate ]]; then
        words=("$@")
    else
        refuse_options "no such option" "$@"
        [[ -f "$1" ]] || fail "CONFIG=$1: no such file; $USAGE"
        words=(train "$@")
    fi
    use_python
    set_network
    need_deepspeed
    records="$(mktemp -d)"
    trap 'rm -rf "$records"' EXIT
    # When the job began, for stop.wall_clock: supervise.sh and batch scripts may have said so.
    ROOTS_JOB_START="${ROOTS_JOB_START:-$(printf '%(%s)T' -1)}"
    export ROOTS_RANK_RECORDS="$records" ROOTS_LAUNCHER="$$" ROOTS_JOB_START
    start "$ranks" "${words[@]}"
    local code=0
    wait_for_launcher || code=$?
    wait_for_ranks
    exit "$(decide_code "$ranks" "$code")"
}

# start N COMMAND ...: job control gives the launcher a process group of its own. Otherwise Ctrl-C would reach it too,
# and it kills ranks that are still saving.
start() {
    local ranks="$1" port devices=()
    shift
    choose_devices "$ranks"
    # A port the system says is free, so that two runs on one machine do not meet.
    port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    set -m
    deepspeed "${devices[@]}" --master_port "$port" --hostfile /dev/null/none --no_local_rank \
        --log_level critical "$ROOTS_HOME/launch/rank.py" "$@" </dev/null &
    launcher=$!
    set +m
    # A signal that came before there was a launcher.
    if [[ -n "$stopped" ]]; then forward "$stopped"; fi
}

# choose_devices N: sets `devices` of the caller. DeepSpeed overrules CUDA_VISIBLE_DEVICES when it is given a number.
choose_devices() {
    local ranks="$1" visible
    devices=(--num_accelerators "$ranks")
    if ! has_gpu; then
        # Said here, DeepSpeed need not guess and warn; an AMD GPU is for it to find.
        if [[ ! -e /dev/kfd ]]; then export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"; fi
        return
    fi
    if [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        ((${#visible[@]} >= ranks)) ||
            fail "N=$ranks: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names ${#visible[@]} GPUs; one is needed for each rank"
        CUDA_VISIBLE_DEVICES="$(IFS=,; echo "${visible[*]:0:ranks}")"
        export CUDA_VISIBLE_DEVICES
        devices=()
    elif (($(count_gpus) < ranks)); then
        fail "N=$ranks: this machine has $(count_gpus) GPUs; one is needed for each rank"
    fi
}

# forward SIGNAL: to the ranks alone; the launcher ends when they do. Before there are ranks there is nothing to save.
# shellcheck disable=SC2329 # called by traps
forward() {
    local file any=""
    stopped="$1"
    [[ -n "$launcher" ]] || return 0
    for file in "$records"/*.pid; do
        if [[ -f "$file" ]]; then
            any=yes
            kill -s "$1" "$(<"$file")" 2>/dev/null || true
        fi
    done
    if [[ -z "$any" ]]; then kill -s TERM -- "-$launcher" 2>/dev/null || true; fi
}

# A trapped signal ends `wait` early; the launcher's own code is what it gives when the process is gone.
wait_for_launcher() {
    local code=0
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done
    wait "$launcher" || code=$?
    return "$code"
}

# wait_for_ranks: a launcher that was killed has left its ranks, which notice it and save.
wait_for_ranks() {
    local file
    for file in "$records"/*.pid; do
        while [[ -f "$file" ]] && kill -0 "$(<"$file")" 2>/dev/null; do
            # Nothing else reaches one that is stopped.
            if grep -qs 'State:.[Tt]' "/proc/$(<"$file")/status"; then kill -s KILL "$(<"$file")" || true; fi
            sleep 0.2
        done
    done
}

# decide_code N CODE: the rank that failed first knows the reason; later ones failed because of it. A rank without a
# record was killed, and the launcher may call that success, or tell the others to stop.
decide_code() {
    local ranks="$1" code="$2" first begun rank killed=()
    begun="$(find "$records" -name '*.pid' | wc -l)"
    for ((rank = 0; rank < ranks; rank++)); do
        if [[ ! -f "$records/$rank.code" ]]; then killed+=("$rank"); fi
    done
    first="$(find "$records" -name '*.code' -exec cat {} + | sort -n | awk '$2 != 0 { print $2; exit }')"
    if [[ -n "$first" && ("$first" != 3 || -n "$stopped" || ${#killed[@]} == 0) ]]; then
        echo "$first"
    elif [[ -n "$stopped" && "$begun" == 0 ]]; then
        echo "local.sh: stopped by SIG$stopped before there were ranks, nothing to save" >&2
        echo 3
    elif ((${#killed[@]} > 0)); then
        printf 'local.sh: rank%s %s of %s ended without an exit code: killed, perhaps for lack of memory\n' \
            "$( ((${#killed[@]} == 1)) || echo s)" "$(IFS=,; echo "${killed[*]}")" "$ranks" >&2
        if ((begun > 0)); then echo 7; else echo 1; fi
    else
        echo "$code"
    fi
}

main "$@"
