#!/usr/bin/env bash
# DeepSpeed's pipeline lets the copies of a tied weight drift apart in fp16 with fp32 gradient accumulation.
#
# deepspeed 0.19.8, torch 2.13.0, two processes on a CPU.
# Expected: the gradients of a weight tied between two stages are added, and both copies stay equal.
# Seen:     with fp16, ZeRO 1 and data_types.grad_accum_dtype fp32 the gradient is in `grad_accum` when the pipeline sums
#           `grad`, which is None: nothing is added, without a word, and the copies differ after the first step.
# Output seen:
#   grad_accum_dtype fp16: the two copies of the tied weight are equal
#   grad_accum_dtype fp32: the two copies of the tied weight are different
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 numpy==2.4.6 setuptools wheel ninja
"${pip[@]}" --no-build-isolation deepspeed==0.19.8

cat >"$folder/run.py" <<'PYTHON'
import os

import torch
from torch import nn

os.environ["DS_ACCELERATOR"] = "cpu"
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator  # noqa: E402
from deepspeed.accelerator.real_accelerator import set_accelerator  # noqa: E402


class Half(CPU_Accelerator):
    """fp16, which torch computes on any CPU, and Gloo alone, for which nothing is compiled."""

    def is_fp16_supported(self):
        return True

    def supported_dtypes(self):
        return [torch.float32, torch.bfloat16, torch.float16]

    def create_op_builder(self, op_name):
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


set_accelerator(Half())
import deepspeed  # noqa: E402
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec  # noqa: E402

deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
rank = torch.distributed.get_rank()
for dtype in ("fp16", "fp32"):
    torch.manual_seed(0)
    layers = [
        TiedLayerSpec("table", nn.Linear, 4, 4, bias=False, tied_weight_attr=["weight"]),
        LayerSpec(nn.Linear, 4, 4, bias=False),
        LayerSpec(nn.Identity),
        TiedLayerSpec("table", nn.Linear, 4, 4, bias=False, tied_weight_attr=["weight"]),
    ]
    model = PipelineModule(layers, num_stages=2, loss_fn=lambda x, y: (x - y).float().square().mean(),
                           partition_method="uniform")
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.parameters()),
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "fp16": {"enabled": True, "initial_scale_power": 4},
            "data_types": {"grad_accum_dtype": dtype},
            "zero_optimization": {"stage": 1, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    x, y = torch.randn(2, 1, 4).half()
    for _ in range(3):
        engine.train_batch(iter([(x, y)] * 2))
    weight = engine.module.tied_modules["table"].weight.detach().float().flatten().tolist()
    copies = [None, None]
    torch.distributed.all_gather_object(copies, weight)
    if rank == 0:
        same = "equal" if copies[0] == copies[1] else "different"
        print(f"grad_accum_dtype {dtype}: the two copies of the tied weight are {same}", flush=True)
PYTHON

expected='grad_accum_dtype fp16: the two copies of the tied weight are equal
grad_accum_dtype fp32: the two copies of the tied weight are different'
run=("$folder/venv/bin/torchrun" --standalone --nproc-per-node 2 "$folder/run.py")
seen="$("${run[@]}" 2>"$folder/log" | grep '^grad_accum' || tail -n 3 "$folder/log")"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
