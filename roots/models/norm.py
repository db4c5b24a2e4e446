"""LayerNorm (Ba, Kiros, Hinton 2016) and RMSNorm (Zhang, Sennrich 2019) as modules.

Legend: B micro-batch, T tokens, H hidden, D head size; n is this tensor rank's number of heads.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.options import BuildOptions
from roots.ops import layer_norm, rms_norm
from roots.parallel.collectives import copy_to
from roots.parallel.mesh import Axis
from roots.parallel.shard import attach, replicated


class Norm(nn.Module):
    """y_BTH = norm(x_BTH) by `model.norm`, whole on every tensor rank.

    Communication: none. Every tensor rank sees the same x and the same gradient of y, so the
    gradients of weight and bias agree without a reduction. With sequence parallelism each sees a
    part of the tokens: backward all-reduce of the gradients of weight and bias.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        name: str,
        axis: Axis,
        options: BuildOptions,
        size: int | None = None,
    ) -> None:
        """Normalise the last dim, of `size` (None: model.hidden_size)."""
        super().__init__()
        size = model.hidden_size if size is None else size
        self.kind = model.norm
        self.epsilon = model.norm_epsilon
        self.zero_centred = model.norm_zero_centred
        self.ops = options.ops
        # Whose ranks see other numbers under the same weight.
        self.apart = axis if options.sequence_parallel else None
        self.weight = _vector(f"{name}.weight", size, axis, options)
        self.bias: nn.Parameter | None = None
        if model.norm == "layer_norm" and model.bias:
            self.bias = _vector(f"{name}.bias", size, axis, options)

    def forward(
        self, x_BTH: Tensor, residual_BTH: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x_BTH -> y_BTH, or with a residual (y_BTH, x_BTH + residual_BTH) with y of the sum."""
        weight, bias, residual = self._shared(self.weight), self._shared(self.bias), residual_BTH
        if self.kind == "rms_norm":
            run = partial(rms_norm, x_BTH, weight, self.epsilon)
            implementation = self.ops.rms_norm
        else:
            run = partial(layer_norm, x_BTH, weight, bias, self.epsilon)
            implementation = self.ops.layer_norm
        return run(residual=residual, zero_centred=self.zero_centred, implementation=implementation)

    def _shared(self, parameter: Tensor | None) -> Tensor | None:
        """The parameter, whose gradients are summed over the ranks that see other numbers."""
        if parameter is None or self.apart is None:
            return parameter
        return copy_to(parameter, self.apart)

    def extra_repr(self) -> str:
        """Kind and size, for printing the module."""
        return f"{self.kind}, size={self.weight.shape[0]}, bias={self.bias is not None}"


class HeadNorm(Norm):
    """The norm of every query or key head (Dehghani et al. 2023, arXiv:2302.05442; Qwen3).

    Communication: forward none. A tensor rank sees its own heads alone, so backward sums the
    gradients of weight and bias over the axis.
    """

    def __init__(self, model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions) -> None:
        super().__init__(model, name=name, axis=axis, options=options, size=model.head_size)
        self.apart = axis

    def forward(self, x_BTnD: Tensor) -> Tensor:  # type: ignore[override]
        """x_BTnD -> the same with every head normalised."""
        y_BTnD = super().forward(x_BTnD)
        assert isinstance(y_BTnD, Tensor)
        return y_BTnD


def head_norms(
    model: ModelConfig, *, name: str, axis: Axis, options: BuildOptions
) -> tuple[HeadNorm | None, HeadNorm | None]:
    """The norms of the queries and the keys of the attention `name`; None for both without
    model.qk_norm."""
    if not model.qk_norm:
        return None, None
    part = partial(HeadNorm, model, axis=axis, options=options)
    return part(name=f"{name}.query_norm"), part(name=f"{name}.key_norm")


class FinalNorm(Norm):
    """The norm before the head, as a layer of the stream."""

    def forward(self, stream: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The stream with x_BTH, which comes first whatever the architecture, normalised."""
        x_BTH, *others = stream
        return (super().forward(x_BTH), *others)


def _vector(name: str, size: int, axis: Axis, options: BuildOptions) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(size, device=options.device, dtype=options.dtype))
    attach(parameter, replicated(name, (size,)), axis)
    return parameter
