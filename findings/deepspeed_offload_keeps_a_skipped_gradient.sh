#!/usr/bin/env bash
# DeepSpeed's ZeRO 2 with the optimizer on the host keeps the gradient of a skipped step: no later step is applied.
#
# deepspeed 0.19.8, torch 2.13.0 (CPU).
# Expected: a step whose gradient is infinite is skipped and forgotten, and the next one is applied, as without offload.
# Seen:     with offload_optimizer and fp32 gradient sums (data_types.grad_accum_dtype) in bf16, every step after a single
#           infinite gradient is skipped too: the sum on the host is not cleared, and inf + 1 is inf. Nothing is logged.
# Output seen:
#   none: step 1 applied 1, step 2 (inf) applied 0, step 3 applied 1, step 4 applied 1, step 5 applied 1
#   cpu: step 1 applied 1, step 2 (inf) applied 0, step 3 applied 0, step 4 applied 0, step 5 applied 0
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

import deepspeed
import torch

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29613")
place = sys.argv[1]
settings = {
    "train_batch_size": 1,
    "gradient_clipping": 0.0,
    "bf16": {"enabled": True, "check_grad_overflow": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": place}},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
model = torch.nn.Linear(1, 1, bias=False)
engine, *_ = deepspeed.initialize(model=model, config=settings, optimizer=torch.optim.SGD(model.parameters(), lr=2**-4))
(master,) = engine.optimizer.single_partition_of_fp32_groups
told = []
for step, factor in enumerate((1.0, float("inf"), 1.0, 1.0, 1.0), start=1):
    before = master[0].item()
    # The loss is the weight times the factor, which therefore is the gradient.
    engine.backward(engine(torch.ones(1, 1, dtype=torch.bfloat16)).sum() * factor)
    engine.step()
    moved = (before - master[0].item()) * 2**4
    told.append(f"step {step}{' (inf)' if factor > 1 else ''} applied {moved:g}")
print(f"{place}: {', '.join(told)}")
PYTHON

expected='none: step 1 applied 1, step 2 (inf) applied 0, step 3 applied 1, step 4 applied 1, step 5 applied 1
cpu: step 1 applied 1, step 2 (inf) applied 0, step 3 applied 0, step 4 applied 0, step 5 applied 0'
seen="$(for place in none cpu; do
    DS_ACCELERATOR=cpu "$folder/venv/bin/python" "$folder/run.py" "$place" 2>"$folder/log" | grep '^\(none\|cpu\):' ||
        tail -n 3 "$folder/log"
done)"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
