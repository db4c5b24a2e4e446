#!/usr/bin/env bash
# Whether safetensors reads bfloat16 into numpy depends on what else the program has imported.
#
# safetensors 0.8.0, ml_dtypes 0.6.0, numpy 2.4.6.
# Expected: safetensors.numpy reads BF16, the type of most published weights, or names what it needs.
# Seen:     "data type 'bfloat16' not understood" until any module has imported ml_dtypes, which gives numpy the name; from then
#           on it reads. The same import does not help FP8, which safetensors looks for in numpy itself.
# Output seen:
#   before: BF16 TypeError: data type 'bfloat16' not understood
#   before: F8_E4M3 AttributeError: module 'numpy' has no attribute 'float8_e4m3fn'
#   after import ml_dtypes: BF16 [1.0, 2.0]
#   after import ml_dtypes: F8_E4M3 AttributeError: module 'numpy' has no attribute 'float8_e4m3fn'
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 ml_dtypes==0.6.0 numpy==2.4.6

cat >"$folder/run.py" <<'PYTHON'
import json
import struct
import sys
from pathlib import Path

from safetensors.numpy import load_file

STORED = {"BF16": struct.pack("<2H", 0x3F80, 0x4000), "F8_E4M3": b"\x38\x40"}


def tell(case):
    for dtype, numbers in STORED.items():
        header = json.dumps({"w": {"dtype": dtype, "shape": [2], "data_offsets": [0, len(numbers)]}}).encode()
        Path(sys.argv[1]).write_bytes(struct.pack("<Q", len(header)) + header + numbers)
        try:
            told = f"{load_file(sys.argv[1])['w'].astype(float).tolist()}"
        except (TypeError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
        print(f"{case}: {dtype} {told}")


tell("before")
import ml_dtypes  # noqa: E402, F401

tell("after import ml_dtypes")
PYTHON

expected="before: BF16 TypeError: data type 'bfloat16' not understood
before: F8_E4M3 AttributeError: module 'numpy' has no attribute 'float8_e4m3fn'
after import ml_dtypes: BF16 [1.0, 2.0]
after import ml_dtypes: F8_E4M3 AttributeError: module 'numpy' has no attribute 'float8_e4m3fn'"
seen="$("$folder/venv/bin/python" "$folder/run.py" "$folder/file.safetensors" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
