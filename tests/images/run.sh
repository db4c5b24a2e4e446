#!/usr/bin/env bash
# Build the images for real and run them: docker/build.sh, with buildah and podman. Needs root and Debian.
#
#   bash tests/images/run.sh [--install] [--record] [ARGUMENTS OF PYTEST ...]
#
# --install first installs, by apt-get, the Debian packages that are missing; without it they are named, and that is all.
# They are: buildah podman crun mmdebstrap, and for containers on two hosts those of tests/cluster.
# --record writes what is measured to tests/bench/results/images.json.
# Nothing is pulled: the base is made of this machine's Debian packages, once (STORE-base.tar), and images lie in STORE.
# Variables, all of them about the machine where this runs:
#   ROOTS_IMAGE_STORE      STORE, /var/tmp/roots-images unless set: 6 GB; `rm -r` it when you are done
#   ROOTS_IMAGE_VOLUMES    FROM:TO:ro ..., mounted while images are built: certificates, settings of apt and pip, wheels
#   ROOTS_IMAGE_WORDS      more words for docker/build.sh, such as --build-arg=TORCH_INDEX=
#   ROOTS_IMAGE_BOOTSTRAP  more words for mmdebstrap
# Exit code: that of pytest; 2 for what is missing.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../launch/environment.sh"

readonly TOOLS=(buildah podman crun mmdebstrap)

main() {
    local install="" missing
    help_if_asked "$@"
    cd "$ROOTS_HOME" || fail "cannot enter $ROOTS_HOME"
    while (($#)); do
        case "$1" in
            --install) install=yes ;;
            --record) export ROOTS_IMAGE_RECORD="$ROOTS_HOME/tests/bench/results/images.json" ;;
            *) break ;;
        esac
        shift
    done
    ((EUID == 0)) || fail "needs root, to build images without a daemon"
    missing="$(missing)"
    if [[ -n "$missing" ]]; then
        [[ -n "$install" ]] || fail "missing Debian packages: run \`apt-get install --no-install-recommends $missing\`, or add --install"
        echo "run.sh: apt-get install $missing"
        # shellcheck disable=SC2086 # words
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing; } >/dev/null ||
            fail "apt-get could not install $missing"
    fi
    use_python
    export OMP_NUM_THREADS=1
    if (($# == 0)); then set -- tests/images; fi
    exec "$PYTHON" -m pytest -m "whole_images or not whole_images" "$@"
}

missing() {
    local tool words=()
    for tool in "${TOOLS[@]}"; do
        command -v "$tool" >/dev/null 2>&1 || words+=("$tool")
    done
    echo "${words[*]} $(bash tests/cluster/hosts.sh missing)" | xargs
}

main "$@"
