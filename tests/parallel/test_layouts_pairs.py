"""Encoder-decoders and encoders on every layout give the numbers of one process: real ranks, the
real engine, 6 steps of synthetic batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.config import RunConfig, parse_config
from roots.config.batch import BatchPlan, plan_batch
from roots.data.batch import Batch
from roots.data.sampler import dropout_keys, places_in_step
from roots.device import launch_environment
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object
from roots.training.assemble import build_engine, start_process, topology_of
from roots.training.engine.step import Engine
from tests.helpers.distributed import run_distributed
from tests.helpers.pairs import BERT, T5, TRANSFORMER

STEPS = 6
TOLERANCE = 1e-5
CLIPPING = 0.15
LENGTH, SOURCE, VOCAB = 12, 13, 61

MODELS: dict[str, dict[str, Any]] = {
    "t5": {**T5, "num_layers": 3},
    "transformer": {**TRANSFORMER, "num_encoder_layers": 2, "num_layers": 2},
    "bert": {**BERT, "num_layers": 2},
}
# model, name, world size, fields of `parallel`
LAYOUTS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("t5", "tp2-pp2-recompute", 4, {"tensor": 2, "pipeline": 2, "recompute": "full"}),
    ("t5", "dp2-zero2", 2, {"zero_stage": 2}),
    ("transformer", "pp2-dp2-zero0", 4, {"pipeline": 2, "zero_stage": 0}),
    ("transformer", "tp2-dp2-zero3", 4, {"tensor": 2, "zero_stage": 3}),
    ("bert", "tp2-pp2-zero1", 4, {"tensor": 2, "pipeline": 2}),
]
IDS = [f"{model}-{name}" for model, name, _, _ in LAYOUTS]


@dataclass(frozen=True)
class Curve:
    """What a rank reports: per step, and the final parameters by global name, whole."""

    losses: list[float]
    norms: list[float | None]
    evaluation: float
    weights: dict[str, Tensor]


def config_of(model: str, parallel: dict[str, Any]) -> RunConfig:
    """Clipping bites and dropout is on; epsilon as in test_layouts.py."""
    fields = {
        "hidden_size": 32,
        "num_heads": 4,
        "vocab_size": VOCAB,
        "vocab_multiple": 8,
        "sequence_length": LENGTH,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    }
    return parse_config(
        {
            "model": {**fields, **MODELS[model]},
            "parallel": {"zero_persistence_threshold": 0, **parallel},
            "training": {
                "steps": STEPS,
                "precision": "fp32",
                "micro_batch_size": 2,
                "global_batch_size": 8,
                "gradient_clipping": CLIPPING,
                "label_smoothing": 0.1,
                "z_loss": 1e-3,
            },
            "optimizer": {"epsilon": 1e-5, "implementation": "torch"},
        }
    )


def batches_of(config: RunConfig, plan: BatchPlan, data_rank: int, step: int) -> list[Batch]:
    """Count up from a random token; the target is the source, the row of an encoder its own."""
    generator = torch.Generator().manual_seed(step)
    rows = plan.global_batch_size
    first = torch.randint(VOCAB, (rows, 1), generator=generator)
    text = (first + torch.arange(SOURCE + 1)) % VOCAB
    lengths = torch.randint(4, LENGTH + 1, (rows,), generator=generator)
    weights = (torch.arange(LENGTH) < lengths[:, None]) / lengths[:, None]
    shift = 0 if config.model.architecture == "encoder" else 1
    made = []
    for places in places_in_step(plan, data_rank):
        part = list(places)
        keys = torch.tensor(dropout_keys(config.training.seed, step, places))
        made.append(
            Batch(
                tokens_BT=text[part, :LENGTH],
                labels_BT=text[part, shift : LENGTH + shift],
                loss_weights_BT=weights[part],
                document_starts_BT=torch.zeros(len(part), LENGTH, dtype=torch.int64),
                dropout_keys_B=keys,
                source_BS=text[part, :SOURCE] if shift else text[part, :0],
                source_lengths_B=lengths[part],
            )
        )
    return made


def train_pairs(rank: int, world_size: int, config: RunConfig) -> Curve:
    """Train `config` as rank `rank`; every rank returns the same whole weights."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    plan = plan_batch(config, world_size)
    mesh = Mesh.create(topology_of(config, plan))
    engine = build_engine(config, plan, mesh, device)
    losses, norms = [], []
    for step in range(STEPS):
        result = engine.train_step(batches_of(config, plan, mesh.data.rank, step), 5e-3)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    evaluation = engine.evaluate(batches_of(config, plan, mesh.data.rank, STEPS))
    return Curve(losses, norms, evaluation, whole_weights(engine))


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """All parameters by global name, put together from the shards of all ranks."""
    parts = all_gather_object(engine.mesh.model, [(s, t.clone()) for s, t in engine.weights()])
    full: dict[str, Tensor] = {}
    for shard, tensor in (entry for part in parts for entry in part):
        name, dim = shard.tied_to or shard.name, shard.dim or 0
        whole = full.setdefault(name, torch.full(shard.shape, torch.nan))
        intervals = shard.intervals or ((0, shard.shape[dim]),)
        pieces = tensor.split([stop - start for start, stop in intervals], dim)
        for (start, stop), piece in zip(intervals, pieces, strict=True):
            whole.narrow(dim, start, stop - start).copy_(piece)
    return full


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest relative difference ||a - b|| / ||b|| of any parameter tensor."""
    assert first.keys() == second.keys()
    assert all(bool(tensor.isfinite().all()) for tensor in first.values())
    return max(float((first[n] - t).norm() / t.norm()) for n, t in second.items() if t.norm() > 0)


@pytest.fixture(scope="module")
def single() -> dict[str, Curve]:
    """The curves of one process, by model."""
    return {
        model: run_distributed(train_pairs, 1, config_of(model, {"zero_stage": 1}))[0]
        for model in MODELS
    }


@pytest.mark.parametrize("model", MODELS)
def test_one_process_learns(model: str, single: dict[str, Curve]) -> None:
    """The curves that everything is compared with must move, and clip."""
    curve = single[model]
    assert curve.losses[-1] < curve.losses[0]
    # Smoothing and z-loss are left out of an evaluation.
    assert curve.evaluation < curve.losses[-1] + 0.2
    assert min(norm for norm in curve.norms if norm is not None) > CLIPPING


@pytest.mark.parametrize(("model", "name", "world_size", "parallel"), LAYOUTS, ids=IDS)
def test_layout_matches_one_process(
    model: str, name: str, world_size: int, parallel: dict[str, Any], single: dict[str, Curve]
) -> None:
    reference = single[model]
    for curve in run_distributed(train_pairs, world_size, config_of(model, parallel)):
        assert curve.losses == pytest.approx(reference.losses, rel=TOLERANCE)
        assert curve.norms == pytest.approx(reference.norms, rel=TOLERANCE)
        assert curve.evaluation == pytest.approx(reference.evaluation, rel=TOLERANCE)
        assert largest_difference(curve.weights, reference.weights) < TOLERANCE
