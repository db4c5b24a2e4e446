#!/usr/bin/env bash
# Build an image of ROOTS with docker, podman or buildah, whichever is here.
#
#   docker/build.sh cpu|cuda [TAG] [--build-arg NAME=VALUE ...]
#
# A tag of a base image may name another image tomorrow, so bases are wanted by digest: BASE=NAME@sha256:... for cpu,
# BUILD_BASE and RUN_BASE for cuda (docker/README.md says how to look them up). --floating builds from the tags.
set -euo pipefail

fail() {
    printf 'build.sh: %s\n' "$1" >&2
    exit 2
}

(($# >= 1)) || fail "usage: docker/build.sh cpu|cuda [TAG] [--floating] [--build-arg NAME=VALUE ...]"
case "$1" in
cpu)
    file=docker/Dockerfile.cpu
    bases=(BASE)
    ;;
cuda)
    file=docker/Dockerfile
    bases=(BUILD_BASE RUN_BASE)
    ;;
*) fail "KIND=$1: must be cpu or cuda" ;;
esac
tag="roots:$1"
shift
if (($# >= 1)) && [[ "$1" != -* ]]; then
    tag="$1"
    shift
fi

arguments=()
floating=""
for word in "$@"; do
    if [[ "$word" == --floating ]]; then floating=yes; else arguments+=("$word"); fi
done
for base in "${bases[@]}"; do
    [[ -n "$floating" || " $* " =~ [\ =]$base=[^\ ]+@sha256:[0-9a-f]{64}\  ]] ||
        fail "$base has no digest: add \`--build-arg $base=NAME@sha256:...\` (docker/README.md), or --floating for what the tag names today"
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for engine in docker podman buildah; do
    if command -v "$engine" >/dev/null 2>&1; then
        exec "$engine" build --file "$file" --tag "$tag" ${arguments[@]+"${arguments[@]}"} .
    fi
done
fail "no docker, podman or buildah on PATH: install one of them"
