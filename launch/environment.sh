# shellcheck shell=bash
# The Python environment of a checkout, for the scripts in launch/ and tests/run.sh. Sourced, not run.
#
# Sets ROOTS_HOME (the checkout). Every check says what is wrong in one line and ends with exit code 2; all checks come
# before the first change to the machine. ROOTS_SCRIPT is the name of the script for these lines, where $0 is not.

ROOTS_HOME="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly ROOTS_HOME
readonly ROOTS_VENV="$ROOTS_HOME/.venv"
readonly ROOTS_CONSTRAINTS="$ROOTS_HOME/docker/constraints.txt"
readonly TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"

# shellcheck source=launch/network.sh
source "$ROOTS_HOME/launch/network.sh"

# fail MESSAGE: one line on stderr, exit code 2 (bad input).
fail() {
    printf '%s: %s\n' "${ROOTS_SCRIPT:-$(basename "$0")}" "$1" >&2
    exit 2
}

# Before this, bash has said the same in words of its own.
[[ -d "$PWD" ]] || fail "current folder=$PWD: is not there any more; change to one that is"

# help_if_asked WORD ...: for --help, the comment at the head of the script, and the end.
help_if_asked() {
    if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
        sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
        exit 0
    fi
}

# refuse_options WHY WORD ...: none of the words may be an option.
refuse_options() {
    local word
    for word in "${@:2}"; do
        [[ "$word" != -* ]] || fail "$word: $1; $USAGE"
    done
}

has_gpu() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1
}

has_nvcc() {
    [[ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]] || command -v nvcc >/dev/null 2>&1
}

count_gpus() {
    if has_gpu; then nvidia-smi -L | grep -c '^GPU '; else echo 0; fi
}

# use_python: put the interpreter that has ROOTS into PYTHON and its tools (deepspeed, ninja) on PATH.
# An active environment wins over the checkout's .venv, and that over whatever python3 is on PATH.
use_python() {
    local candidate
    for candidate in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" \
        "$ROOTS_VENV/bin/python" "$(command -v python3 || true)"; do
        if [[ -x "$candidate" ]] && has_roots "$candidate"; then
            PYTHON="$candidate"
            PATH="$(dirname "$PYTHON"):$PATH"
            export PATH
            return
        fi
    done
    fail "no Python here has ROOTS installed: run \`bash launch/quickstart.sh\`, or activate the environment that has it"
}

# Asked from /, so that a checkout in the current folder does not pass for an installation.
has_roots() {
    (cd / && "$1" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("roots") and u.find_spec("deepspeed")))') \
        >/dev/null 2>&1
}

# need_deepspeed: its command starts the ranks; an environment can have the package alone.
need_deepspeed() {
    command -v deepspeed >/dev/null 2>&1 ||
        fail "no deepspeed on PATH (it belongs beside $PYTHON): run \`$PYTHON -m pip install --force-reinstall --no-deps deepspeed\`"
}

# check_machine: what building the environment needs. Looks, changes nothing.
check_machine() {
    local python="${PYTHON:-python3}"
    if [[ -x "$ROOTS_VENV/bin/python" ]]; then python="$ROOTS_VENV/bin/python"; fi
    command -v "$python" >/dev/null 2>&1 ||
        fail "no $python on PATH: Python 3.10 or newer is needed; run \`apt-get install python3 python3-venv python3-dev\` or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$python is $("$python" --version 2>&1): Python 3.10 or newer is needed; install one and set PYTHON=/path/to/python3"
    "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        fail "$python cannot make virtual environments: run \`apt-get install python3-venv\`"
    check_compiler "$python"
    check_disk
}

check_compiler() {
    local compiler="${CXX:-c++}" include
    # CXX may hold arguments ("ccache g++"), hence the unquoted use.
    command -v "${compiler%% *}" >/dev/null 2>&1 ||
        fail "no C++ compiler ($compiler) on PATH: run \`apt-get install g++\` or set CXX"
    include="$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')"
    # shellcheck disable=SC2086
    echo '#include <string_view>' | $compiler -std=c++17 -fsyntax-only -x c++ - >/dev/null 2>&1 ||
        fail "the C++ compiler ($compiler) does not compile C++17: run \`apt-get install g++\` or set CXX"
    # shellcheck disable=SC2086
    echo '#include <Python.h>' | $compiler -std=c++17 -fsyntax-only -I"$include" -x c++ - >/dev/null 2>&1 ||
        fail "no Python.h in $include: run \`apt-get install python3-dev\`"
}

# The packages unpack to 3 GB with the CPU build of torch and to 11 GB with the CUDA build; downloads and runs
# come on top. A finished environment only needs room for runs.
check_disk() {
    local need_gib=8 free_kib
    if has_gpu; then need_gib=18; fi
    if [[ -f "$ROOTS_VENV/.roots-environment" ]]; then need_gib=2; fi
    free_kib="$(df -Pk "$ROOTS_HOME" | awk 'NR == 2 { print $4 }')"
    ((free_kib >= need_gib * 1024 * 1024)) ||
        fail "$((free_kib / 1024 / 1024)) GiB free in $ROOTS_HOME: $need_gib GiB are needed; free some space or use another disk"
}

# kernels_here: what a run on this machine can use: "all", or without a GPU "cpu", which saves minutes of nvcc.
# ROOTS_BUILD, if it is set, decides instead.
kernels_here() {
    if [[ -n "${ROOTS_BUILD:-}" ]]; then
        echo "$ROOTS_BUILD"
    elif has_gpu; then
        echo all
    else
        echo cpu
    fi
}

# make_environment EXTRAS KERNELS: .venv with pinned versions and the compiled parts, with what takes time told in
# lines. A second call finds nothing to do.
make_environment() {
    local extras="$1" kernels="$2" key stamp="$ROOTS_VENV/.roots-environment"
    key="$(environment_key "$extras")"
    if [[ -f "$stamp" ]] && grep -qxF -e "$key $kernels" -e "$key all" "$stamp"; then return; fi
    check_machine
    if [[ ! -x "$ROOTS_VENV/bin/python" ]]; then
        "${PYTHON:-python3}" -m venv "$ROOTS_VENV" || fail "could not make $ROOTS_VENV"
    fi
    local PATH="$ROOTS_VENV/bin:$PATH"
    # Python compiles a module when it is first imported; of thousands of modules most never are.
    local -x PIP_NO_COMPILE=1
    echo "  - build tools"
    # The build tools come first and builds see this environment: an isolated build would fetch a torch of its own.
    pip_install setuptools wheel pybind11 numpy ninja packaging
    echo "  - torch (the largest download)"
    install_torch
    # The kernels for a GPU are compiled with the rest, so their compiler comes before it.
    if has_gpu && ! has_nvcc; then pip_install nvidia-cuda-nvcc nvidia-cuda-cccl; fi
    echo "  - other packages, then compiling: index builder, kernels for $kernels"
    # An environment that was made while the distribution was called roots would hold it twice.
    run_pip uninstall --yes roots || explain_pip_failure
    ROOTS_BUILD="$kernels" pip_install --no-build-isolation -e "${ROOTS_HOME}[${extras}]"
    # One line for each set of extras that this environment is known to hold; other sources void them all.
    if [[ -f "$stamp" ]] && ! grep -qF "${key%% *}" "$stamp"; then rm "$stamp"; fi
    printf '%s %s\n' "$key" "$kernels" >>"$stamp"
}

# environment_key EXTRAS: a hash over everything that the environment is made from, then the extras.
environment_key() {
    local hash
    hash="$(
        cd "$ROOTS_HOME" && shopt -s globstar nullglob &&
            cat docker/constraints.txt pyproject.toml setup.py csrc/**/*.* roots/ops/library/*.py | sha256sum | cut -c1-16
    )"
    printf '%s %s' "$hash" "$1"
}

install_torch() {
    local pin
    pin="$(grep '^torch==' "$ROOTS_CONSTRAINTS")"
    if "$ROOTS_VENV/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '${pin#torch==}')" \
        >/dev/null 2>&1; then
        return
    fi
    # PyPI's torch carries gigabytes of CUDA libraries; without a GPU the CPU build is enough, where it can be had.
    # Its dependencies come with the rest, from the usual index and with the usual pins.
    if ! has_gpu && answers "$TORCH_CPU_INDEX/torch/" &&
        run_pip install --no-deps --index-url "$TORCH_CPU_INDEX" "$pin"; then
        return
    fi
    pip_install "$pin"
}

answers() {
    "$ROOTS_VENV/bin/python" - "$1" >/dev/null 2>&1 <<'PYTHON_END'
import sys
import urllib.request

urllib.request.urlopen(sys.argv[1], timeout=5).close()
PYTHON_END
}

pip_install() {
    run_pip install -c "$ROOTS_CONSTRAINTS" "$@" || explain_pip_failure
}

run_pip() {
    "$ROOTS_VENV/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@" \
        >"$ROOTS_VENV/pip.log" 2>&1 </dev/null
}

explain_pip_failure() {
    local log="$ROOTS_VENV/pip.log"
    if grep -q 'No space left on device' "$log"; then
        fail "the disk filled up while packages were installed: free some space and run this again"
    fi
    fail "pip could not install the packages: $(grep -m1 -i 'error' "$log" || tail -n1 "$log") (all of it in $log)"
}
