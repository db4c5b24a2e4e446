#!/usr/bin/env bash
# The same DeepSpeed JSON clips gradients and skips steps in 0.19.3, and does neither in 0.19.2.
#
# deepspeed 0.19.2 and 0.19.3, torch 2.13.0, one process on a CPU.
# Expected: a patch release trains a given config as the one before did.
# Seen:     `gradient_clipping` that is not given was 0 (off) and is 1.0 from 0.19.3 on; `bf16.check_grad_overflow` was
#           false and is true, so a bf16 step with a NaN gradient, applied before at ZeRO 1, is skipped.
# Output seen:
#   0.19.2: a gradient of 2 moves weights by 2.0; with a NaN in it the step is applied
#   0.19.3: a gradient of 2 moves weights by 0.5; with a NaN in it the step is skipped
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 setuptools wheel ninja einops hjson msgpack packaging psutil py-cpuinfo pydantic tqdm
for version in 0.19.2 0.19.3; do
    "${pip[@]}" --no-build-isolation --no-deps --target "$folder/$version" "deepspeed==$version"
done

cat >"$folder/run.py" <<'PYTHON'
import os
import sys

import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed  # noqa: E402


def weights_after(factor, **config):
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **config,
        },
    )
    x = torch.ones(1, 4, dtype=model.weight.dtype) * factor.to(model.weight.dtype)
    engine.backward(engine(x).sum())
    engine.step()
    return model.weight.detach().float().flatten()


moved = 1.0 - float(weights_after(torch.full((4,), 2.0))[0])
after = weights_after(torch.tensor([float("nan"), 1.0, 1.0, 1.0]), bf16={"enabled": True})
state = "skipped" if torch.equal(after, torch.ones(4)) else "applied"
print(f"{deepspeed.__version__}: a gradient of 2 moves weights by {moved:.1f}; with a NaN in it the step is {state}")
PYTHON

expected='0.19.2: a gradient of 2 moves weights by 2.0; with a NaN in it the step is applied
0.19.3: a gradient of 2 moves weights by 0.5; with a NaN in it the step is skipped'
seen="$(port=29610
for version in 0.19.2 0.19.3; do
    PYTHONPATH="$folder/$version" "$folder/venv/bin/python" "$folder/run.py" "$((port++))" 2>"$folder/log" |
        grep '^0' || tail -n 3 "$folder/log"
done)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
