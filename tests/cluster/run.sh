#!/usr/bin/env bash
# The tests of launchers on simulated hosts with real sshd, pdsh, Slurm and MPI. Needs root.
#
#   bash tests/cluster/run.sh [--install] [ARGUMENTS OF PYTEST ...]
#   bash tests/cluster/run.sh --only-install
#
# --install first installs, by apt-get, the Debian packages that are missing; without it they are named, and the tests that
# need them skip. They are: iproute2 openssh-server openssh-client pdsh slurmctld slurmd slurm-client munge openmpi-bin.
# Nothing else on the machine is changed, and nothing is left: see tests/cluster/hosts.sh.
# Exit code: that of pytest; 2 if the packages cannot be installed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/environment.sh"

# Beside what hosts.sh and slurm.sh need.
readonly MORE_TOOLS=(mpirun:openmpi-bin)

main() {
    local install="" only="" packages
    case "${1:-}" in
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --install) install=yes; shift ;;
        --only-install) install=yes only=yes ;;
    esac
    cd "$ROOTS_HOME" || fail "cannot enter $ROOTS_HOME"
    ((EUID == 0)) || fail "needs root, to give simulated hosts a network of their own"
    packages="$(missing)"
    if [[ -n "$packages" && -n "$install" ]]; then
        install_packages "$packages"
    elif [[ -n "$packages" ]]; then
        echo "run.sh: not installed, and what needs them skips: $packages (--install installs them)"
    fi
    [[ -z "$only" ]] || exit 0
    use_python
    OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
    if (($# == 0)); then set -- tests/cluster; fi
    exec "$PYTHON" -m pytest -m "whole_cluster or not whole_cluster" "$@"
}

missing() {
    local pair words=()
    for pair in "${MORE_TOOLS[@]}"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || words+=("${pair##*:}")
    done
    echo "$(bash tests/cluster/hosts.sh missing) $(bash tests/cluster/slurm.sh missing) ${words[*]}" | xargs
}

# install_packages "NAME ...": no daemon of them is started, where the machine has no policy of its own about that.
install_packages() {
    local policy=/usr/sbin/policy-rc.d log made=""
    log="$(mktemp)"
    echo "run.sh: apt-get install $1"
    if [[ ! -e "$policy" ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made=yes
    fi
    # shellcheck disable=SC2086 # words
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $1; } >"$log" 2>&1 ||
        { rm -f ${made:+"$policy"}; fail "apt-get could not install $1: $(grep '^E:' "$log" | head -n 1) (all of it in $log)"; }
    rm -f "$log" ${made:+"$policy"}
}

main "$@"
