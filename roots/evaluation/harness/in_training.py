"""Tasks of lm_eval during training, asked of the weights that the ranks hold.

They are asked of a model for inference, which is built anew each time on the tensor, pipeline and
expert ranks of the training, of their weights (ZeRO-3's are gathered for the time). Context ranks,
which hold the same weights, are copies there and take shares of the questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from roots.config.run import RunConfig
from roots.config.training import BY_LOSS
from roots.errors import RootsError, problem
from roots.evaluation.harness.evaluate import (
    Asked,
    Measure,
    TaskRequest,
    TaskResults,
    evaluate_tasks,
    load_tasks,
)
from roots.evaluation.harness.text_model import text_model_of
from roots.evaluation.likelihood import finite
from roots.generation.load import LoadedModel, LoadedNetwork
from roots.generation.network import Network, StageLayers
from roots.models.build import build_model, model_layers
from roots.models.options import BuildOptions, compute_dtype
from roots.parallel.mesh import Mesh
from roots.parallel.shard import Shard, shard_of
from roots.parallel.shared_errors import together
from roots.tokenizer.tokenizer import Tokenizer


class TaskEvaluation:
    """The tasks of a run, loaded once, and how well its model does them."""

    def __init__(self, config: RunConfig, mesh: Mesh, words: Tokenizer) -> None:
        """Every rank calls. Raises RootsError for tasks that are unknown or without data."""
        section = config.evaluation
        self._request = TaskRequest(
            names=section.tasks,
            folders=[] if section.task_folder is None else [Path(section.task_folder)],
            limit=section.tasks_limit or None,
            few_shot=section.few_shot,
        )
        self._config = config
        self._mesh = mesh
        self._words = words
        self._falls: set[str] = set()
        self._every = section.tasks_every_steps or section.every_steps
        self._tasks = together(mesh.world, lambda: load_tasks(self._request))

    def due(self, step: int, last: bool) -> bool:
        """Whether tasks are asked after `step` updates, where the held-out loss is measured."""
        return last or step % self._every == 0

    def scores(self, weights: Iterable[tuple[Shard, Tensor]]) -> dict[str, float]:
        """The scores by TASK/MEASURE, on every rank alike; every rank calls.

        weights: of this rank, with their records, in the precision of the training
        Communication: what reading and writing takes on this layout.
        """
        model = sharing_weights(self._config, self._mesh, weights)
        texts = text_model_of(model, self._words, _without_context(self._mesh))
        asked = Asked(texts, self._words, self._config.run.name)
        found = together(
            self._mesh.world, lambda: evaluate_tasks(asked, self._tasks, self._request)
        )
        self._falls = {name for name, each in _by_name(found) if each.higher_is_better is False}
        return {name: each.value for name, each in _by_name(found)}

    def cost(self, scores: Mapping[str, float]) -> tuple[str, float | None]:
        """What checkpoints are judged by, and what `scores` make of this one: lower is better.

        Raises RootsError if that is none of them.
        """
        by = self._config.checkpoint.keep_best_by
        if by == BY_LOSS:
            return by, None
        if by not in scores:
            rule = f"is none of what is measured ({', '.join(scores)})"
            line = problem("checkpoint.keep_best_by", by, rule, "name one of these")
            raise RootsError(line, speaks=self._mesh.rank == 0)
        return by, finite(scores[by] if by in self._falls else -scores[by])


def _by_name(found: TaskResults) -> Iterator[tuple[str, Measure]]:
    """Every measure as TASK/MEASURE."""
    for each in found.scores:
        for measure in each.measures:
            yield f"{each.task}/{measure.label}", measure


def sharing_weights(
    config: RunConfig, mesh: Mesh, weights: Iterable[tuple[Shard, Tensor]]
) -> LoadedModel | LoadedNetwork:
    """A model for inference on this rank's part of a training's layout, made of its `weights`."""
    held = {shard.name: tensor for shard, tensor in weights}
    mesh = _without_context(mesh)
    options = BuildOptions.for_use(config, compute_dtype(config.training.precision))
    where = config.run_directory
    if mesh.pipeline.size == 1:
        network = build_model(config.model, mesh, options=options)
        _take_over(network, held)
        return LoadedModel(where, config, network.eval())
    stage = StageLayers.of_kinds(
        (factory.kind, factory.build())
        for factory in model_layers(config.model, mesh, options)
        if any(name.startswith(f"{factory.name}.") for name in held)
    )
    _take_over(stage.modules, held)
    stage.modules.eval()
    return LoadedNetwork(where, config, Network(config.model, stage, mesh))


def _take_over(module: nn.Module, held: dict[str, Tensor]) -> None:
    """Let the parameters of `module`, which have no memory yet, be those that are held."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                values = held[shard_of(parameter, name).name]
                owner._parameters[name] = nn.Parameter(values, requires_grad=False)


def _without_context(mesh: Mesh) -> Mesh:
    """The mesh with every context rank a copy of its own."""
    return replace(mesh, context=Mesh.single().context)
