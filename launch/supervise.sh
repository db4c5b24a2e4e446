#!/usr/bin/env bash
# Start a run again when it has crashed, from its newest good checkpoint.
#
#   launch/supervise.sh [option ...] COMMAND ... CONFIG [section.key=value ...]
#
# COMMAND is whatever starts the run: launch/local.sh N, launch/hostfile.sh HOSTFILE, deepspeed, torchrun or mpirun with
# launch/rank.py, or srun as in launch/slurm.sbatch. It is started as it stands, and with checkpoint.resume=auto behind it
# once the run has saved. Nothing of one start is left when the next begins. INT, TERM and USR1 go to COMMAND, which is
# waited for and not started again; the end of this script, however it comes, lets the ranks save and leave.
#
#   --tries N                starts in a row that bring the newest checkpoint no further, before this gives up (5)
#   --first-delay SECONDS    wait after such a start, twice as long after each further one in a row (10); else none
#   --longest-delay SECONDS  but no longer (600)
#   --restart-on-interrupt   start again after code 3, too: the run was interrupted and has saved
#   --restart-on-divergence  start again after code 4, too: the training diverged
#   --grace SECONDS          what processes that a start leaves behind get to save before they are killed (120)
#   --check COMMAND          asked before each further start: when it fails, this ends with the code of the last one
#   --run FOLDER             the run's folder, where CONFIG and overrides do not end COMMAND
#
# A disk that is full, also one that still is at the next start, ends with code 6 and is tried again like a crash.
# Not started again: a run that is done (0), refuses its input (2), was interrupted (3, 130), diverged (4) or differs (5).
# Exit code: that of the last start (launch/local.sh says which there are); where ranks recorded theirs, of the first to fail.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/supervise.sh [option ...] COMMAND ... CONFIG [section.key=value ...]"
readonly OVERRIDE='^[a-z_]+(\.[a-z0-9_]+)*='

tries=5
first_delay=10
longest_delay=600
grace=120
restart_on=()
run=""
check=""

# Of this supervision alone: what it starts has it in its environment, and is found by that.
readonly token="$$-$RANDOM$RANDOM"
records=""
child=""
# What INT, TERM and USR1 become on their way to COMMAND, where that is not as they came.
becomes=""
guard=""
stopped=""
# A signal that came when there was no process to get it.
pending=""

main() {
    help_if_asked "$@"
    read_options "$@"
    shift "$options"
    (($# >= 1)) || fail "$USAGE"
    command -v "$1" >/dev/null 2>&1 || fail "COMMAND=$1: no such command; $USAGE"
    [[ -d /proc/self ]] || fail "needs /proc, by which it finds what a start has left behind"
    trap 'forward INT' INT
    trap 'forward TERM' TERM HUP
    trap 'forward USR1' USR1
    if [[ -z "$run" ]]; then find_run "$@"; fi
    if [[ -n "$stopped" ]]; then finish 3 "ends by SIG$stopped, before start 1: nothing to save"; fi
    ROOTS_JOB_START="${ROOTS_JOB_START:-$(printf '%(%s)T' -1)}"
    export ROOTS_JOB_START
    records="$(mktemp -d)"
    trap 'rm -rf "$records"' EXIT
    start_guard
    supervise "$@"
}

# read_options WORD ...: sets `options` to how many of the words are options.
read_options() {
    local width
    options=0
    while (($# > 0)) && [[ "$1" == -* ]]; do
        width=2
        case "$1" in
            --tries) tries="$(number "$@")" ;;
            --first-delay) first_delay="$(number "$@")" ;;
            --longest-delay) longest_delay="$(number "$@")" ;;
            --grace) grace="$(number "$@")" ;;
            --check) check="${2:-}"; [[ -n "$check" ]] || fail "--check: needs a command; $USAGE" ;;
            --run) run="${2:-}"; [[ -n "$run" ]] || fail "--run: needs a folder; $USAGE" ;;
            --restart-on-interrupt) restart_on+=(3) width=1 ;;
            --restart-on-divergence) restart_on+=(4) width=1 ;;
            *) fail "$1: no such option; $USAGE" ;;
        esac
        shift "$width"
        options=$((options + width))
    done
}

# number OPTION VALUE ...: the value, or one line on what is wrong with it.
number() {
    [[ "${2:-}" =~ ^[0-9]+$ ]] || fail "$1=${2:-}: must be a whole number, not negative; $USAGE"
    echo "$((10#$2))"
}

# find_run WORD ...: sets `run` to the folder that CONFIG and the overrides at the end of the words name.
find_run() {
    local words=("$@") first=$#
    while ((first > 1)) && [[ "${words[first - 1]}" =~ $OVERRIDE ]]; do first=$((first - 1)); done
    [[ -f "${words[first - 1]}" ]] || fail "CONFIG=${words[first - 1]}: no such file; $USAGE"
    use_python
    run="$("$PYTHON" -c '
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
from roots.config import load_config
from roots.errors import RootsError
try:
    print(load_config(sys.argv[1], sys.argv[2:]).run_directory)
except RootsError as error:
    sys.exit("\n".join(f"roots: error: {line}" for line in error.lines))
' "${words[@]:first - 1}")" || [[ -n "$stopped" ]] || exit 2
}

# supervise COMMAND ...: start it until it need not, or must not, be started again; then exit.
supervise() {
    local starts=0 failures=0 delay=0 code=0 resume=() before newest why="the first"
    before="$(newest_step)"
    local -r at_first="$(latest_mark)"
    while true; do
        starts=$((starts + 1))
        tell "start $starts: $why; newest checkpoint: $(newest_name)"
        start "$@" "${resume[@]}"
        code=0
        wait_for_child || code=$?
        end_leftovers
        code="$(decide_code "$code")"
        if [[ -n "$stopped" ]]; then finish "$code" "ended with code $code after SIG$stopped"; fi
        if ! is_restarted "$code"; then finish "$code" "ended with code $code$(words_of "$code")"; fi
        newest="$(newest_step)"
        why="the last ended with code $code$(words_of "$code")"
        if ((newest > before)); then
            # A failure here and there: every second of waiting is one in which nothing is trained.
            before="$newest" failures=0
            why+=" and has brought a newer checkpoint"
        else
            failures=$((failures + 1))
            if ((failures > tries)); then
                finish "$code" "gives up: $why, and $tries starts in a row brought no newer checkpoint"
            fi
            delay=$((first_delay << (failures - 1 < 20 ? failures - 1 : 20)))
            delay=$((delay < longest_delay ? delay : longest_delay))
            why+=", try $failures of $tries after $delay s"
            pause "$delay"
        fi
        if [[ -n "$stopped" ]]; then finish "$code" "ends by SIG$stopped, before start $((starts + 1))"; fi
        # shellcheck disable=SC2086 # words
        if [[ -n "$check" ]] && ! $check >&2; then finish "$code" "ends, for \`$check\` failed: $why"; fi
        # What the command was told to begin with stands until the run has saved something itself.
        if [[ "$(latest_mark)" != "$at_first" ]]; then resume=(checkpoint.resume=auto); fi
    done
}

# start COMMAND ...: job control gives it a process group of its own, so that Ctrl-C reaches it as forwarded.
start() {
    local places=(ROOTS_SUPERVISED="$token")
    rm -f "$records"/*
    # srun tells the codes of all its tasks, and would take the folder to every node. Other launchers say 1, or 0, where
    # the ranks say more; launch/local.sh and hostfile.sh ask them themselves, in a folder of their own.
    if [[ "$(basename "$1")" == srun ]]; then
        # It shows its state at INT and ends the tasks at TERM; USR1 it passes on to them.
        becomes=USR1
    else
        places+=(ROOTS_RANK_RECORDS="$records")
    fi
    set -m
    env "${places[@]}" "$@" </dev/null &
    child=$!
    set +m
}

# A trapped signal ends `wait` early; the command's own code is what it gives when the process is gone.
wait_for_child() {
    local code=0
    if [[ -n "$pending" ]]; then forward "$pending"; fi
    # What ended a process is told by its code; bash would say it in words of its own as well.
    while kill -0 "$child" 2>/dev/null; do wait "$child" 2>/dev/null || true; done
    wait "$child" 2>/dev/null || code=$?
    child=""
    return "$code"
}

# forward SIGNAL
forward() {
    stopped="$1"
    if [[ -z "$child" ]]; then
        pending="$1"
    else
        kill -s "${becomes:-$1}" "$child" 2>/dev/null || true
    fi
}

# leftovers: the processes, of this host, that any start of this supervision has left.
leftovers() {
    grep -lszF "ROOTS_SUPERVISED=$token" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
}

# end_leftovers: ranks whose launcher is gone save and end when they are told; whoever does not in time is killed.
end_leftovers() {
    local pid pids number=TERM deadline=$((SECONDS + grace))
    while pids="$(leftovers)" && [[ -n "$pids" ]]; do
        if ((SECONDS >= deadline)); then number=KILL; fi
        for pid in $pids; do
            if [[ -n "$number" ]]; then kill -s "$number" "$pid" 2>/dev/null || true; fi
        done
        number=""
        sleep 0.2 || true
    done
}

# start_guard: outlives this script if that is killed, and ends what it has started.
start_guard() {
    set -m
    { while grep -qs 'State:.[^ZX]' "/proc/$$/status"; do sleep 1; done && end_leftovers && rm -rf "$records"; } >/dev/null 2>&1 &
    guard=$!
    set +m
}

# decide_code CODE: what the ranks recorded, if they did; without a record of its end a rank was killed.
decide_code() {
    local first begun ended
    begun="$(find "$records" -name '*.pid' | wc -l)"
    ended="$(find "$records" -name '*.code' | wc -l)"
    first="$(find "$records" -name '*.code' -exec cat {} + | sort -n | awk '$2 != 0 { print $2; exit }')"
    if [[ -n "$first" ]]; then
        echo "$first"
    elif ((ended < begun)); then
        echo 1
    else
        echo "$1"
    fi
}

# is_restarted CODE: also what a shell cannot start (126, 127) and what the keyboard has ended at once (130) stay.
is_restarted() {
    case "$1" in
        0 | 2 | 5 | 126 | 127 | 130) return 1 ;;
        3 | 4) [[ " ${restart_on[*]} " == *" $1 "* ]] ;;
        *) return 0 ;;
    esac
}

words_of() {
    case "$1" in
        0) echo " (done)" ;;
        1) echo " (a bug, or a rank that was killed)" ;;
        2) echo " (bad input)" ;;
        3) echo " (interrupted)" ;;
        4) echo " (diverged)" ;;
        6) echo " (not saved)" ;;
        7) echo " (a rank died or hung)" ;;
        *) if (($1 > 128)) && kill -l "$(($1 - 128))" >/dev/null 2>&1; then echo " (SIG$(kill -l "$(($1 - 128))"))"; fi ;;
    esac
}

# The newest checkpoint: its name in the run's folder, its step, and what changes with every save.
newest_name() {
    local name=""
    if [[ -f "$run/checkpoints/latest" ]]; then name="$(<"$run/checkpoints/latest")"; fi
    echo "${name:-none}"
}

newest_step() {
    local name
    name="$(newest_name)"
    if [[ "$name" =~ ^step_([0-9]+)$ ]]; then echo "$((10#${BASH_REMATCH[1]}))"; else echo -1; fi
}

latest_mark() {
    stat -c '%i %Y' "$run/checkpoints/latest" 2>/dev/null || echo none
}

# pause SECONDS: ends at a signal.
pause() {
    local sleeper
    sleep "$1" &
    sleeper=$!
    if [[ -z "$stopped" ]]; then wait "$sleeper" || true; fi
    kill "$sleeper" 2>/dev/null || true
}

tell() {
    printf 'supervise.sh: %s\n' "$1" >&2
}

# finish CODE TEXT
finish() {
    tell "$2"
    if [[ -n "$guard" ]]; then kill -- "-$guard" 2>/dev/null || true; fi
    exit "$1"
}

main "$@"
