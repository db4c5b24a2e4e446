#!/usr/bin/env bash
# Build an image of ROOTS with docker, podman or buildah, whichever is here.
#
#   docker/build.sh cpu|cuda [TAG] [--build-arg NAME=VALUE ...]
set -euo pipefail

fail() {
    printf 'build.sh: %s\n' "$1" >&2
    exit 2
}

(($# >= 1)) || fail "usage: docker/build.sh cpu|cuda [TAG] [--build-arg NAME=VALUE ...]"
case "$1" in
cpu) file=docker/Dockerfile.cpu ;;
cuda) file=docker/Dockerfile ;;
*) fail "KIND=$1: must be cpu or cuda" ;;
esac
tag="roots:$1"
shift
if (($# >= 1)) && [[ "$1" != -* ]]; then
    tag="$1"
    shift
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for engine in docker podman buildah; do
    if command -v "$engine" >/dev/null 2>&1; then
        exec "$engine" build --file "$file" --tag "$tag" "$@" .
    fi
done
fail "no docker, podman or buildah on PATH: install one of them"
