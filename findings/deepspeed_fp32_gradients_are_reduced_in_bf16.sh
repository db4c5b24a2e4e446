#!/usr/bin/env bash
# DeepSpeed with fp32 gradient accumulation still sums replicas in bf16 unless communication_data_type is set too.
#
# deepspeed 0.19.8, torch 2.13.0, two processes on a CPU.
# Expected: with bf16 and data_types.grad_accum_dtype fp32, gradients of 1 and 2^-9 on two ranks have the mean
#           0.5 + 2^-10, as the fp32 sums that are there can hold it.
# Seen:     what is reduced is cast to bf16 first, and at ZeRO 1 the fp32 sums too: the mean is 0.5, the second rank is
#           lost. With communication_data_type fp32 it is right. The first moment with beta1 = 0 is the mean.
# Output seen:
#   stage 1, default: 0.5
#   stage 1, fp32 asked for: 0.5009765625
#   stage 2, default: 0.5
#   stage 2, fp32 asked for: 0.5009765625
#   stage 3, default: 0.5
#   stage 3, fp32 asked for: 0.5009765625
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

os.environ["DS_ACCELERATOR"] = "cpu"
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator  # noqa: E402
from deepspeed.accelerator.real_accelerator import set_accelerator  # noqa: E402


class Plain(CPU_Accelerator):
    """Gloo alone: the shared-memory collectives would be compiled first."""

    def create_op_builder(self, op_name):
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


set_accelerator(Plain())
import deepspeed  # noqa: E402

deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
rank = torch.distributed.get_rank()
for stage in (1, 2, 3):
    for wish in ({}, {"communication_data_type": "fp32"}):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1, bias=False)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.0, 0.9)),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_clipping": 0.0,
                "bf16": {"enabled": True},
                "data_types": {"grad_accum_dtype": "fp32"},
                "zero_optimization": {"stage": stage, "overlap_comm": False},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                **wish,
            },
        )
        # The gradient is the input: 1 on rank 0, 2^-9 on rank 1. Their mean is 0.5 + 2^-10.
        value = 1.0 if rank == 0 else 2.0**-9
        engine.backward(engine(torch.full((1, 4), value, dtype=torch.bfloat16)).sum())
        engine.step()
        parameter = next(engine.module.parameters())
        mean = deepspeed.utils.safe_get_full_optimizer_state(parameter, "exp_avg").flatten()[0]
        if rank == 0:
            asked = "fp32 asked for" if wish else "default"
            print(f"stage {stage}, {asked}: {float(mean)}", flush=True)
PYTHON

expected='stage 1, default: 0.5
stage 1, fp32 asked for: 0.5009765625
stage 2, default: 0.5
stage 2, fp32 asked for: 0.5009765625
stage 3, default: 0.5
stage 3, fp32 asked for: 0.5009765625'
run=("$folder/venv/bin/torchrun" --standalone --nproc-per-node 2 "$folder/run.py")
seen="$("${run[@]}" 2>"$folder/log" | grep '^stage [0-9],' || tail -n 3 "$folder/log")"
printf '%s\n' "$seen"
[[ "$seen" == "$expected" ]] || { echo "changed: this is not what the header says" >&2; exit 1; }
