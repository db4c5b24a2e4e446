#!/usr/bin/env bash
# Whether DeepSpeed applies an fp32 step whose gradient holds a NaN depends on the ZeRO stage.
#
# deepspeed 0.19.8, torch 2.13.0, one process on a CPU.
# Expected: a step is either always applied or always skipped when a gradient is not finite; ZeRO only says where
#           tensors lie.
# Seen:     stage 0 applies it, and every weight is NaN from then on; stages 1, 2 and 3 skip it and keep the weights.
# Output seen:
#   stage 0: weights are NaN
#   stage 1: weights are unchanged
#   stage 2: weights are unchanged
#   stage 3: weights are unchanged
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 setuptools wheel ninja
"${pip[@]}" --no-build-isolation deepspeed==0.19.8

cat >"$folder/run.py" <<'PYTHON'
import os
import sys

import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed  # noqa: E402

stage = int(sys.argv[1])
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
before = model.weight.detach().clone()
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=0.1),
    config={
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
)
loss = (engine(torch.ones(1, 4)) * torch.tensor([float("nan"), 1.0, 1.0, 1.0])).sum()
engine.backward(loss)
engine.step()
with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
    after = model.weight.detach().clone()
state = "NaN" if after.isnan().any() else "unchanged" if torch.equal(before, after) else "changed"
print(f"stage {stage}: weights are {state}", flush=True)
PYTHON

expected='stage 0: weights are NaN
stage 1: weights are unchanged
stage 2: weights are unchanged
stage 3: weights are unchanged'
seen="$(for stage in 0 1 2 3; do
    "$folder/venv/bin/python" "$folder/run.py" "$stage" "$((29600 + stage))" 2>"$folder/log" | grep '^stage' ||
        tail -n 3 "$folder/log"
done)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
