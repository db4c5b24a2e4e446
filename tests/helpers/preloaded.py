"""What every forked process of the tests finds loaded: the fork server imports this once.

That is what a rank would import, slowly, before or during its first step, and the kernels of the
CPU with their registrations. The server then hands its objects to no later garbage collection, so
that the processes share their memory.
"""

from __future__ import annotations

import gc
import importlib
from contextlib import suppress

# DeepSpeed and activation checkpointing import most of these late.
_MODULES = (
    "torch._dynamo",
    "torch.distributed.checkpoint.planner_helpers",
    "torch.distributed.nn.functional",
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.moe.ep_repack",
    "deepspeed.comm.mori",
    "deepspeed.runtime.pipe.engine",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "numpy.ctypeslib",
    "pytest",
    "rich._emoji_codes",
    "torch.utils.tensorboard",
    "roots.cli.main",
    "roots.data._index",
    "roots.training.assemble",
    "roots.training.loop",
    "roots.verify.curve",
    "roots.exchange.hf.exporting",
    "tests.helpers.distributed",
    "tests.helpers.runs",
    "tests.integration.runs",
)
_OPS = (
    "attention",
    "bias_dropout_add",
    "bias_gelu",
    "check_finite",
    "cross_entropy",
    "dropout",
    "layer_norm",
    "rms_norm",
    "rotary",
    "scaled_masked_softmax",
    "swiglu",
)


def load() -> None:
    """Import what ranks use and load the kernels; keep all of it out of garbage collections."""
    gc.disable()
    for name in _MODULES:
        # Other versions of DeepSpeed have other modules; a rank imports what is missing here.
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    _load_kernels()
    gc.collect()
    gc.freeze()
    gc.enable()


def _load_kernels() -> None:
    import torch

    from roots.ops.dispatch import Request

    request = Request(torch.float32, "cpu", head_size=64)
    for name in _OPS:
        for implementation in importlib.import_module(f"roots.ops.{name}").IMPLEMENTATIONS:
            if implementation.name == "roots":
                implementation.unsupported_reasons(request)


load()
