#!/usr/bin/env bash
# The variables of NCCL, Gloo and OpenMP that the scripts in launch/ start ranks with, each with its reason.
#
#   launch/network.sh [infiniband|ethernet|off]    print those of a profile; without one, of that which fits this machine
#
# Every script calls set_network, which takes the profile from ROOTS_NETWORK: infiniband (RDMA, so RoCE too), ethernet, off,
# or auto (the default), which looks whether this machine has an RDMA adapter; say which, where it is not like the hosts.
# ROOTS_INTERFACE=eth0 is the interface for rendezvous and, without RDMA, for the data. A variable that is set already stays
# as it is, which is said where it differs. Not here, because each host decides for itself: OMP_NUM_THREADS, the cores of a
# host shared between its ranks, which launch/rank.py sets unless it is set; and GLOO_SOCKET_IFNAME=lo, which ranks choose
# that are all on one machine.

# network_variables PROFILE: lines `NAME=value reason`.
network_variables() {
    [[ "$1" != off ]] || return 0
    cat <<'END'
NCCL_DEBUG=WARN says in a line which link failed and why; nothing while all is well
END
    if [[ -n "${ROOTS_INTERFACE:-}" ]]; then
        cat <<END
GLOO_SOCKET_IFNAME=$ROOTS_INTERFACE Gloo would take the address of the host's own name, which many hosts map to themselves
NCCL_SOCKET_IFNAME==$ROOTS_INTERFACE NCCL would take the first interface that is up; = asks for this name and no longer one
END
    fi
    case "$1" in
        infiniband)
            cat <<'END'
NCCL_IB_TIMEOUT=22 17 s until a packet is sent again (4 s from NCCL 2.23 on, 0.07 to 1 s before): a link that comes back ends no run
END
            ;;
        ethernet)
            cat <<'END'
NCCL_IB_DISABLE=1 there is no RDMA adapter to look for
NCCL_SOCKET_NTHREADS=4 one thread does not fill a link of 100 Gbit/s
NCCL_NSOCKS_PERTHREAD=4 nor does one connection; NCCL takes 64 of them at most, here it is 4 x 4
END
            ;;
    esac
}

# network_profile: what ROOTS_NETWORK says, or which fits this machine.
network_profile() {
    local profile="${ROOTS_NETWORK:-auto}"
    case "$profile" in
        infiniband | ethernet | off) echo "$profile" ;;
        auto) if compgen -G '/sys/class/infiniband/*' >/dev/null; then echo infiniband; else echo ethernet; fi ;;
        *)
            printf '%s: ROOTS_NETWORK=%s: must be infiniband, ethernet, off or auto; unset it to have that taken which fits this machine\n' "${ROOTS_SCRIPT:-$(basename "$0")}" "$profile" >&2
            return 2
            ;;
    esac
}

# set_network: export what is not set yet.
set_network() {
    local profile name value line
    profile="$(network_profile)" || exit 2
    while read -r line; do
        line="${line%% *}" name="${line%%=*}" value="${line#*=}"
        if [[ -z "${!name+set}" ]]; then
            export "$name=$value"
        elif [[ "${!name}" != "$value" ]]; then
            printf '%s: %s=%s is yours and stays (%s: %s)\n' "${ROOTS_SCRIPT:-$(basename "$0")}" "$name" "${!name}" "$profile" "$value" >&2
        fi
    done < <(network_variables "$profile")
}

# show_network [PROFILE]
show_network() {
    local profile line name
    if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
        sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        return
    fi
    profile="$(ROOTS_NETWORK="${1:-${ROOTS_NETWORK:-}}" network_profile)" || exit 2
    while read -r line; do
        name="${line%%=*}"
        if [[ -n "${!name+set}" ]]; then
            printf '%s=%s (yours)\n' "$name" "${!name}"
        else
            printf '%-28s # %s\n' "${line%% *}" "${line#* }"
        fi
    done < <(network_variables "$profile")
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    set -euo pipefail
    show_network "$@"
fi
