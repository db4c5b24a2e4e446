"""DeepSpeed's accelerator on a CPU, with fp16 allowed.

DeepSpeed refuses fp16 on processors without native half-precision arithmetic. torch computes it
everywhere (slowly), and that is what proves loss scaling without a GPU.
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.real_accelerator import set_accelerator

from roots.device import Device
from roots.errors import RootsError, problem

# What older ones do otherwise is in docs/pages/versions.md.
OLDEST = (0, 19, 8)
# What torch warns of in DeepSpeed's own code, on every rank: nothing that a user could change.
_KNOWN_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Collectives that torch 2.13 has under newer names, which DeepSpeed 0.19 does not take.
    ("`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning),
    ("`torch.distributed.reduce_scatter_tensor` is deprecated", FutureWarning),
    # Its pipeline receives into buffers that require gradients, which it passes on itself; torch
    # fears silently wrong results. The layout tests hold gradients equal to one process.
    ("c10d::broadcast_: an autograd kernel was not", UserWarning),
)
# What DeepSpeed says of every step that is left out, in the precisions without a loss scale: of a
# spike's, whose gradients are finite, too. ROOTS decides, and says why (engine/decision.py).
_KNOWN_LINE = "[deepspeed] OVERFLOW! Skipping step. Gradients are non-finite"


class HalfPrecisionCpu(CPU_Accelerator):  # type: ignore[misc]  # deepspeed has no type hints
    """The CPU accelerator with fp16, and without the shared-memory collectives.

    Those are compiled on a user's first start (a minute and a half), sum in an order that depends
    on the number of ranks, and leave segments in /dev/shm when a rank dies; Gloo does none of it.
    """

    def is_fp16_supported(self) -> bool:
        """Torch emulates fp16 where the processor has none."""
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        """The dtypes that DeepSpeed lets a config ask for."""
        return [torch.float32, torch.bfloat16, torch.float16]

    def create_op_builder(self, op_name: str) -> Any:
        """Build nothing for shared-memory communication, everything else as DeepSpeed does."""
        if op_name == "ShareMemCommBuilder":
            return None
        return super().create_op_builder(op_name)


def prepare_accelerator(device: Device) -> None:
    """Make DeepSpeed use `device`. Call before anything else of DeepSpeed.

    Raises RootsError if the installed one is older than OLDEST.
    """
    refuse_older(deepspeed.__version__)
    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    deepspeed.utils.logging.logger.addFilter(_is_news)
    ignore_known_warnings()
    if device.kind == "cpu":
        set_accelerator(HalfPrecisionCpu())


def ignore_known_warnings() -> None:
    """Keep what is said above off every rank's output, and nothing else."""
    for begin, category in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(begin), category=category)


def _is_news(record: logging.LogRecord) -> bool:
    return _KNOWN_LINE not in record.getMessage()


def refuse_older(version: str) -> None:
    """Raise RootsError if `version` of DeepSpeed is older than OLDEST."""
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        rule = f"must be {oldest} or newer; older ones train pipelines or ZeRO 3 otherwise"
        fix = f"run `pip install 'deepspeed>={oldest}'`"
        raise RootsError(problem("deepspeed", version, rule, fix))


def join_process_group(device: Device) -> None:
    """Let DeepSpeed communicate over the process group that is already initialised."""
    backend = "nccl" if device.kind == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
