#!/usr/bin/env bash
# The steps by which both images make their environment, for the first stages of docker/Dockerfile and Dockerfile.cpu.
#
#   docker/install.sh packages|roots|apex|strip
#
# Runs inside a build, in a folder with what the image copies; VIRTUAL_ENV is the environment. Variables (ARGs there):
# PACKAGES            lock: every package by its hash, for Python 3.11 (docker/requirements.lock);
#                     constraints: pinned versions, for any Python (docker/constraints.txt)
# EXTRAS              extras of pyproject.toml; the lock has those that are the default
# TORCH_INDEX         where torch comes from; empty: the usual index
# KERNELS             cpu, or all for CUDA as well
# CUDA_ARCHITECTURES  GPUs to compile for, such as 80;90;100
# DEEPSPEED_OPS       operators of DeepSpeed to compile ahead, such as DS_BUILD_FUSED_ADAM=1; empty: none
# APEX                a git ref of NVIDIA's apex; empty: without
# COMPILER            empty if the image will have no compiler: headers for one go, too
# Exit code: 2 for what cannot be, else that of what failed.
set -euo pipefail

readonly LOCKED_EXTRAS="formats,plots,wandb"
readonly LOCKED_PYTHON="3.11"

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 2
}

PACKAGES="${PACKAGES:-lock}"
# Setups that write a set into the metadata of what they build, as DeepSpeed's does its extra `all`, write it in one order.
export PYTHONHASHSEED=0

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    case "${1:-}" in
        -h | --help) sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "docker/install.sh" ;;
        packages | roots | apex | strip) "install_$1" ;;
        *) fail "STEP=${1:-}: must be packages, roots, apex or strip" ;;
    esac
}

# install_packages: torch and what ROOTS needs beside it. Packages without a wheel are built with the setuptools that is
# installed before them, DeepSpeed with torch as well.
install_packages() {
    check_packages
    if [[ "$PACKAGES" == constraints ]]; then
        constrained setuptools wheel pybind11 numpy ninja packaging
        install_torch
        with_operators constrained deepspeed
    else
        locked '^(setuptools|wheel)=='
        locked '^(setuptools|wheel|deepspeed)==' others
        install_torch
        with_operators locked '^deepspeed=='
    fi
}

check_packages() {
    local python
    case "$PACKAGES" in
        constraints) return ;;
        lock) ;;
        *) fail "PACKAGES=$PACKAGES: must be lock or constraints" ;;
    esac
    python="$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])') $(uname -m)"
    [[ "$python" == "$LOCKED_PYTHON x86_64" ]] ||
        fail "the base has Python ${python% *} on ${python#* }, and docker/requirements.lock is for $LOCKED_PYTHON on x86_64: add --build-arg PACKAGES=constraints"
    [[ "$EXTRAS" == "$LOCKED_EXTRAS" ]] ||
        fail "EXTRAS=$EXTRAS: docker/requirements.lock has $LOCKED_EXTRAS: add --build-arg PACKAGES=constraints"
}

# locked PATTERN [others]: the packages of the lock whose lines match, or all others. The pattern sees NAME==VERSION.
locked() {
    local chosen
    chosen="$(mktemp)"
    awk -v pattern="$1" -v others="${2:-}" \
        '/^[^ #]/ { take = ($0 ~ pattern) != (others != "") } /^#/ { take = 0 } take' docker/requirements.lock >"$chosen"
    pip install --no-deps --no-build-isolation --require-hashes -r "$chosen"
    rm "$chosen"
}

constrained() {
    pip install --no-build-isolation -c docker/constraints.txt "$@"
}

# install_torch: from its own index alone, where its dependencies, which come with the rest, have other versions.
install_torch() {
    local pin
    pin="$(grep '^torch==' docker/constraints.txt)"
    if [[ -n "$TORCH_INDEX" ]]; then
        pip install --no-deps --index-url "$TORCH_INDEX" "$pin"
    else
        constrained "$pin"
    fi
}

# with_operators COMMAND ...: without a GPU in sight, DeepSpeed would compile the operators of a machine without.
with_operators() {
    local settings=()
    if [[ -n "${DEEPSPEED_OPS:-}" ]]; then
        read -ra settings <<<"$DEEPSPEED_OPS DS_ACCELERATOR=cuda"
        settings+=("TORCH_CUDA_ARCH_LIST=$(torch_architectures)")
        export "${settings[@]}"
    fi
    "$@"
    if ((${#settings[@]})); then unset "${settings[@]%%=*}"; fi
}

# torch_architectures: 80;90;100 as torch spells it: 8.0;9.0;10.0+PTX.
torch_architectures() {
    sed -E 's/([0-9]+)([0-9])/\1.\2/g; s/$/+PTX/' <<<"$CUDA_ARCHITECTURES"
}

install_roots() {
    local library backends=(cpu)
    export ROOTS_BUILD="$KERNELS" ROOTS_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-}"
    if [[ "$PACKAGES" == lock ]]; then
        pip install --no-deps --no-build-isolation .
    else
        constrained ".[$EXTRAS]"
    fi
    pip check
    # What could not be compiled is put off to its first use, where an image has no compiler.
    if [[ "$KERNELS" == all ]]; then backends+=(cuda); fi
    for library in "${backends[@]}"; do
        compgen -G "$VIRTUAL_ENV/lib/python3*/site-packages/roots/ops/library/_C_$library.so" >/dev/null ||
            fail "the $library kernels were not built: the lines of setup.py above say why"
    done
}

install_apex() {
    [[ -n "${APEX:-}" ]] || return 0
    TORCH_CUDA_ARCH_LIST="$(torch_architectures)" APEX_CPP_EXT=1 APEX_CUDA_EXT=1 \
        pip install --no-deps --no-build-isolation "apex @ git+https://github.com/NVIDIA/apex@$APEX"
}

# install_strip: takes away what no run reads, and compiles all modules: a read-only image cannot keep what Python
# compiles. Nobody edits them there, so neither dates nor hashes of sources are looked at.
install_strip() {
    local packages torch
    packages="$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
    torch="$packages/torch"
    pip uninstall --quiet --yes wheel pip
    rm -rf "$torch/test" "$torch/share"
    find "$torch/bin" -type f ! -name torch_shm_manager -delete
    find "$packages" -name '*.a' -delete
    if [[ -z "$COMPILER" ]]; then rm -rf "$torch/include"; fi
    find "$packages" -depth -name __pycache__ -exec rm -rf {} +
    # Some files are for newer Pythons.
    python -m compileall -qq --invalidation-mode unchecked-hash "$packages" || true
}

main "$@"
