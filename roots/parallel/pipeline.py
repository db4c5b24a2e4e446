"""A model cut into pipeline stages: DeepSpeed's PipelineModule over ROOTS' list of layers.

The list is the one a single-stage decoder is made of, so a stage runs the same modules. `Pipeline`
has one stage a rank and runs 1F1B; `FoldedPipeline` has two, on a V, and runs DualPipeV. Between
stages travels the stream of roots/models/block.py; labels and loss weights reach the last stage
from its own data loader.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

from roots.log import get_logger
from roots.parallel.topology import Topology

try:
    from deepspeed.runtime.pipe.dualpipev import DualPipeVModule
except ModuleNotFoundError:

    class DualPipeVModule:  # type: ignore[no-redef]
        """An older DeepSpeed has none; roots.training.engine.accelerator refuses it in one line."""


_logger = get_logger(__name__)

Stream = tuple[Tensor, ...]
_BLOCKS = ("block", "source_block")


class Layer(Protocol):
    """One layer, not yet built; see roots.models.build.LayerFactory."""

    @property
    def kind(self) -> str:
        """What it is: "block", "source_block" (of an encoder that a decoder reads) or another."""

    @property
    def name(self) -> str:
        """Where it stands, for people."""

    @property
    def build(self) -> Callable[[], nn.Module]:
        """Makes the module."""

    @property
    def tied_key(self) -> str | None:
        """Equal for layers that share a weight."""


class Pipeline(PipelineModule):  # type: ignore[misc]  # deepspeed has no type hints
    """This rank's stage. The last layer of the list is the head: it makes the loss of the stream.

    Communication: between neighbouring stages per micro-batch, forward the stream, backward the
    gradient of x; per step an all-reduce of the tied weight's gradient between its two stages.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        topology: Topology,
        *,
        blocks: Sequence[int],
        tied_weight: str,
    ) -> None:
        """Build this rank's share of `layers`.

        blocks:      the number of blocks of every stage (roots/planner/stages.py)
        tied_weight: path of the tied weight inside both of its modules
        """
        self.layers = layers
        self.tied_owner = tied_weight.rpartition(".")[0]
        specs = [_spec(layer, tied_weight, last=layer is layers[-1]) for layer in layers]
        spoken = io.StringIO()
        with contextlib.redirect_stdout(spoken):
            super().__init__(
                layers=specs,
                topology=PipeModelDataParallelTopology(
                    num_pp=topology.pipeline,
                    num_mp=topology.tensor,
                    num_dp=topology.axis_size("replica"),
                ),
                loss_fn=self._loss,
                partition_method=tuple(blocks),
                activation_checkpoint_interval=0,
            )
        self._count_once(tied_weight)
        first, last = layers[self.parts[0]], layers[self.parts[-1] - 1]
        cuts = ", ".join(layers[start].name for start in self.parts[1:-1])
        _logger.info("pipeline: %s to %s, cut before %s", first.name, last.name, cuts)

    def _partition_layers(self, method: tuple[int, ...] = ()) -> None:
        """Cut between blocks, so that every stage holds at least one.

        DeepSpeed's own partition may leave a stage with the embedding alone. Its ZeRO then has one
        parameter group less there, calls fewer collectives than the others, and all of them hang.
        """
        starts = _starts(self.layers)
        cuts = [0, *accumulate(method)]
        assert (len(cuts), cuts[-1]) == (self.num_stages + 1, len(starts)), f"{method} is illegal"
        self.parts = [*(starts[cut] for cut in cuts[:-1]), len(self.layers)]
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    def _count_once(self, tied_weight: str) -> None:
        """Let only the tied weight itself be a second copy, which the gradient norm leaves out.

        DeepSpeed marks all parameters of a tied module so, the bias of a tied head among them.
        """
        for module in self.tied_modules.values():
            for name, parameter in module.named_parameters():
                if name != tied_weight:
                    parameter.ds_pipe_replicated = False

    def get_tied_weights_and_groups(self) -> list[tuple[Any, Any]]:
        """What DeepSpeed reads `grad` (bf16: `_hp_grad`) of, to sum it over a group.

        Its ZeRO moves fp16 gradients into fp32 sums, and the sum over the stages passes them by.
        """
        pairs = super().get_tied_weights_and_groups()
        return [(_TiedGradient(weight), group) for weight, group in pairs]

    def _loss(self, stream: Stream, labels: Stream) -> Tensor:
        """Loss of one micro-batch on the last stage; labels are (labels_BT, loss_weights_BT)."""
        last = self.layers[-1]
        if last.tied_key is not None:
            # The module of either end: of the head, or in a V of the embedding, beside which it is.
            head = self.tied_modules[last.tied_key].get_submodule(self.tied_owner)
        else:
            head = self.forward_funcs[-1].head
        loss: Tensor = head(stream[0], *labels)
        return loss


class FoldedPipeline(DualPipeVModule, Pipeline):  # type: ignore[misc]  # deepspeed has no type hints
    """This rank's two stages of a pipeline folded into a V: r, and 2 x ranks - 1 - r.

    The first rank holds both ends, so a tied weight is one parameter with one gradient. `blocks`
    is about all 2 x ranks stages, in the order of the layers.

    Communication: as in Pipeline, but in both directions at once, and nothing for a tied weight.
    """


def _starts(layers: Sequence[Layer]) -> list[int]:
    """Where each block begins, with what stays on its stage: the embedding goes with the first, and
    what is no block with the one before it."""
    places = [index for index, layer in enumerate(layers) if layer.kind in _BLOCKS]
    return [0, *places[1:]]


class _TiedGradient:
    """The gradient of a tied weight, wherever DeepSpeed has summed it over the micro-batches."""

    def __init__(self, weight: nn.Parameter) -> None:
        self._hp_grad: Tensor | None = getattr(weight, "_hp_grad", None)
        summed: Tensor | None = getattr(weight, "grad_accum", None)
        self.grad = weight.grad if summed is None else summed


class HeadSlot(nn.Module):
    """Holds an untied head in the list of layers and lets the stream pass to the loss."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, stream: Stream) -> Stream:
        """Return the stream as it is: the head needs the labels, which the loss brings."""
        return stream


class _Spec(LayerSpec):  # type: ignore[misc]  # deepspeed has no type hints
    """A layer that DeepSpeed builds on the stage that owns it."""

    def __init__(self, layer: Layer, last: bool) -> None:
        super().__init__(nn.Module)
        self.layer = layer
        self.last = last

    def build(self, log: bool = False) -> nn.Module:
        module = self.layer.build()
        return HeadSlot(module) if self.last else module


class _TiedSpec(TiedLayerSpec):  # type: ignore[misc]  # deepspeed has no type hints
    """One end of a tied pair; each end builds its own module around its copy of the weight."""

    def __init__(self, layer: Layer, tied_weight: str, last: bool) -> None:
        super().__init__(
            layer.tied_key,
            nn.Module,
            forward_fn=_pass_through if last else None,
            tied_weight_attr=[tied_weight],
        )
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


def _spec(layer: Layer, tied_weight: str, last: bool) -> Any:
    if layer.tied_key is not None:
        return _TiedSpec(layer, tied_weight, last)
    return _Spec(layer, last)


def _pass_through(module: nn.Module, stream: Stream) -> Stream:
    """The tied head in its place of the list: the loss applies it."""
    return stream
