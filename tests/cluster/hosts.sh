#!/usr/bin/env bash
# Simulated hosts on this machine, for tests of what starts runs on several: each has its own address, host name, process
# numbers, mounts, /run and /dev/shm, and a real sshd on port 22; all other files are shared, as by NFS. Needs root.
#
#   tests/cluster/hosts.sh up [--owner PID] FOLDER NAME ...   start hosts; all that is theirs lies in FOLDER, which is made
#   tests/cluster/hosts.sh down FOLDER                        end whatever runs on them, and remove FOLDER
#   tests/cluster/hosts.sh in FOLDER HOST COMMAND ...         run COMMAND there, in this folder and with this environment
#   tests/cluster/hosts.sh link FOLDER HOST down|up           pull out and put back its cable, at the switch: silence, no RST
#   tests/cluster/hosts.sh rate FOLDER HOST RATE|none         let its cable carry RATE at most, both ways, such as 10mbit
#   tests/cluster/hosts.sh off FOLDER HOST                    switch it off: silence, and no process of it is left
#   tests/cluster/hosts.sh on FOLDER HOST                     switch it on again
#   tests/cluster/hosts.sh missing                            the Debian packages that are missing here, if any
#
# With --owner the hosts end with that process, however it ends. Hosts reach each other, by name and without a password,
# and nothing else; the machine's own network, /etc and home folders stay as they are. FOLDER makes sessions differ: any
# number of them run beside each other. FOLDER/bashrc is read by every shell that ssh starts. FOLDER may not lie below
# /run or /dev/shm, which every host has for itself, and hosts see neither there.
# Exit code: 2 for wrong arguments or a missing package, else that of what failed.
set -euo pipefail

readonly NETWORK=10.77.0
readonly PACKAGES=(iproute2 openssh-server openssh-client pdsh)
readonly TOOLS=(ip sshd ssh-keygen pdsh)

fail() {
    printf 'hosts.sh: %s\n' "$1" >&2
    exit 2
}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

main() {
    PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
    case "${1:-}" in
        -h | --help) usage; exit 0 ;;
        missing) missing; exit 0 ;;
        up) shift; up "$@"; return ;;
        down | in | link | rate | off | on) ;;
        *) fail "no such action: '${1:-}'; see --help" ;;
    esac
    (($# >= 2)) || fail "$1: FOLDER is missing; see --help"
    local action="$1"
    folder="$2"
    shift 2
    [[ -s "$folder/names" ]] || fail "FOLDER=$folder: no hosts there"
    if [[ "$action" != down ]]; then
        (($# >= 1)) || fail "$action: HOST is missing; see --help"
        grep -qwF -e "$1" "$folder/names" || fail "HOST=$1: must be one of $(<"$folder/names")"
    fi
    case "$action" in
        down) down ;;
        in) need_on "$1"; (($# >= 2)) || fail "in: COMMAND is missing; see --help"; exec_in "$@" ;;
        link) set_link "$@" ;;
        rate) set_rate "$@" ;;
        off) switch_off "$1" ;;
        on) switch_on "$1" ;;
    esac
}

missing() {
    local tool words=()
    for tool in "${TOOLS[@]}"; do
        if ! command -v "$tool" >/dev/null 2>&1; then words=("${PACKAGES[@]}"); fi
    done
    echo "${words[*]}"
}

up() {
    local owner="" host number=0
    if [[ "${1:-}" == --owner ]]; then owner="$2"; shift 2; fi
    (($# >= 2)) || fail "up: FOLDER and NAME are missing; see --help"
    ((EUID == 0)) || fail "needs root, for namespaces"
    [[ -z "$(missing)" ]] || fail "missing packages: run \`apt-get install --no-install-recommends $(missing)\`"
    case "$(readlink -f "$1")" in /run/* | /var/run/* | /dev/shm/*) fail "FOLDER=$1: hosts have a /run and /dev/shm of their own" ;; esac
    [[ ! -e "$1" || -z "$(ls -A "$1")" ]] || fail "FOLDER=$1: must be empty, or not there yet"
    mkdir -p "$1"
    folder="$(readlink -f "$1")"
    shift
    chmod 755 "$folder"
    mkfifo "$folder/ready"
    write_ssh
    : >"$folder/bashrc"
    : >"$folder/empty"
    echo "127.0.0.1 localhost" >"$folder/hosts"
    for host in "$@"; do
        number=$((number + 1))
        echo "$NETWORK.$((9 + number)) $host" >>"$folder/hosts"
    done
    echo "$*" >"$folder/names"
    if [[ -n "$owner" ]]; then
        # shellcheck disable=SC2016 # its own arguments
        setsid bash -c 'tail --pid="$1" -s 0.5 -f /dev/null; exec bash "$2" down "$3"' guard \
            "$owner" "${BASH_SOURCE[0]}" "$folder" </dev/null >/dev/null 2>&1 &
        echo $! >"$folder/guard.pid"
    fi
    start_switch
    for host in "$@"; do switch_on "$host"; done
}

# write_ssh: keys and settings that every host has in /etc/ssh.
write_ssh() {
    local place="$folder/ssh"
    mkdir -p "$place"
    ssh-keygen -q -t ed25519 -N '' -C roots -f "$place/id"
    ssh-keygen -q -t ed25519 -N '' -C host -f "$place/host"
    cp "$place/id.pub" "$place/authorized"
    printf '%s\n' "Host *" "  IdentityFile /etc/ssh/id" "  StrictHostKeyChecking no" "  UserKnownHostsFile /dev/null" \
        "  GlobalKnownHostsFile /dev/null" "  LogLevel ERROR" "  ConnectTimeout 5" >"$place/ssh_config"
    printf '%s\n' "HostKey /etc/ssh/host" "AuthorizedKeysFile /etc/ssh/authorized" "PermitRootLogin prohibit-password" \
        "PasswordAuthentication no" "KbdInteractiveAuthentication no" "UsePAM no" "UseDNS no" "StrictModes no" \
        "MaxStartups 100:30:200" "MaxSessions 100" "PidFile none" >"$place/sshd_config"
}

# wait_for_ready WHAT: until what was started last says so.
wait_for_ready() {
    local word=""
    read -r -t 20 word <>"$folder/ready" || true
    [[ "$word" == ready ]] || fail "$1 did not start: $(tail -n 3 "$folder/$1.log")"
}

start_switch() {
    # shellcheck disable=SC2016 # its own argument
    setsid unshare --net bash -c '
        ip link add bridge type bridge && ip link set bridge up && echo ready >"$1" && exec sleep infinity
    ' switch "$folder/ready" </dev/null >"$folder/switch.log" 2>&1 &
    echo $! >"$folder/switch.pid"
    wait_for_ready switch
}

# switch_on HOST: its process 1 mounts what is its own, starts sshd and reaps orphans; its cable comes last.
switch_on() {
    local host="$1" starter process address
    ! is_on "$host" || fail "HOST=$host: is on"
    address="$(awk -v host="$host" '$2 == host { print $1 }' "$folder/hosts")"
    echo "$host" >"$folder/$host.name"
    [[ -p "$folder/$host.end" ]] || mkfifo "$folder/$host.end"
    setsid unshare --net --uts --ipc --mount --pid --fork --mount-proc --propagation private \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=~root USER=root SHELL=/bin/bash \
        LANG=C.UTF-8 TERM=dumb FOLDER="$folder" HOST="$host" bash -c "$(declare -f be_host); be_host" \
        </dev/null >"$folder/$host.log" 2>&1 &
    starter=$!
    wait_for_ready "$host"
    process="$(<"/proc/$starter/task/$starter/children")"
    echo "${process%% *}" >"$folder/$host.pid"
    # A host that comes back has the card that the others remember.
    on_switch ip link add "to-$host" type veth peer name eth0 \
        address "$(printf '02:00:00:00:00:%02x' "${address##*.}")" netns "${process%% *}"
    on_switch ip link set "to-$host" master bridge up
    enter "$host" ip link set lo up
    enter "$host" ip address add "$address/24" dev eth0
    enter "$host" ip link set eth0 up
}

# be_host: process 1 of a host.
# shellcheck disable=SC2153 # FOLDER and HOST are in its environment
be_host() {
    set -e
    hostname "$HOST"
    # What lies below /sys/class/net is the host's own; the machine's control groups stay, which slurmd asks for.
    mkdir -p "$FOLDER/cgroup"
    mount --rbind /sys/fs/cgroup "$FOLDER/cgroup"
    mount -t sysfs sysfs /sys
    mount --rbind "$FOLDER/cgroup" /sys/fs/cgroup
    mount --bind "$FOLDER/hosts" /etc/hosts
    mount --bind "$FOLDER/$HOST.name" /etc/hostname
    mount --bind "$FOLDER/ssh" /etc/ssh
    mount --bind "$FOLDER/bashrc" /etc/bash.bashrc
    if [[ -e "$HOME/.bashrc" ]]; then mount --bind "$FOLDER/empty" "$HOME/.bashrc"; fi
    mount -t tmpfs -o mode=755,size=64m run /run
    mount -t tmpfs -o mode=1777,size=1g shm /dev/shm
    mkdir -p /run/sshd
    /usr/sbin/sshd -f /etc/ssh/sshd_config -E "$FOLDER/$HOST.sshd.log"
    echo ready >"$FOLDER/ready"
    # Nobody ever writes there; while it waits, bash reaps whatever ends.
    while true; do read -r <>"$FOLDER/$HOST.end" || true; done
}

is_on() {
    [[ -s "$folder/$1.pid" ]] && kill -0 "$(<"$folder/$1.pid")" 2>/dev/null
}

need_on() {
    is_on "$1" || fail "HOST=$1: is off"
}

# exec_in HOST COMMAND ...: becomes nsenter, whose child COMMAND is; the end of nsenter is that of COMMAND, and COMMAND
# gets none of its signals.
exec_in() {
    local host="$1"
    shift
    exec nsenter --target "$(<"$folder/$host.pid")" --net --uts --ipc --mount --pid --wd="$PWD" setpriv --pdeathsig KILL "$@"
}

enter() (exec_in "$@")

on_switch() {
    nsenter --target "$(<"$folder/switch.pid")" --net "$@"
}

set_link() {
    [[ "${2:-}" == up || "${2:-}" == down ]] || fail "link: must be down or up, not '${2:-}'"
    on_switch ip link set "to-$1" "$2"
}

set_rate() {
    (($# == 2)) || fail "rate: RATE is missing; see --help"
    need_on "$1"
    if [[ "$2" == none ]]; then
        on_switch tc qdisc del dev "to-$1" root
        enter "$1" tc qdisc del dev eth0 root
    else
        on_switch tc qdisc replace dev "to-$1" root tbf rate "$2" burst 64kb latency 400ms
        enter "$1" tc qdisc replace dev eth0 root tbf rate "$2" burst 64kb latency 400ms
    fi
}

# switch_off HOST: its cable first, or the others would get its processes' goodbyes.
switch_off() {
    need_on "$1"
    on_switch ip link delete "to-$1"
    end "$(<"$folder/$1.pid")"
    rm "$folder/$1.pid"
}

# end PID ...: with process 1 of a host, all others of it. Their parent may be one that never asks for their ends.
end() {
    local process
    kill -s KILL "$@" 2>/dev/null || true
    for process in "$@"; do
        while grep -qs 'State:.[^ZX]' "/proc/$process/status"; do sleep 0.02; done
    done
}

down() {
    local name guard processes=()
    for name in $(<"$folder/names") switch; do
        if is_on "$name"; then processes+=("$(<"$folder/$name.pid")"); fi
    done
    end "${processes[@]}"
    guard="$(cat "$folder/guard.pid" 2>/dev/null || true)"
    rm -rf --one-file-system "$folder"
    # Last, for it may be what calls this.
    if [[ -n "$guard" && "$guard" != "$$" ]]; then kill -s KILL -- "-$guard" 2>/dev/null || true; fi
}

folder=""
main "$@"
