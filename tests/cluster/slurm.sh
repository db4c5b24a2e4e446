#!/usr/bin/env bash
# Real Slurm on the simulated hosts of hosts.sh: the first host has munged and slurmctld, every other a slurmd that claims
# 8 GPUs and 64 processors. Needs root.
#
#   tests/cluster/slurm.sh up [--accounting] FOLDER   start it on the hosts in FOLDER, and wait until every node is idle
#   tests/cluster/slurm.sh node FOLDER HOST           start the slurmd of a host that was switched on again
#   tests/cluster/slurm.sh missing [--accounting]     the Debian packages that are missing here, if any
#
# Its commands need SLURM_CONF=FOLDER/slurm/slurm.conf and run on any of the hosts:
#   tests/cluster/hosts.sh in FOLDER head env SLURM_CONF=FOLDER/slurm/slurm.conf sbatch ...
# Its waits are short: a node that is silent is down after 8 s, and a requeued job starts after 6 s. `sacct -c` tells of
# jobs; with --accounting, which needs MariaDB, `sacct` of their steps, too. All of it ends with the hosts (hosts.sh down).
# Exit code: 2 for wrong arguments or a missing package, else that of what failed.
set -euo pipefail

# COMMAND:PACKAGE
readonly TOOLS=(slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge)
readonly ACCOUNTING=(slurmdbd:slurmdbd mariadbd:mariadb-server)
readonly GPUS=8

fail() {
    printf 'slurm.sh: %s\n' "$1" >&2
    exit 2
}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

main() {
    PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
    local action="${1:-}" packages
    case "$action" in
        -h | --help) usage; exit 0 ;;
        up | missing)
            shift
            if [[ "${1:-}" == --accounting ]]; then accounting=yes; shift; fi
            packages="$(missing)"
            ;;
        node) shift ;;
        *) fail "no such action: '$action'; see --help" ;;
    esac
    if [[ "$action" == missing ]]; then echo "$packages"; return; fi
    (($# >= 1)) || fail "$action: FOLDER is missing; see --help"
    [[ -s "$1/names" ]] || fail "FOLDER=$1: no hosts there; start some with hosts.sh"
    folder="$(readlink -f "$1")"
    slurm="$folder/slurm"
    read -r controller nodes <"$folder/names"
    [[ -n "$nodes" ]] || fail "FOLDER=$1: Slurm needs two hosts or more"
    if [[ "$action" == node ]]; then
        [[ " $nodes " == *" ${2:-} "* ]] || fail "HOST=${2:-}: must be one of $nodes"
        start_node "$2"
        return
    fi
    [[ -z "$packages" ]] || fail "missing packages: run \`apt-get install --no-install-recommends $packages\`"
    up
}

missing() {
    local pair wanted=("${TOOLS[@]}") words=()
    if [[ -n "$accounting" ]]; then wanted+=("${ACCOUNTING[@]}"); fi
    for pair in "${wanted[@]}"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || words+=("${pair##*:}")
    done
    echo "${words[*]}"
}

# on HOST COMMAND ...
on() {
    local host="$1"
    shift
    bash "$(dirname "${BASH_SOURCE[0]}")/hosts.sh" in "$folder" "$host" env -i PATH="$PATH" HOME=~root USER=root \
        LANG=C.UTF-8 SLURM_CONF="$slurm/slurm.conf" "$@" </dev/null
}

up() {
    local host number
    mkdir -p "$slurm"/{state,log,devices}
    (umask 077 && head -c 1024 /dev/urandom >"$slurm/munge.key")
    # What Slurm hands out as GPUs are files of devices.
    for ((number = 0; number < GPUS; number++)); do mknod "$slurm/devices/gpu$number" c 1 3; done
    write_config
    on "$controller" munged --key-file="$slurm/munge.key" --socket="$slurm/munge" --pid-file="$slurm/munged.pid" \
        --log-file="$slurm/log/munged.log" --seed-file="$slurm/munge.seed" --num-threads=2
    if [[ -n "$accounting" ]]; then start_accounting; fi
    on "$controller" slurmctld
    for host in $nodes; do start_node "$host"; done
    wait_for "every node is idle" all_idle
}

start_node() {
    mkdir -p "$slurm/spool.$1"
    on "$1" slurmd
}

all_idle() {
    [[ "$(on "$controller" sinfo --noheader --states=idle --format=%D 2>/dev/null)" == "$(wc -w <<<"$nodes")" ]]
}

# wait_for WHAT COMMAND ...: until COMMAND succeeds, for 30 s at most.
wait_for() {
    local what="$1" deadline=$((SECONDS + 30))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || fail "after 30 s it is not so that $what: $(tail -n 2 "$slurm"/log/*.log)"
        sleep 0.1
    done
}

write_config() {
    local list="${nodes// /,}" storage="AccountingStorageType=accounting_storage/none" gather=none
    if [[ -n "$accounting" ]]; then
        storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$controller
AccountingStoragePass=$slurm/munge"
        gather=linux
    fi
    printf '%s\n' "AutoDetect=off" "NodeName=$list Name=gpu File=$slurm/devices/gpu[0-$((GPUS - 1))]" >"$slurm/gres.conf"
    cat >"$slurm/slurm.conf" <<CONFIG
ClusterName=roots
SlurmctldHost=$controller
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits one second more than a credential lives.
AuthInfo=socket=$slurm/munge,cred_expire=5
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool.%n
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.%n.pid
SlurmctldLogFile=$slurm/log/slurmctld.log
SlurmdLogFile=$slurm/log/slurmd.%n.log
# No control groups, which are the machine's.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
ReturnToService=2
SlurmdTimeout=8
TCPTimeout=2
MessageTimeout=5
InactiveLimit=0
KillWait=30
# Nodes claim more than this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
JobAcctGatherType=jobacct_gather/$gather
$storage
JobCompType=jobcomp/filetxt
JobCompLoc=$slurm/log/jobcomp.txt
NodeName=$list CPUs=64 Sockets=2 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:$GPUS State=UNKNOWN
PartitionName=all Nodes=$list Default=YES MaxTime=INFINITE State=UP
CONFIG
}

# start_accounting: MariaDB, which only a socket leads to, and slurmdbd.
start_accounting() {
    local data="$slurm/database"
    mariadb-install-db --no-defaults --user=root --datadir="$data" --auth-root-authentication-method=socket \
        --skip-test-db >"$slurm/log/install.log" 2>&1
    on "$controller" setsid mariadbd --no-defaults --user=root --datadir="$data" --socket="$slurm/mariadb" \
        --pid-file="$slurm/mariadb.pid" --skip-networking --innodb-buffer-pool-size=64M --innodb-log-file-size=16M \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 >"$slurm/log/mariadb.log" 2>&1 &
    wait_for "MariaDB answers" query "select 1"
    query "create database slurm_acct_db; create user slurm@localhost identified by 'slurm';
        grant all on slurm_acct_db.* to slurm@localhost"
    printf '%s\n' "AuthType=auth/munge" "AuthInfo=socket=$slurm/munge" "DbdHost=$controller" "SlurmUser=root" \
        "LogFile=$slurm/log/slurmdbd.log" "PidFile=$slurm/slurmdbd.pid" "StorageType=accounting_storage/mysql" \
        "StorageHost=localhost" "StorageUser=slurm" "StoragePass=slurm" "StorageLoc=slurm_acct_db" >"$slurm/slurmdbd.conf"
    chmod 600 "$slurm/slurmdbd.conf"
    on "$controller" env MYSQL_UNIX_PORT="$slurm/mariadb" slurmdbd
    wait_for "slurmdbd answers" on "$controller" sacctmgr --noheader show cluster >/dev/null 2>&1
    on "$controller" sacctmgr --immediate add cluster roots >/dev/null
}

query() {
    mariadb --no-defaults --socket="$slurm/mariadb" --execute "$1" >/dev/null 2>&1
}

accounting=""
folder=""
slurm=""
controller=""
nodes=""
main "$@"
