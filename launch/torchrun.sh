#!/usr/bin/env bash
# Train on the hosts of a hostfile with torchrun, one on each host, started over ssh.
#
#   launch/torchrun.sh [option ...] HOSTFILE CONFIG [section.key=value ...]
#
# HOSTFILE, hosts, options and exit codes are those of launch/hostfile.sh; that of ssh starts everything. Two things differ:
#
#   --max-restarts N     start the ranks again when one has crashed, up to N times, from the newest checkpoint, on the same
#                        hosts and without a new wait in a queue (0). A run that is done, refuses its input (2), was
#                        interrupted (3) or diverged (4) is not started again, nor is one that has lost a host
#
# and torchrun numbers the hosts by their own names, sorted, whatever the order in HOSTFILE.
#
#   --include SPEC, --exclude SPEC, --ssh-port N, --ssh-options TEXT, --checks on|off: as in launch/hostfile.sh
#
# INT, TERM and USR1 go to the ranks, past torchrun, which would kill them 30 s later, or leave them alone (USR1): every rank
# finishes its step, saves and exits 3. So it does when this script or a torchrun is killed.
# Exit code: of the rank that failed first, as in launch/hostfile.sh. torchrun itself only has 0 and 1.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

readonly USAGE="usage: launch/torchrun.sh [option ...] HOSTFILE CONFIG [section.key=value ...]"
readonly VIA=torchrun

# shellcheck source=launch/on_hosts.sh
source "$ROOTS_HOME/launch/on_hosts.sh"

restarts=0

# shellcheck disable=SC2329 # these are called by launch_on_hosts
own_option() {
    [[ "$1" == --max-restarts ]] || return 1
    [[ "$2" =~ ^[0-9]{1,6}$ ]] || fail "--max-restarts=$2: must be a whole number, not negative; $USAGE"
    restarts="$((10#$2))"
    # To torchrun these end well (launch/rank.py); after others it starts all ranks again.
    if ((restarts > 0)); then final="2|3|4|5|130" outlives="$SAVING_SECONDS"; fi
}

# torchrun comes with torch, which ROOTS needs anyway.
# shellcheck disable=SC2329
check_tools() { :; }

# shellcheck disable=SC2329
start_launcher() {
    write_variables
    start_by_ssh torchrun_there "$@"
}

# torchrun_there NUMBER CONFIG ...: the script that starts torchrun on that host. It is said where the store is: torchrun's
# guess, by the addresses of the host's name, fails where that name is one of the loopback.
# shellcheck disable=SC2329
torchrun_there() {
    local slots="${slots_of[${hosts[$1]}]}" count is_host=false
    count="$(wc -w <<<"$slots")"
    if (($1 == 0)); then is_host=true; fi
    if [[ -n "$filtered" ]]; then echo "export CUDA_VISIBLE_DEVICES=${slots// /,}"; fi
    # Ranks meet in a store of their own: in torchrun's they would find the addresses of the start before, because hosts
    # count their restarts differently.
    echo "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    # launch/rank.py shares the cores; torchrun would set one thread.
    echo "cores=\$(nproc); export OMP_NUM_THREADS=\${OMP_NUM_THREADS:-\$((cores > $count ? cores / $count : 1))}"
    there "$PYTHON" -u -m torch.distributed.run "--nnodes=${#hosts[@]}" "--nproc-per-node=$count" \
        "--max-restarts=$restarts" --rdzv-backend=c10d "--rdzv-endpoint=$address:$port" "--rdzv-id=$(basename "$records")" \
        "--rdzv-conf=is_host=$is_host" "$ROOTS_HOME/launch/rank.py" train "${@:2}"
}

launch_on_hosts "$@"
