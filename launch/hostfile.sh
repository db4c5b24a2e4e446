#!/usr/bin/env bash
# Train on the hosts of a DeepSpeed hostfile, with DeepSpeed's launcher over pdsh or ssh.
#
#   launch/hostfile.sh [option ...] HOSTFILE CONFIG [section.key=value ...]
#
# HOSTFILE has a line `NAME slots=N` for each host, N the ranks (GPUs) to start there; comments after #, and OpenMPI's
# `max_slots=N`, are passed over. Every host needs this checkout and its environment at the same path, and ssh from here
# that asks for no password. Ranks meet on the first host: at MASTER_ADDR, else the first address that it names; at
# MASTER_PORT, else a port that is free there.
#
#   --include SPEC       only these hosts and slots: NAME or NAME:SLOT,SLOT,... and @ between hosts. As in DeepSpeed, hosts
#                        stay in the order of HOSTFILE, and slots are sorted and count once; what is used is said
#   --exclude SPEC       all but these; or a file with a host a line, by a path with a /
#   --ssh-port N         the port of sshd on the hosts
#   --ssh-options TEXT   options of ssh, such as "-i KEY -J gateway"
#   --checks on|off      look at every host first, as `roots launch` does: versions, config, data, ports, the run's folder,
#                        clock, /dev/shm, ulimits; all that is wrong is told (on)
#   --over pdsh|ssh      what starts DeepSpeed's launcher on the hosts (pdsh; ssh, one connection each, where there is none)
#
# INT, TERM and USR1 make every rank finish its step, save and exit 3; so does the end of this script or of DeepSpeed's
# launcher. When a rank fails or a host is lost, those of the others end as well.
# Variables that begin with one of PASSED_ON (launch/on_hosts.sh) reach the ranks on every host; those that look like
# secrets do not, because whoever can list processes on a host can read a command line: put them into a file of your own
# there. So do the lines of .deepspeed_env, here and in your home folder.
# Exit code: of the rank that failed first (0 done, 2 bad input, 3 interrupted, saved, 4 diverged, 6 not saved, 7 a rank died
# or hung, or a host was lost; 1 else).
# launch/supervise.sh starts a run again that has crashed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/hostfile.sh [option ...] HOSTFILE CONFIG [section.key=value ...]"
readonly VIA=deepspeed

# shellcheck source=launch/on_hosts.sh
source "$ROOTS_HOME/launch/on_hosts.sh"

over=""

# shellcheck disable=SC2329 # these are called by launch_on_hosts
own_option() {
    [[ "$1" == --over ]] || return 1
    [[ "$2" == pdsh || "$2" == ssh ]] || fail "--over=$2: must be pdsh or ssh; $USAGE"
    over="$2"
}

# shellcheck disable=SC2329
check_tools() {
    if command -v pdsh >/dev/null 2>&1; then
        over="${over:-pdsh}"
    else
        [[ "$over" != pdsh ]] || fail "no pdsh on PATH: run \`apt-get install pdsh\`, or leave --over pdsh away"
        if [[ -z "$over" ]]; then tell "no pdsh on PATH: plain ssh starts DeepSpeed's launcher on each host instead"; fi
        over=ssh
    fi
    if [[ "$over" == pdsh ]]; then need_deepspeed; fi
}

# shellcheck disable=SC2329
start_launcher() {
    local own
    for own in "$HOME/.deepspeed_env" .deepspeed_env; do
        if [[ -f "$own" ]]; then cat "$own" >>"$folder/variables"; fi
    done
    write_variables
    if [[ "$over" == pdsh ]]; then start_by_pdsh "$@"; else start_by_ssh deepspeed_there "$@"; fi
}

# start_by_pdsh CONFIG ...: DeepSpeed's own way.
start_by_pdsh() {
    local host words=() spec=""
    for host in "$@"; do words+=("$(for_pdsh "$host")"); done
    for host in "${hosts[@]}"; do
        # Its name alone stands for all of its slots, and may hold an @ then.
        if [[ -n "$filtered" ]]; then spec+="@$host:${slots_of[$host]// /,}"; fi
        printf '%s slots=%s\n' "$host" "$((${slots_of[$host]##* } + 1))" >>"$folder/hosts"
    done
    # pdsh replaces %h and such.
    sed -i 's/%/%%/g' "$folder/variables"
    DS_ENV_FILE="$folder/variables" PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} ${ssh[*]:1}" deepspeed --hostfile "$folder/hosts" \
        --include "${spec#@}" --force_multi --no_ssh_check --master_addr "$address" --master_port "$port" \
        --no_local_rank --log_level critical "$ROOTS_HOME/launch/rank.py" train "${words[@]}" </dev/null &
    launcher=$!
}

# for_pdsh WORD: DeepSpeed puts a word with a space between double quotes, and others as they are, into a command line in
# which pdsh replaces %h and such, and which the shell of every host reads again.
for_pdsh() {
    # shellcheck disable=SC2001 # a class of signs, each kept
    if [[ "$1" == *" "* ]]; then sed 's/[\\$`]/\\&/g' <<<"$1"; else printf '%q\n' "$1"; fi | sed 's/%/%%/g'
}

# deepspeed_there NUMBER CONFIG ...: the script that starts DeepSpeed's launcher on that host, as DeepSpeed has pdsh do it.
# shellcheck disable=SC2329
deepspeed_there() {
    local host world=""
    for host in "${hosts[@]}"; do world+=", \"$host\": [${slots_of[$host]// /, }]"; done
    there "$PYTHON" -u -m deepspeed.launcher.launch "--world_info=$(printf '{%s}' "${world#, }" | base64 -w 0 | tr +/ -_)" \
        "--node_rank=$1" "--master_addr=$address" "--master_port=$port" --no_local_rank --log_level=critical \
        "$ROOTS_HOME/launch/rank.py" train "${@:2}"
}

launch_on_hosts "$@"
