#!/usr/bin/env bash
# Every check and timing that needs an NVIDIA GPU, in one call of under ten minutes.
#
#   bash tests/bench/gpu.sh [FOLDER OF RESULTS]        (default: tests/bench/results)
#
# Needs torch, numpy, pytest, and nvcc or the folder of built libraries in ROOTS_KERNELS; no DeepSpeed.
# The training step is timed where pydantic and PyYAML are installed as well. Each part has its own time
# limit and its own log; a part that fails does not stop the others.
# Exit code: 0, or the number of parts that failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

out="${1:-tests/bench/results}"
python="${PYTHON:-python3}"
failed=0
mkdir -p "$out"
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PYTHONUNBUFFERED=1
export PYTHONPATH PYTHONUNBUFFERED

# part NAME SECONDS COMMAND ...: run it under its limit, keep its output, print how it ended.
part() {
    local name="$1" limit="$2" code=0 started=$SECONDS
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/gpu-$name.log" 2>&1 || code=$?
    printf '== %-14s exit %3d after %3d s: %s\n' "$name" "$code" "$((SECONDS - started))" "$(tail -n 1 "$out/gpu-$name.log")"
    if ((code != 0)); then
        failed=$((failed + 1))
        tail -n 15 "$out/gpu-$name.log"
    fi
}

pytest=("$python" -m pytest -c tests/bench/gpu.ini --rootdir . -q -p no:cacheprovider)

if [[ -z "${ROOTS_KERNELS:-}" ]]; then
    ROOTS_KERNELS="$(mktemp -d)"
    export ROOTS_KERNELS
    part build-cpu 120 "$python" -m roots.ops.library build cpu --out "$ROOTS_KERNELS"
    part build-cuda 240 "$python" -m roots.ops.library build cuda --out "$ROOTS_KERNELS"
fi
part info 60 "$python" -c "
import json, sys, torch
from dataclasses import asdict
from roots.ops.status import table
print(torch.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_capability())
json.dump([asdict(row) for row in table(('cuda',))], open(sys.argv[1], 'w'), indent=1)
" "$out/gpu-ops-chosen.json"
part tests 150 "${pytest[@]}" tests/ops -k "cuda"
if command -v compute-sanitizer >/dev/null; then
    cases="$("$python" -m tests.ops.sanitized cuda)"
    for tool in memcheck racecheck synccheck; do
        part "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
            "${pytest[@]}" tests/ops -k "$cases"
    done
fi
part bench 150 "$python" -m tests.bench.ops --device cuda --rounds 9 --json "$out/gpu-ops.json"
part memory 60 "$python" -m tests.bench.memory --device cuda --json "$out/gpu-memory.json"
if "$python" -c 'import pydantic, yaml' 2>/dev/null; then
    part step 90 "$python" -m tests.bench.cuda_step --json "$out/gpu-step.json"
fi
cat "$out/gpu-bench.log"
printf '%d parts failed\n' "$failed"
exit "$failed"
