#!/usr/bin/env bash
# numpy.sort leaves bfloat16 numbers in disorder where one is NaN.
#
# ml_dtypes 0.6.0, numpy 2.4.6.
# Expected: NaN comes last and the others in order, as numpy's manual says and its own float16 has it.
# Seen:     the comparison of ml_dtypes' bfloat16 does not rank NaN: it stays where it was and the numbers on either side are not
#           merged; unique, which sorts, repeats numbers. Nothing is raised.
# Output seen:
#   float16: sort [1.0, 2.0, 3.0, 3.0, nan]
#   float16: unique [1.0, 2.0, 3.0, nan]
#   bfloat16: sort [2.0, 3.0, nan, 1.0, 3.0]
#   bfloat16: unique [2.0, 3.0, nan, 1.0, 3.0]
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6

cat >"$folder/run.py" <<'PYTHON'
import ml_dtypes
import numpy

for dtype in (numpy.float16, ml_dtypes.bfloat16):
    numbers = numpy.array([3, 2, float("nan"), 1, 3], dtype)
    name = numbers.dtype.name
    print(f"{name}: sort {numpy.sort(numbers).tolist()}")
    print(f"{name}: unique {numpy.unique(numbers).tolist()}")
PYTHON

expected='float16: sort [1.0, 2.0, 3.0, 3.0, nan]
float16: unique [1.0, 2.0, 3.0, nan]
bfloat16: sort [2.0, 3.0, nan, 1.0, 3.0]
bfloat16: unique [2.0, 3.0, nan, 1.0, 3.0]'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
