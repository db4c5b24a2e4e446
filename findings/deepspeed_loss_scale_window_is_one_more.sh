#!/usr/bin/env bash
# loss_scale_window=N of DeepSpeed asks for N + 1 clean steps, at the start and after each overflow.
#
# deepspeed 0.19.8, torch 2.13.0.
# Expected: the scale doubles after N steps without an overflow, as its documentation and torch's GradScaler
#           (growth_interval) have it.
# Seen:     the first growth comes after N + 1 clean steps, the next ones every N, and the first after an overflow after
#           N + 1 again.
# Output seen:
#   window 2, clean steps:   4 4 4 8 8 16 16 32
#   window 2, overflow at 3: 4 4 4 8 4 4 4 8
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 setuptools wheel ninja
"${pip[@]}" --no-build-isolation deepspeed==0.19.8

cat >"$folder/run.py" <<'PYTHON'
import os

import deepspeed
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

# An overflow is logged on rank 0, for which the scaler asks DeepSpeed's communication.
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29610")
deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def scales(overflows):
    scaler = DynamicLossScaler(
        init_scale=4,
        scale_window=2,
        min_scale=1,
        delayed_shift=1,
        consecutive_hysteresis=False,
    )
    seen = []
    for step in range(8):
        seen.append(int(scaler.cur_scale))
        scaler.update_scale(step in overflows)
    return " ".join(map(str, seen))


print("window 2, clean steps:  ", scales(()))
print("window 2, overflow at 3:", scales((3,)))
PYTHON

expected='window 2, clean steps:   4 4 4 8 8 16 16 32
window 2, overflow at 3: 4 4 4 8 4 4 4 8'
seen="$(DS_ACCELERATOR=cpu "$folder/venv/bin/python" "$folder/run.py" 2>"$folder/log" | grep '^window' || tail -n 3 "$folder/log")"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
