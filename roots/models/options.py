"""What building a model needs besides its architecture: dtype, device, data conventions, ops."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    recompute:          "full": blocks run forward again in the backward pass; "selective": their
                        attention does, where it stores its scores
    recompute_every:    k: the blocks 0, k, 2k, ... do
    sequence_parallel:  norms, dropout and residuals work on 1/tensor of the tokens
    context_method:     how attention reaches over the ranks of the context axis
    label_smoothing:    of the loss, in training only
    z_loss:             of the loss, in training only
    ops:                the implementation asked for, per op
    """

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "meta"
    separate_documents: bool = True
    reset_positions: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    recompute_every: int = 1
    sequence_parallel: bool = False
    context_method: Literal["ulysses", "ring"] = "ulysses"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ops: OpsConfig = field(default_factory=_default_ops)

    @property
    def sequence_dim(self) -> int | None:
        """The dim of [B, T, H] that tensor ranks cut between them in the stream, if they do."""
        return 1 if self.sequence_parallel else None

    @staticmethod
    def of_run(config: RunConfig) -> BuildOptions:
        """The options of a training run, with parameters on the meta device."""
        return replace(
            BuildOptions.for_use(config, compute_dtype(config.training.precision)),
            recompute=config.parallel.recompute,
            recompute_every=config.parallel.recompute_every,
            sequence_parallel=config.parallel.sequence,
            context_method=config.parallel.context_method,
            label_smoothing=config.training.label_smoothing,
            z_loss=config.training.z_loss,
        )

    @staticmethod
    def for_use(config: RunConfig, dtype: torch.dtype) -> BuildOptions:
        """The options of a trained model; how its training was laid out plays no part."""
        return BuildOptions(
            dtype=dtype,
            separate_documents=config.data.separate_documents,
            reset_positions=config.data.reset_positions,
            ops=config.ops,
        )

    def of_block(self, index: int) -> BuildOptions:
        """The options of block number `index` of the whole model, on whatever stage it is."""
        return replace(self, recompute="none") if index % self.recompute_every else self


def compute_dtype(precision: Literal["fp32", "bf16", "fp16"]) -> torch.dtype:
    """The torch dtype of `training.precision`."""
    return _COMPUTE_DTYPES[precision]
