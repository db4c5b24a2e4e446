"""A model cut into pipeline stages: DeepSpeed's PipelineModule over ROOTS' list of layers.

The list is the one a single-stage decoder is made of, so a stage runs the same modules. `Pipeline`
has one stage a rank and runs 1F1B; `FoldedPipeline` has two, on a V, and runs DualPipeV. Between
stages travels the stream (x_BTH, document_starts_BT, dropout_keys_B); labels and loss weights reach
the last stage from its own data loader.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

from deepspeed.runtime.pipe.dualpipev import DualPipeVModule
from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

from roots.log import get_logger
from roots.parallel.partition import stage_boundaries
from roots.parallel.topology import Topology

_logger = get_logger(__name__)

Stream = tuple[Tensor, ...]


class Layer(Protocol):
    """One layer, not yet built; see roots.models.build.LayerFactory."""

    @property
    def name(self) -> str:
        """Where it stands, for people."""

    @property
    def build(self) -> Callable[[], nn.Module]:
        """Makes the module."""

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole layer: its weight when stages are balanced."""

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
        partition: str | tuple[int, ...],
        tied_weight: str,
    ) -> None:
        """Build this rank's share of `layers`.

        partition:   "parameters" balances stages by parameters, "uniform" by number of blocks; or
                     the number of blocks of every stage
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
                partition_method=partition,
                activation_checkpoint_interval=0,
            )
        first, last = layers[self.parts[0]], layers[self.parts[-1] - 1]
        cuts = ", ".join(layers[start].name for start in self.parts[1:-1])
        _logger.info("pipeline: %s to %s, cut before %s", first.name, last.name, cuts)

    def _partition_layers(self, method: str | tuple[int, ...] = "parameters") -> None:
        """Cut between blocks, so that every stage holds at least one.

        DeepSpeed's own partition may leave a stage with the embedding alone. Its ZeRO then has one
        parameter group less there, calls fewer collectives than the others, and all of them hang.
        """
        first, *blocks, norm, head = self.layers
        if isinstance(method, str):
            weights = [1] * len(blocks)
            if method == "parameters":
                weights = [layer.parameter_count for layer in blocks]
                weights[0] += first.parameter_count
                weights[-1] += norm.parameter_count + head.parameter_count
            cuts = stage_boundaries(weights, self.num_stages)
        else:
            cuts = [0, *accumulate(method)]
        assert (len(cuts), cuts[-1]) == (self.num_stages + 1, len(blocks)), f"{method} is illegal"
        # The embedding goes with the first block, norm and head with the last.
        self.parts = [0, *(1 + cut for cut in cuts[1:-1]), len(self.layers)]
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

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

    The first rank holds both ends, so a tied weight is one parameter with one gradient. `partition`
    is about all 2 x ranks stages, in the order of the layers.

    Communication: as in Pipeline, but in both directions at once, and nothing for a tied weight.
    """


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
