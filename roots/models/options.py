"""What building a model needs besides its architecture: dtype, device, data conventions, ops."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from roots.config.data import OpsConfig
from roots.config.run import RunConfig

_COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _default_ops() -> OpsConfig:
    return OpsConfig.model_validate({})


@dataclass(frozen=True)
class BuildOptions:
    """How a model is built.

    dtype:              of parameters and activations
    device:             where parameters are made; "meta" leaves memory to models/init.py
    separate_documents: attention stays inside a document
    reset_positions:    positions start again in every document
    recompute:          "full": blocks run forward again in the backward pass
    ops:                the implementation asked for, per op
    """

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "meta"
    separate_documents: bool = True
    reset_positions: bool = False
    recompute: Literal["none", "full"] = "none"
    ops: OpsConfig = field(default_factory=_default_ops)

    @staticmethod
    def of_run(config: RunConfig) -> BuildOptions:
        """The options of a training run, with parameters on the meta device."""
        return BuildOptions(
            dtype=compute_dtype(config.training.precision),
            separate_documents=config.data.separate_documents,
            reset_positions=config.data.reset_positions,
            recompute=config.parallel.recompute,
            ops=config.ops,
        )


def compute_dtype(precision: Literal["fp32", "bf16", "fp16"]) -> torch.dtype:
    """The torch dtype of `training.precision`."""
    return _COMPUTE_DTYPES[precision]
