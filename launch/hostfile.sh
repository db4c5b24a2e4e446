#!/usr/bin/env bash
# Train on the hosts of a DeepSpeed hostfile, over ssh by pdsh.
#
#   launch/hostfile.sh HOSTFILE CONFIG [section.key=value ...]
#
# HOSTFILE has a line `NAME slots=N` for each host, N the ranks (GPUs) to start there; comments after #, and OpenMPI's
# `max_slots=N`, are passed over. Every host needs this checkout and its environment at the same path, and ssh without a
# password from here. Set MASTER_PORT to choose the port on the first host. INT, TERM and USR1 make every rank finish its
# step, save and exit 3; so does the end of this script or of DeepSpeed's launcher.
# Variables that begin with one of PASSED_ON reach the ranks on every host; those that look like secrets do not, because
# whoever can list processes on a host can read a command line: put them into a file of your own there.
# Exit code: of the rank that failed first (0 done, 2 bad input, 3 interrupted, saved, 4 diverged, 6 not saved, 7 a rank died
# or hung; 1 else).
# launch/supervise.sh starts a run again that has crashed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/hostfile.sh HOSTFILE CONFIG [section.key=value ...]"
readonly PASSED_ON='^(PYTHON|NCCL_|GLOO_|UCX_|OMP_|CUDA_|TORCH_|TORCHINDUCTOR_|ROOTS_|WANDB_|HF_)'
readonly SECRET='(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)'
# How often this looks whether ranks have ended because one was lost, and how long all others then have to end.
readonly LOOK_SECONDS=5 END_SECONDS=10
# Of a shell on any host, for the rank that wrote $file: nothing but SIGKILL reaches what is stopped.
# shellcheck disable=SC2016
readonly KILL_STOPPED='grep -qs "State:.[Tt]" /proc/$(cat "$file")/status && kill -s KILL $(cat "$file")'
readonly NOT_PASSED='^(CUDA_VISIBLE_DEVICES|ROOTS_HOME|ROOTS_VENV|ROOTS_CONSTRAINTS|ROOTS_LAUNCHER)$'

hosts=""
ranks=0
launcher=""
guard=""
lookout=""
folder=""
records=""
here=""
stopped=""

main() {
    trap 'forward USR1' INT TERM HUP USR1
    (($# >= 2)) || fail "$USAGE"
    local hostfile="$1" config="$2" code=0
    [[ -f "$hostfile" ]] || fail "HOSTFILE=$hostfile: no such file; $USAGE"
    [[ -f "$config" ]] || fail "CONFIG=$config: no such file; $USAGE"
    shift
    # When the job began, for stop.wall_clock.
    ROOTS_JOB_START="${ROOTS_JOB_START:-$(printf '%(%s)T' -1)}"
    export ROOTS_JOB_START
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    read_hosts "$hostfile"
    command -v pdsh >/dev/null 2>&1 || fail "no pdsh on PATH: run \`apt-get install pdsh\`"
    check_hosts
    use_python
    set_network
    need_deepspeed
    # A name of this run alone: its ranks are found by what lies there, on every host, and those of no other run.
    records="/tmp/roots-ranks-$(basename "$folder")-$$"
    # Hosts may share /tmp, and a process number means something on its own host alone.
    here="$records/\$(uname -n)"
    write_variables
    start "$@"
    wait_for_launcher || code=$?
    end_ranks
    code="$(decide_code "$code")"
    on_hosts "rm -rf '$records'" >/dev/null || true
    exit "$code"
}

# start CONFIG ...: job control gives the launcher a process group of its own: Ctrl-C must reach the ranks, and it would
# kill them. The guard outlives this script if that is killed, and tells the ranks.
start() {
    local word words=()
    for word in "$@"; do words+=("$(for_remote_shell "$word")"); done
    set -m
    DS_ENV_FILE="$folder/variables" deepspeed --hostfile "$folder/hosts" --force_multi \
        --master_port "${MASTER_PORT:-$((20000 + RANDOM % 20000))}" \
        --no_local_rank --log_level critical "$ROOTS_HOME/launch/rank.py" train "${words[@]}" </dev/null &
    launcher=$!
    { while grep -qs 'State:.[^ZX]' "/proc/$$/status"; do sleep 1; done && end_ranks && on_hosts "rm -rf '$records'" && rm -rf "$folder"; } >/dev/null 2>&1 &
    guard=$!
    { end_lost; } >/dev/null 2>&1 &
    lookout=$!
    set +m
    # A signal that came before there was a launcher.
    if [[ -n "$stopped" ]]; then forward USR1; fi
}

# for_remote_shell WORD: DeepSpeed puts a word with a space between double quotes, and others as they are, into a command
# line that the shell of every host reads again.
for_remote_shell() {
    # shellcheck disable=SC2001 # a class of signs, each kept
    if [[ "$1" == *" "* ]]; then sed 's/[\\$`]/\\&/g' <<<"$1"; else printf '%q\n' "$1"; fi
}

# read_hosts FILE: sets `hosts` to a comma-separated list and `ranks` to the sum of the slots, and writes the file that
# DeepSpeed gets; or names the line that is wrong.
read_hosts() {
    local line number=0 name slots
    : >"$folder/hosts"
    while IFS= read -r line || [[ -n "$line" ]]; do
        number=$((number + 1))
        line="${line%$'\r'}"
        [[ ! "${line%%#*}" =~ ^[[:space:]]*$ ]] || continue
        [[ "${line%%#*}" =~ ^[[:space:]]*([A-Za-z0-9][A-Za-z0-9._:@-]*)[[:space:]]+slots[[:space:]]*=[[:space:]]*([1-9][0-9]*)([[:space:]]+max[_-]slots[[:space:]]*=[[:space:]]*[0-9]+)?[[:space:]]*$ ]] ||
            fail "HOSTFILE=$1: line $number is '$line', must be 'NAME slots=N'"
        name="${BASH_REMATCH[1]}" slots="${BASH_REMATCH[2]}"
        ! grep -q "^$name slots=" "$folder/hosts" ||
            fail "HOSTFILE=$1: line $number names $name again; give each host one line with all its slots"
        echo "$name slots=$slots" >>"$folder/hosts"
        ranks=$((ranks + slots))
    done <"$1"
    hosts="$(cut -d' ' -f1 "$folder/hosts" | paste -sd,)"
    [[ -n "$hosts" ]] || fail "HOSTFILE=$1: names no host; write a line 'NAME slots=N' for each"
}

# check_hosts: every host answers to ssh without a password, or is named.
check_hosts() {
    local host answer
    for host in ${hosts//,/ }; do
        answer="$(ssh -o BatchMode=yes -o ConnectTimeout=10 "$host" true 2>&1 </dev/null)" ||
            fail "host $host does not answer to \`ssh -o BatchMode=yes $host true\` (${answer%%$'\n'*}): start it, or give it your key by \`ssh-copy-id $host\`"
    done
}

# write_variables: what the ranks on every host get, as `NAME=value`. DeepSpeed puts it between double quotes into their
# command line, where four signs keep a meaning.
write_variables() {
    local name value own
    for own in "$HOME/.deepspeed_env" .deepspeed_env; do
        if [[ -f "$own" ]]; then cat "$own" >>"$folder/variables"; fi
    done
    for name in $(compgen -e); do
        [[ "$name" =~ $PASSED_ON && ! "$name" =~ $NOT_PASSED ]] || continue
        if [[ "$name" =~ $SECRET ]]; then
            echo "hostfile.sh: $name looks like a secret and stays on this host" >&2
            continue
        fi
        # shellcheck disable=SC2001 # a class of signs, each kept
        value="$(sed 's/[\\"$`]/\\&/g' <<<"${!name}")"
        if [[ "$value" != *$'\n'* ]]; then printf '%s=%s\n' "$name" "$value" >>"$folder/variables"; fi
    done
    # There a rank watches the sshd that holds the connection from here.
    printf 'ROOTS_RANK_RECORDS=%s/%%h\nROOTS_LAUNCHER=ssh\n' "$records" >>"$folder/variables"
}

# on_hosts COMMAND: run it on every host, its output without the hosts' names.
on_hosts() {
    PDSH_RCMD_TYPE=ssh pdsh -N -w "$hosts" "$1"
}

# tell_ranks SIGNAL: every rank of this run, on every host, that has not ended; a line for each.
tell_ranks() {
    on_hosts "for file in \"$here\"/*.pid; do [ -f \"\$file\" ] && [ ! -f \"\${file%.pid}.code\" ] && kill -$1 \$(cat \"\$file\") && echo told; done" \
        2>/dev/null || true
}

# forward SIGNAL: to the ranks alone; the launcher ends when they do. Before there are ranks there is nothing to save.
# shellcheck disable=SC2329 # called by the trap
forward() {
    stopped="$1"
    [[ -n "$launcher" ]] || return 0
    if [[ -z "$(tell_ranks "$1")" ]]; then kill -s TERM -- "-$launcher" 2>/dev/null || true; fi
}

# A trapped signal ends `wait` early; the launcher's own code is what it gives when the process is gone.
wait_for_launcher() {
    local code=0
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done
    wait "$launcher" || code=$?
    kill "$guard" 2>/dev/null || true
    kill -- "-$lookout" 2>/dev/null || true
    return "$code"
}

# end_lost: when ranks have ended because one was lost (code 7), it may be stopped, alone on its host, and its launcher
# would wait for it for ever. Of any two hosts, one has a rank that could say so.
# shellcheck disable=SC2329 # called in the background
end_lost() {
    local two
    two="$(cut -d, -f1-2 <<<"$hosts")"
    while sleep "$LOOK_SECONDS"; do
        if hosts="$two" on_hosts "cat \"$here\"/*.code" 2>/dev/null | grep -q ' 7$'; then
            sleep "$END_SECONDS"
            on_hosts "for file in \"$here\"/*.pid; do $KILL_STOPPED; done"
            return
        fi
    done
}

# end_ranks: a launcher that was killed leaves ranks behind; they save and end, and this waits for that.
end_ranks() {
    tell_ranks TERM >/dev/null
    on_hosts "for file in \"$here\"/*.pid; do while [ -f \"\$file\" ] && [ ! -f \"\${file%.pid}.code\" ] && grep -qs 'State:.[^ZX]' /proc/\$(cat \"\$file\")/status; do $KILL_STOPPED; sleep 0.5; done; done" \
        >/dev/null 2>&1 || true
}

# decide_code CODE: the rank that failed first knows the reason. DeepSpeed's own code counts where no rank began: it is 0
# when its launcher was killed.
decide_code() {
    local ended first
    on_hosts "cat \"$here\"/*.code" 2>/dev/null | sort -n >"$folder/codes" || true
    ended="$(wc -l <"$folder/codes")"
    first="$(awk '$2 != 0 { print $2; exit }' "$folder/codes")"
    if [[ -n "$first" ]]; then
        echo "$first"
    elif [[ -n "$stopped" && -z "$(on_hosts "ls \"$here\"" 2>/dev/null)" ]]; then
        echo "hostfile.sh: stopped before there were ranks, nothing to save" >&2
        echo 3
    elif ((ended < ranks)); then
        printf 'hostfile.sh: %s of %s ranks ended without an exit code: never started, or killed, perhaps for lack of memory\n' \
            "$((ranks - ended))" "$ranks" >&2
        if (($1 == 0)); then echo 1; else echo "$1"; fi
    else
        echo 0
    fi
}

main "$@"
