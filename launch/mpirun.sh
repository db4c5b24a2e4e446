#!/usr/bin/env bash
# Train on the hosts of a hostfile with Open MPI's mpirun, which starts the ranks over ssh. They talk by NCCL or Gloo, not MPI.
#
#   launch/mpirun.sh [option ...] HOSTFILE CONFIG [section.key=value ...]
#
# HOSTFILE, hosts, options and exit codes are those of launch/hostfile.sh. Open MPI must be on every host at the same path.
#
#   --include SPEC, --exclude SPEC, --ssh-port N, --ssh-options TEXT, --checks on|off: as in launch/hostfile.sh
#   --mpirun-options TEXT    more for mpirun, such as "--mca oob_tcp_if_include eth0"; tried on every host before ranks start
#
# INT, TERM and USR1 make every rank finish its step, save and exit 3; so does the end of this script or of mpirun. Of signals
# to mpirun itself, USR1 is passed on to every rank; at TERM ranks have ten seconds to save, so send it to this script.
# Exit code: of the rank that failed first, as in launch/hostfile.sh.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/mpirun.sh [option ...] HOSTFILE CONFIG [section.key=value ...]"
readonly VIA=mpirun
# What a try of options says once on every host, and how long it may take.
readonly STARTED="roots: started" TRY_SECONDS=60

# shellcheck source=launch/on_hosts.sh
source "$ROOTS_HOME/launch/on_hosts.sh"

mpirun_options=()

# shellcheck disable=SC2329 # these are called by launch_on_hosts
own_option() {
    [[ "$1" == --mpirun-options ]] || return 1
    read -ra mpirun_options <<<"$2"
}

# shellcheck disable=SC2329
check_tools() {
    command -v mpirun >/dev/null 2>&1 || fail "no mpirun on PATH: run \`apt-get install openmpi-bin\` on every host, or load its module"
    mpirun --version 2>/dev/null | grep -q 'Open MPI' ||
        fail "$(command -v mpirun) is not that of Open MPI ($(mpirun --version 2>&1 | head -n 1)); use launch/hostfile.sh or torchrun.sh"
}

# start_launcher CONFIG ...: with its whole path mpirun finds its parts on the hosts. It would bind each rank to one core;
# end all ranks when one has ended, and has saved, with code 3; kill them a second after SIGTERM, which is little to save;
# and notice a lost host after minutes. What it gives them is what it waits before and after SIGTERM, whoever is left. Its
# daemons get the name of the run, by which they are found where they outlive the ranks: on a host that is cut off.
# shellcheck disable=SC2329
start_launcher() {
    local host names=() parts=() words=()
    write_variables
    for host in $(cut -d= -f1 "$folder/variables") MASTER_ADDR MASTER_PORT; do names+=(-x "$host"); done
    words=("$(command -v mpirun)" --bind-to none --mca plm_rsh_agent ssh --mca plm_rsh_args "${ssh[*]:1}"
        --mca orte_abort_on_non_zero_status 0 --mca odls_base_sigkill_timeout 10 --mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5
        --mca oob_tcp_keepalive_probes 3 --mca orte_launch_agent "env ROOTS_RANK_RECORDS=$records/%h orted")
    if ((EUID == 0)); then words+=(--allow-run-as-root); fi
    words+=("${mpirun_options[@]}")
    if ((${#mpirun_options[@]} > 0)); then try_options; fi
    for host in "${hosts[@]}"; do
        if ((${#parts[@]} > 0)); then parts+=(:); fi
        parts+=(-H "$host:$(wc -w <<<"${slots_of[$host]}")" -np "$(wc -w <<<"${slots_of[$host]}")" --wdir "$PWD" "${names[@]}")
        if [[ -n "$filtered" ]]; then parts+=(-x "CUDA_VISIBLE_DEVICES=${slots_of[$host]// /,}"); fi
        # The variables in single quotes are each rank's own.
        # shellcheck disable=SC2016
        parts+=(bash -c '
            export RANK="$OMPI_COMM_WORLD_RANK" LOCAL_RANK="$OMPI_COMM_WORLD_LOCAL_RANK"
            export WORLD_SIZE="$OMPI_COMM_WORLD_SIZE" LOCAL_WORLD_SIZE="$OMPI_COMM_WORLD_LOCAL_SIZE"
            exec "$0" -u "$@"' "$PYTHON" "$ROOTS_HOME/launch/rank.py" train "$@")
    done
    # An empty ROOTS_LAUNCHER: a rank watches its parent alone, Open MPI's daemon, which has no sshd above it.
    ROOTS_LAUNCHER="" ROOTS_RANK_RECORDS="$records/%h" MASTER_ADDR="$address" MASTER_PORT="$port" "${words[@]}" "${parts[@]}" </dev/null &
    launcher=$!
}

# try_options: start something with `words` on every host. mpirun may refuse the user's options, or take one of them for the
# program: what our own says tells that it has started.
# shellcheck disable=SC2329
try_options() {
    local host parts=() code=0 said
    for host in "${hosts[@]}"; do
        if ((${#parts[@]} > 0)); then parts+=(:); fi
        parts+=(-H "$host:1" -np 1 echo "$STARTED")
    done
    look with_words_in "$folder/refusal" timeout --kill-after=2 "$TRY_SECONDS" "${words[@]}" "${parts[@]}" || code=$?
    if ((code == 0 && $(grep -cF "$STARTED" "$folder/found") == ${#hosts[@]})); then return; fi
    said="$(sed '/^-*$/d' "$folder/refusal" "$folder/found" | tr -s ' \n' ' ' | cut -c1-400)"
    if ((code == 124)); then said="nothing has started in $TRY_SECONDS s; $said"; fi
    fail "--mpirun-options=${mpirun_options[*]}: must be options that mpirun starts ranks with (code $code: ${said% }), not words that it takes for the program; correct them, or leave them out"
}

# with_words_in FILE COMMAND ...
# shellcheck disable=SC2329
with_words_in() {
    exec "${@:2}" 2>"$1"
}

launch_on_hosts "$@"
