#!/usr/bin/env bash
# DeepSpeed doubles the fp16 loss scale before it divides the gradients by it: a step at which it grows applies half.
#
# deepspeed 0.19.8, torch 2.13.0 (CPU, whose accelerator is told that fp16 works).
# Expected: gradients are divided by the scale that their loss was multiplied with, as torch's GradScaler does it.
# Seen:     under ZeRO 1 with clipping off, a gradient of 1 is applied as 0.5 in every step after which the scale is doubled;
#           nothing is logged.
# Output seen:
#   step 1: scale 16 to 16, gradient applied 1.00
#   step 2: scale 16 to 16, gradient applied 1.00
#   step 3: scale 16 to 32, gradient applied 0.50
#   step 4: scale 32 to 32, gradient applied 1.00
#   step 5: scale 32 to 64, gradient applied 0.50
#   step 6: scale 64 to 64, gradient applied 1.00
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
import torch
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator


class HalfOnCpu(CPU_Accelerator):
    """Lets fp16 run on a processor, which does it in software."""

    def is_fp16_supported(self):
        return True

    def supported_dtypes(self):
        return [torch.float, torch.half, torch.bfloat16]


set_accelerator(HalfOnCpu())
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29611")
model = torch.nn.Linear(1, 1, bias=False)
settings = {
    "train_batch_size": 1,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
    "fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 2, "hysteresis": 1},
}
engine, *_ = deepspeed.initialize(model=model, config=settings, optimizer=torch.optim.SGD(model.parameters(), lr=2**-6))
(master,) = engine.optimizer.single_partition_of_fp32_groups
for step in range(1, 7):
    scale, before = engine.optimizer.loss_scale, master[0].item()
    # The loss is the weight itself, so that its gradient is 1 in every step.
    engine.backward(engine(torch.ones(1, 1, dtype=torch.half)).sum())
    engine.step()
    moved = (before - master[0].item()) * 2**6
    print(f"step {step}: scale {scale:g} to {engine.optimizer.loss_scale:g}, gradient applied {moved:.2f}")
PYTHON

expected='step 1: scale 16 to 16, gradient applied 1.00
step 2: scale 16 to 16, gradient applied 1.00
step 3: scale 16 to 32, gradient applied 0.50
step 4: scale 32 to 32, gradient applied 1.00
step 5: scale 32 to 64, gradient applied 0.50
step 6: scale 64 to 64, gradient applied 1.00'
seen="$(DS_ACCELERATOR=cpu "$folder/venv/bin/python" "$folder/run.py" 2>"$folder/log" | grep '^step' || tail -n 3 "$folder/log")"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
