#!/usr/bin/env bash
# Train on the hosts of a DeepSpeed hostfile, over ssh by pdsh.
#
#   launch/hostfile.sh HOSTFILE CONFIG [section.key=value ...]
#
# HOSTFILE has a line `NAME slots=N` for each host, N the ranks (GPUs) to start there. Every host needs this checkout and
# its environment at the same path, and ssh without a password from here. Set MASTER_PORT to choose the port on the first
# host. INT, TERM and USR1 make every rank finish its step, save and exit 3.
# Exit code: the largest of the ranks' (0 done, 2 bad input, 3 interrupted after a good checkpoint, 4 diverged; 1 else).
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/hostfile.sh HOSTFILE CONFIG [section.key=value ...]"

hosts=""
launcher=""

main() {
    (($# >= 2)) || fail "$USAGE"
    local hostfile="$1" config="$2"
    [[ -f "$hostfile" ]] || fail "HOSTFILE=$hostfile: no such file; $USAGE"
    [[ -f "$config" ]] || fail "CONFIG=$config: no such file; $USAGE"
    shift
    read_hosts "$hostfile"
    command -v pdsh >/dev/null 2>&1 || fail "no pdsh on PATH: run \`apt-get install pdsh\`"
    use_python
    # Job control gives the launcher a process group of its own: Ctrl-C must reach the ranks, and it would kill them.
    set -m
    deepspeed --hostfile "$hostfile" --force_multi --master_port "${MASTER_PORT:-$((20000 + RANDOM % 20000))}" \
        --no_local_rank --log_level critical "$ROOTS_HOME/launch/rank.py" train "$@" </dev/null &
    launcher=$!
    set +m
    trap forward INT TERM HUP USR1
    wait_for_launcher
}

# read_hosts FILE: sets `hosts` to a comma-separated list, or names the line that is wrong.
read_hosts() {
    local bad
    bad="$(grep -vnE '^[[:space:]]*(#|$)|^[^[:space:]]+[[:space:]]+slots=[1-9][0-9]*[[:space:]]*$' "$1" | head -n1 || true)"
    [[ -z "$bad" ]] || fail "HOSTFILE=$1: line ${bad%%:*} is '${bad#*:}', must be 'NAME slots=N'"
    hosts="$(awk '!/^[[:space:]]*(#|$)/ { print $1 }' "$1" | paste -sd,)"
    [[ -n "$hosts" ]] || fail "HOSTFILE=$1: names no host; write a line 'NAME slots=N' for each"
}

# forward: tell every rank of this checkout on every host. The pattern matches the command line of a rank alone, neither
# that of DeepSpeed's launcher nor that of the remote shell which carries it.
# shellcheck disable=SC2329 # called by the trap
forward() {
    PDSH_RCMD_TYPE=ssh pdsh -w "$hosts" "pkill -USR1 -f '^[^ ]*python[^ ]* -u $ROOTS_HOME/launch/rank[.]py train'" || true
}

# A trapped signal ends `wait` early; the launcher's own code is what it gives when the process is gone.
wait_for_launcher() {
    local code=0
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done
    wait "$launcher" || code=$?
    exit "$code"
}

main "$@"
