#!/usr/bin/env bash
# Build an image of ROOTS with docker, podman or buildah, the first of them that works here.
#
#   docker/build.sh cpu|cuda [TAG] [--floating] [--engine NAME] [--build-arg NAME=VALUE ...] [OPTION OF THE ENGINE ...]
#
# TAG is roots:cpu or roots:cuda unless you say another. A tag of a base image may name another image tomorrow, so bases
# are wanted by digest: BASE=NAME@sha256:... for cpu, BUILD_BASE and RUN_BASE for cuda (docker/README.md says how to look
# them up); --floating builds from the tags. --engine asks for one engine by name. The image is labelled with the commit.
# What else can be said by --build-arg stands in docker/install.sh.
# Exit code: 2 for wrong arguments or without an engine that works, else that of the engine.
set -euo pipefail

readonly USAGE="usage: docker/build.sh cpu|cuda [TAG] [--floating] [--engine NAME] [--build-arg NAME=VALUE ...]"
readonly ENGINES=(docker podman buildah)
# An engine's client that waits for a daemon would wait for ever.
readonly PATIENCE=20
# What .dockerignore lets into the build.
readonly CONTEXT=(LICENSE README.md pyproject.toml setup.py configs csrc docker launch roots)

fail() {
    printf 'build.sh: %s\n' "$1" >&2
    exit 2
}

say() {
    printf 'build.sh: %s\n' "$1" >&2
}

main() {
    local file bases tag commit engine="" floating="" arguments=()
    if [[ " $* " == *" --help "* ]]; then set -- --help; fi
    case "${1:-}" in
        -h | --help) sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        cpu) file=docker/Dockerfile.cpu bases=(BASE) ;;
        cuda) file=docker/Dockerfile bases=(BUILD_BASE RUN_BASE) ;;
        "") fail "$USAGE" ;;
        *) fail "KIND=$1: must be cpu or cuda; $USAGE" ;;
    esac
    tag="roots:$1"
    shift
    if (($# >= 1)) && [[ "$1" != -* ]]; then tag="$1"; shift; fi
    while (($#)); do
        case "$1" in
            --floating) floating=yes ;;
            --engine) (($# >= 2)) || fail "--engine: a name must follow; $USAGE"; engine="$2"; shift ;;
            *) arguments+=("$1") ;;
        esac
        shift
    done
    if [[ -z "$floating" ]]; then check_digests; fi
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    choose_engine
    # docker's format is that which has health checks.
    if [[ "$engine" != docker ]]; then arguments+=(--format docker); fi
    commit="$(revision)"
    # The label is said again: buildah takes that of the commit before from its cache, whatever REVISION is.
    exec "$engine" build --file "$file" --tag "$tag" --build-arg "REVISION=$commit" \
        --label "org.opencontainers.image.revision=$commit" ${arguments[@]+"${arguments[@]}"} .
}

check_digests() {
    local base
    for base in "${bases[@]}"; do
        [[ " ${arguments[*]-} " =~ [\ =]$base=[^\ ]+@sha256:[0-9a-f]{64}\  ]] ||
            fail "$base has no digest: add \`--build-arg $base=NAME@sha256:...\` (docker/README.md), or --floating for what the tag names today"
    done
}

# choose_engine: sets `engine` of the caller. A client alone is no engine, so each is asked for what it is.
choose_engine() {
    local candidate reason names=("${ENGINES[@]}")
    if [[ -n "$engine" ]]; then
        [[ " ${ENGINES[*]} " == *" $engine "* ]] || fail "--engine=$engine: must be one of ${ENGINES[*]}"
        names=("$engine")
    fi
    for candidate in "${names[@]}"; do
        if ! command -v "$candidate" >/dev/null 2>&1; then continue; fi
        if reason="$(timeout "$PATIENCE" "$candidate" info 2>&1 >/dev/null)"; then
            engine="$candidate"
            return
        fi
        say "$candidate does not work here, passed over: $(tail -n 1 <<<"${reason:-no answer within $PATIENCE s}")"
    done
    fail "no ${names[*]} here that works: run \`apt-get install buildah\`, or start docker's daemon"
}

# revision: the commit, with -dirty behind it where the build takes what is in no commit.
revision() {
    local commit
    if ! commit="$(git rev-parse --verify HEAD 2>/dev/null)"; then
        say "no commit is known here, the image is labelled with revision unknown"
        echo unknown
        return
    fi
    if [[ -n "$(git status --porcelain -- "${CONTEXT[@]}")" ]]; then
        say "there are changes beside commit ${commit:0:12}, the image is labelled with -dirty"
        commit+=-dirty
    fi
    echo "$commit"
}

main "$@"
