#!/usr/bin/env bash
# The mean of a thousand ones is 0.256 in numpy, where they are bfloat16.
#
# ml_dtypes 0.6.0, numpy 2.4.6.
# Expected: numpy's mean of a thousand ones is 1, as it is for its own float16, which it sums in float32.
# Seen:     sums of ml_dtypes' bfloat16 are kept in bfloat16, which stay at 256 because 257 rounds to it; so do means, along an
#           axis too. A product of matrices of the same numbers is summed in float32.
# Output seen:
#   float16: sum 1000.000, mean 1.000, product 1000.000
#   bfloat16: sum 256.000, mean 0.256, product 1000.000
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6

cat >"$folder/run.py" <<'PYTHON'
import ml_dtypes
import numpy

for dtype in (numpy.float16, ml_dtypes.bfloat16):
    ones = numpy.ones(1000, dtype)
    numbers = {"sum": ones.sum(), "mean": ones.mean(), "product": ones @ ones}
    print(f"{ones.dtype.name}:", ", ".join(f"{name} {float(value):.3f}" for name, value in numbers.items()))
PYTHON

expected='float16: sum 1000.000, mean 1.000, product 1000.000
bfloat16: sum 256.000, mean 0.256, product 1000.000'
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
