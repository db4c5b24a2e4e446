#!/usr/bin/env bash
# The whole proof without a GPU: set-up if needed, lint, architecture contracts, types, then all tests.
#
#   bash tests/run.sh [ARGUMENTS OF PYTEST ...]
#
# Every check runs whatever the others say; pytest comes last, so its closing line ends the output.
# Exit code: that of the first check that failed.
set -uo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"

readonly EXTRAS="dev,docs,plots,formats,wandb"

code=0

main() {
    cd "$ROOTS_HOME" || fail "cannot enter $ROOTS_HOME"
    make_environment "$EXTRAS" "${ROOTS_BUILD:-all}"
    install_if_possible megatron-core transformers sacrebleu lm_eval gguf accelerate starlette uvicorn openai tenacity
    install_if_possible nvidia-cuda-nvcc nvidia-cuda-cccl nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
    VIRTUAL_ENV="$ROOTS_VENV"
    PATH="$ROOTS_VENV/bin:$PATH"
    # Several test processes share the cores; a second thread in each only gets in the way.
    OMP_NUM_THREADS=1
    export VIRTUAL_ENV PATH OMP_NUM_THREADS

    check ruff check .
    check ruff format --check .
    check lint-imports --no-logo
    check mypy
    check shellcheck -x launch/*.sh launch/*.sbatch tests/*.sh tests/cluster/*.sh tests/images/*.sh docker/*.sh findings/*.sh .ci/run
    check python -m pytest -n 2 --dist worksteal "$@"
    exit "$code"
}

# check COMMAND ...: run it and keep the first bad exit code.
check() {
    local result=0
    printf '\n== %s\n' "$*"
    "$@" </dev/null || result=$?
    if ((code == 0)); then code="$result"; fi
}

# Needed by some tests alone, which skip with a reason where these are missing.
install_if_possible() {
    local package
    for package in "$@"; do
        if ! "$ROOTS_VENV/bin/python" -c "import importlib.metadata as m; m.version('$package')" >/dev/null 2>&1 &&
            ! run_pip install --no-build-isolation -c "$ROOTS_CONSTRAINTS" "$package"; then
            printf 'run.sh: %s could not be installed; the tests that need it will skip\n' "$package"
        fi
    done
}

main "$@"
