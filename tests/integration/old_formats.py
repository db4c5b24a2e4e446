"""The tiny runs whose checkpoints lie in tests/golden for every version of the format.

    python -m tests.integration.old_formats FOLDER [experts]

writes that of the ROOTS at hand to FOLDER/step_00000003: fp16, ZeRO 1, one rank, gradients that are
known, and an overflow in the second step which the loss scale tolerates. With `experts` it is of a
mixture of experts that two ranks share, fp32, trained as any run is; beside it, in losses.json,
stand the losses of all steps of that run where nothing interrupts it. Every version of the format
has been written by the ROOTS of its time.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from roots.config import RunConfig, parse_config
from roots.config.batch import plan_batch
from roots.data.indexed import IndexedWriter
from roots.device import launch_environment
from roots.parallel import process
from roots.parallel.shard import shard_of
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.callback import Callback, CallbackList
from roots.training.callbacks.metrics import StepRecord
from roots.training.callbacks.peak import Peak
from roots.training.engine.step import Engine
from roots.training.loop import Run, train_loop
from tests.helpers.distributed import run_distributed

DONE, STEPS = 3, 7
# Steps, counted from 1, whose gradient is infinite: the first halves nothing, the second does.
OVERFLOWS = (2, 4)
# In tests/golden other settings were in force than in the run that goes on.
SETTINGS = {"beta1": 0.7, "beta2": 0.95, "epsilon": 2e-3, "weight_decay": 0.1}
RATE, CLIPPING = 1e-2, 0.25


def config_of(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """A run in `folder`, whose data are `folder/text`; `sections` override fields."""
    tree: dict[str, dict[str, Any]] = {
        "run": {"name": "old", "directory": str(folder)},
        "model": {
            "hidden_size": 8,
            "num_layers": 1,
            "num_heads": 2,
            "vocab_size": 257,
            "vocab_multiple": 8,
            "sequence_length": 8,
        },
        "training": {
            "steps": DONE,
            "precision": "fp16",
            "micro_batch_size": 2,
            "global_batch_size": 2,
            "gradient_clipping": CLIPPING,
        },
        "optimizer": {"implementation": "torch", "learning_rate": RATE, **SETTINGS},
        "schedule": {"name": "constant", "warmup_steps": 0},
        "loss_scale": {"initial_power": 8, "window": 2, "hysteresis": 2},
        "data": {"train": [str(folder / "text")], "tokenizer": "bytes"},
        "evaluation": {"every_steps": 0},
        "checkpoint": {"every_steps": 0},
        "tracking": {"tensorboard": False},
        "parallel": {},
    }
    for name, fields in sections.items():
        tree[name].update(fields)
    return parse_config(tree)


def experts_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """The run whose experts two ranks share; `sections` override fields."""
    moe = {"num_experts": 4, "ffn_hidden_size": 8}
    mine: dict[str, dict[str, Any]] = {
        "run": {"name": "experts"},
        "model": {"activation": "swiglu", "tied_embeddings": False, "moe": moe},
        "training": {"precision": "fp32", "global_batch_size": 4},
        "parallel": {"expert": 2},
    }
    for name, fields in sections.items():
        mine.setdefault(name, {}).update(fields)
    return config_of(folder, **mine)


def write_text(folder: Path) -> Path:
    """Some bytes to train on, as `folder/text`."""
    with IndexedWriter(folder / "text", 257) as writer:
        for start in range(20):
            writer.add(np.array([*b"the quick brown fox"[start % 5 :], 256]))
        writer.finish(tokenizer="bytes", end_of_document=256)
    return folder


def gradient_of(name: str, shape: tuple[int, ...], step: int) -> Tensor:
    """The known gradient of a tensor in a step counted from 1, exact in fp16 when scaled."""
    seed = sum(map(ord, name)) * 100 + step
    units = torch.randint(-64, 65, shape, generator=torch.Generator().manual_seed(seed))
    return units.float() / 64


class Records(Callback):
    """Keeps what the loop tells."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step_end(self, record: StepRecord) -> None:
        self.steps.append(record)


Trained = tuple[list[StepRecord], dict[str, Tensor]]


def train(
    rank: int,
    world_size: int,
    configs: list[RunConfig],
    then: Callable[[Engine], dict[str, Tensor]],
    known: bool = True,
) -> list[Trained]:
    """Train every config, on the known gradients or its own; what was told, what `then` finds."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    process.initialise(environment, device)
    trained = []
    with mock.patch("roots.training.assemble.device_peak", return_value=Peak(1e9, "none")):
        for config in configs:
            with ExitStack() as stack:
                run = assemble(config, plan_batch(config, world_size), device, stack)
                records = Records()
                if known:
                    plant(run)
                train_loop(replace(run, callbacks=CallbackList([records])))
                trained.append((records.steps, then(run.engine)))
    return trained


def plant(run: Run) -> None:
    """Replace what the backward passes find."""
    for name, parameter in run.engine.module.named_parameters():
        shard = shard_of(parameter, name)
        steps = count(run.start.step + 1)
        parameter.register_hook(_known(shard.name, shard.shape, run.engine, steps))


def _known(name: str, shape: tuple[int, ...], engine: Engine, steps: Any) -> Any:
    def replaced(gradient: Tensor) -> Tensor:
        step = next(steps)
        known = gradient_of(name, shape, step) * engine.loss_scale
        if step in OVERFLOWS:
            known[(0,) * known.ndim] = torch.inf
        return known.to(gradient.dtype)

    return replaced


def nothing(engine: Engine) -> dict[str, Tensor]:
    """Nothing is looked at."""
    return {}


def main(target: Path, *, experts: bool) -> None:
    """Write the checkpoint of the ROOTS at hand, with paths that are nobody's."""
    target = target.absolute()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path("runs")
        folder.mkdir()
        write_text(folder)
        run = _write_experts(folder, target) if experts else _write_known(folder)
        (made,) = folder.glob(f"{run}/checkpoints/step_{DONE:08d}")
        shutil.copytree(made, target / made.name)


def _write_known(folder: Path) -> str:
    ((records, _),) = run_distributed(train, 1, [config_of(folder)], nothing)[0]
    assert [each.skipped for each in records] == [False, True, False]
    return "old"


def _write_experts(folder: Path, target: Path) -> str:
    whole = experts_config(folder, run={"name": "whole"}, training={"steps": STEPS})
    configs = [whole, experts_config(folder)]
    ((records, _), _) = run_distributed(train, 2, configs, nothing, False)[0]
    target.mkdir(parents=True)
    losses = json.dumps([each.loss for each in records])
    (target / "losses.json").write_text(losses + "\n", encoding="utf-8")
    return "experts"


if __name__ == "__main__":
    main(Path(sys.argv[1]), experts=sys.argv[2:] == ["experts"])
