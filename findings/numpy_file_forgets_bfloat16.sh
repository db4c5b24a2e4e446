#!/usr/bin/env bash
# An array of bfloat16 that numpy has saved comes back as one of nameless bytes.
#
# ml_dtypes 0.6.0, numpy 2.4.6.
# Expected: numpy.save writes a dtype that numpy.load gives back, or refuses it.
# Seen:     bfloat16 is written as "|V2", two bytes without a meaning, and nothing is said on either way, with ml_dtypes imported
#           too; float8_e4m3fn as "|V1". Who knows the type can view them. float8_e5m2 is written as "<f1", which load refuses.
# Output seen:
#   saved float16, loaded <f2, viewed [1.0, 1.0]
#   saved bfloat16, loaded |V2, viewed [1.0, 1.0]
#   saved float8_e4m3fn, loaded |V1, viewed [1.0, 1.0]
#   saved float8_e5m2: descr is not a valid dtype descriptor: '<f1'
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6

cat >"$folder/run.py" <<'PYTHON'
import io

import ml_dtypes
import numpy

for dtype in (numpy.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
    file = io.BytesIO()
    saved = numpy.ones(2, dtype)
    numpy.save(file, saved)
    file.seek(0)
    try:
        loaded = numpy.load(file)
    except ValueError as error:
        print(f"saved {saved.dtype.name}: {error}")
        continue
    print(f"saved {saved.dtype.name}, loaded {loaded.dtype.str}, viewed {loaded.view(dtype).astype(float).tolist()}")
PYTHON

expected="saved float16, loaded <f2, viewed [1.0, 1.0]
saved bfloat16, loaded |V2, viewed [1.0, 1.0]
saved float8_e4m3fn, loaded |V1, viewed [1.0, 1.0]
saved float8_e5m2: descr is not a valid dtype descriptor: '<f1'"
seen="$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
