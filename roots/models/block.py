"""One Transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

With model.norm_position=post norms come last, as in the original Transformer (arXiv:1706.03762):
norm(x + attention(x)), then norm(x + mlp(x)). With model.parallel_residual both branches read the
block's input (GPT-NeoX, arXiv:2204.06745, section 2.1): x + attention(norm(x)) + mlp(its_norm(x)).

Legend: B micro-batch, T tokens, H hidden, E relative buckets; n is this tensor rank's share of the
heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.attention.cache import LayerCache
from roots.models.attention.geometry import Geometry, GeometryMemo, LengthMemo
from roots.models.attention.rows import RowsLayer
from roots.models.attention.self_attention import SelfAttention
from roots.models.mlp import MLP
from roots.models.moe.layer import MoE
from roots.models.norm import Norm
from roots.models.options import BuildOptions
from roots.ops import bias_dropout_add
from roots.parallel.mesh import Mesh
from roots.parallel.recompute import recompute

# What layers hand on and pipeline stages send. DeepSpeed keeps one buffer per place for what comes
# forward and for the gradients that come back, so floating tensors stand first, integers behind.
#   decoder          x_BTH, [relative_En,] document_starts_BT, dropout_keys_B
#   encoder          x_BTH, [relative_En,] lengths_B, dropout_keys_B
#   encoder_decoder  x_BTH, memory_BSH, [relative_En, source_relative_En,] document_starts_BT,
#                    source_lengths_B, dropout_keys_B
Stream = tuple[Tensor, ...]
# y_BTH and the bias [H] that is still to be added to it, if there is one.
BranchOutput = tuple[Tensor, Tensor | None]
# What a block keeps of tokens that were read before.
BlockCache = LayerCache | RowsLayer
# Dropout keys of the rows, and where this rank's tokens stand (None: everywhere).
Masks = tuple[Tensor, Tensor | None]


class Branch(NamedTuple):
    """One branch of the residual stream: y = run(norm(x))."""

    name: str
    norm: nn.Module
    run: Callable[[Tensor], BranchOutput]


class Block(nn.Module):
    """A block called `name` in global parameter names, layers.{index} unless given.

    With options.recompute "full" its activations are computed again in the backward pass, on every
    layout, because a pipeline stage calls the same forward; with "selective" its attention's are.

    Communication: forward two all-reduces over the tensor axis, backward two. With sequence
    parallelism x is this rank's part of the tokens, and each becomes an all-gather and a
    reduce-scatter; attention communicates over the context axis besides, experts as MoE says.
    Parallel branches of which nothing is dropped are added first and summed over the axis once.
    """

    def __init__(
        self,
        model: ModelConfig,
        index: int,
        *,
        mesh: Mesh,
        options: BuildOptions,
        geometry: GeometryMemo | LengthMemo,
        name: str | None = None,
    ) -> None:
        super().__init__()
        name, axis = f"layers.{index}" if name is None else name, mesh.tensor
        self.name = name
        self.index = index
        options = options.of_block(index)
        self.attention_norm = Norm(model, name=f"{name}.attention_norm", axis=axis, options=options)
        # What is dropped is a matter of each branch's sum, and experts sum theirs themselves.
        self.sums_once = (
            model.parallel_residual and model.dropout == 0.0 and not model.has_experts(index)
        )
        self.attention = SelfAttention(
            model, name=f"{name}.attention", axis=axis, options=options, partial=self.sums_once
        )
        self.mlp_norm = Norm(model, name=f"{name}.mlp_norm", axis=axis, options=options)
        self.mlp: MLP | MoE
        if model.has_experts(index):
            self.mlp = MoE(model, name=f"{name}.mlp", mesh=mesh, options=options)
        else:
            self.mlp = MLP(
                model, name=f"{name}.mlp", axis=axis, options=options, partial=self.sums_once
            )
        self.geometry = geometry
        self.parallel_residual = model.parallel_residual
        self.post_norm = model.norm_position == "post"
        self.dropout_rate = model.dropout
        self.recompute = options.recompute == "full"
        self.ops = options.ops

    def forward(self, stream: Stream, cache: BlockCache | None = None) -> Stream:
        """The stream with the next x_BTH.

        With a cache the document starts mark left padding, or nothing (see GeometryMemo).
        """
        return (self.run(*stream, cache=cache), *stream[1:])

    def run(self, *inputs: Tensor, cache: BlockCache | None = None) -> Tensor:
        """The next x_BTH from x_BTH and what the block needs besides."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return recompute(self._transform, *inputs)
        return self._transform(*inputs, cache=cache)

    def _transform(self, x_BTH: Tensor, *others: Tensor, cache: BlockCache | None = None) -> Tensor:
        *tables, marks, dropout_keys_B = others
        geometry = self._geometry(x_BTH, marks, cache)
        attention = self._attention(geometry, dropout_keys_B, cache, tables)
        masks = (dropout_keys_B, geometry.stream_positions_Z)
        mlp = Branch("mlp", self.mlp_norm, self.mlp)
        return self._through(x_BTH, (attention, mlp), masks)

    def _attention(
        self,
        geometry: Geometry,
        dropout_keys_B: Tensor,
        cache: BlockCache | None,
        tables: Sequence[Tensor],
    ) -> Branch:
        """Self-attention; `tables` holds the relative table of the stack, if there is one."""
        attend = partial(
            self.attention,
            dropout_keys_B=dropout_keys_B,
            geometry=geometry,
            cache=cache,
            relative_En=tables[0] if tables else None,
        )
        return Branch("attention", self.attention_norm, attend)

    def _geometry(self, x_BTH: Tensor, marks: Tensor, cache: BlockCache | None) -> Geometry:
        return self.geometry(marks, None if cache is None else cache.past)

    def _through(self, x_BTH: Tensor, branches: Sequence[Branch], masks: Masks) -> Tensor:
        """The stream after all branches."""
        if self.post_norm:
            for name, norm, run in branches:
                x_BTH, _ = self._joined(x_BTH, run(x_BTH), masks, name, norm)
            return x_BTH
        if self.parallel_residual:
            outputs = [(branch.name, branch.run(branch.norm(x_BTH))) for branch in branches]
            if self.sums_once:
                outputs = [(self.name, self._sum([output for _, output in outputs]))]
            for name, output in outputs:
                x_BTH = self._add(x_BTH, output, masks, name)
            return x_BTH
        normal_BTH = branches[0].norm(x_BTH)
        for branch, following in pairwise(branches):
            output = branch.run(normal_BTH)
            normal_BTH, x_BTH = self._joined(x_BTH, output, masks, branch.name, following.norm)
        return self._add(x_BTH, branches[-1].run(normal_BTH), masks, branches[-1].name)

    def _sum(self, outputs: Sequence[BranchOutput]) -> BranchOutput:
        """All branches as one: the sum over the ranks of their parts, and the sum of the biases."""
        parts, biases = zip(*outputs, strict=True)
        y_BTH: Tensor = self.attention.output.summed(sum(parts[1:], parts[0]))
        given = [bias for bias in biases if bias is not None]
        return y_BTH, sum(given[1:], given[0]) if given else None

    def _joined(
        self,
        x_BTH: Tensor,
        output: BranchOutput,
        masks: Masks,
        name: str,
        norm: nn.Module,
    ) -> tuple[Tensor, Tensor]:
        """(norm of the sum, the sum) of stream and branch, in one pass where nothing is dropped and
        no bias is added."""
        if output[1] is None and not self._drops:
            normal_BTH, x_BTH = norm(output[0], residual_BTH=x_BTH)
        else:
            x_BTH = self._add(x_BTH, output, masks, name)
            normal_BTH = norm(x_BTH)
        return normal_BTH, x_BTH

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout_rate > 0.0

    def _add(self, x_BTH: Tensor, branch: BranchOutput, masks: Masks, name: str) -> Tensor:
        """x + dropout(y + bias) with branch = (y_BTH, bias_H or None)."""
        dropout_keys_B, positions_T = masks
        y_BTH, bias_H = branch
        return bias_dropout_add(
            y_BTH,
            bias_H,
            x_BTH,
            self.dropout_rate if self._drops else 0.0,
            dropout_keys_B,
            f"{self.name}.{name}",
            positions_T=positions_T,
            implementation=self.ops.dropout,
        )
