"""Runs that go on from checkpoints of other layouts: what a rank does, and how two runs compare."""

from __future__ import annotations

import math
import signal
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from roots.checkpoint.folders import CHECKPOINTS_FOLDER, step_name
from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.device import Device, launch_environment
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.callback import Callback, CallbackList
from roots.training.callbacks.metrics import StepRecord
from roots.training.checkpointing import Checkpointer
from roots.training.loop import Run, train_loop
from roots.verify.floors import Arithmetic
from tests.integration.runs import PEAK, SignalAfter, differences, state_of

AGAIN = "-again"
# Eight units in the last place of 16 bits.
TOLERANCE = {"fp32": 1e-5, "fp16": 8 * 2.0**-10, "bf16": 8 * 2.0**-7}


@dataclass(frozen=True)
class Job:
    """A run that an engine trains, or several, one after the other.

    runs:       they differ in their names and in what they resume from alone
    stop_after: the step after which they are stopped by a signal
    """

    runs: tuple[RunConfig, ...]
    stop_after: int | None = None


class Records(Callback):
    """Keeps what the loop tells."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step_end(self, record: StepRecord) -> None:
        self.steps.append(record)


Told = dict[str, list[StepRecord]]


def train_all(rank: int, world_size: int, jobs: list[Job]) -> Told:
    """Train every run of all jobs; what each told, by its name.

    One that goes on from a checkpoint first saves what it has taken over, in a run of its own.
    """
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    told: Told = {}
    # Measuring the processor would take longer than the runs.
    with patch("roots.training.assemble.device_peak", return_value=PEAK):
        for job in jobs:
            _even_out_groups(world_size)
            _train(job, world_size, device, told)
    return told


def _even_out_groups(world_size: int) -> None:
    """Let all ranks have as many process groups, which is a part of the name of the next one.

    After a pipeline with tied ends they have not, and a group that only its members make would be
    waited for under two names.
    """
    counts: list[int] = [0] * world_size
    mine = len(distributed_c10d._world.pg_names)
    dist.all_gather_object(counts, mine)
    for _ in range(max(counts) - mine):
        dist.new_group([dist.get_rank()], use_local_synchronization=True)


def _train(job: Job, world_size: int, device: Device, told: Told) -> None:
    with ExitStack() as stack:
        built: Run | None = None
        for config in job.runs:
            if built is None:
                run = built = assemble(config, plan_batch(config, world_size), device, stack)
            else:
                run = _resumed(built, config)
            if run.start.step > 0:
                again = Checkpointer(_named(config, config.run.name + AGAIN), run.mesh)
                again.save(run.engine, run.start)
            records = Records()
            heard: list[Callback] = [records]
            if job.stop_after is not None and run.mesh.rank == run.mesh.world.size - 1:
                heard.append(SignalAfter(job.stop_after, signal.SIGTERM))
            train_loop(replace(run, callbacks=CallbackList(heard)))
            told.setdefault(config.run.name, []).extend(records.steps)


def _resumed(built: Run, config: RunConfig) -> Run:
    """The run with another checkpoint in its engine."""
    checkpointer = Checkpointer(config, built.mesh)
    found = checkpointer.find()
    assert found is not None
    start = checkpointer.load(built.engine, found)
    return replace(built, config=config, checkpointer=checkpointer, start=start)


def _named(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def checkpoint_of(config: RunConfig, step: int, *, again: bool = False) -> Path:
    """Where the run has saved after `step`; again: what it had taken over then."""
    config = _named(config, config.run.name + AGAIN) if again else config
    return config.run_directory / CHECKPOINTS_FOLDER / step_name(step)


def not_taken_over(source: Path, again: Path) -> list[str]:
    """What was saved at once is not, to the bit, what was loaded."""
    return differences(state_of(source), state_of(again))


@dataclass(frozen=True)
class Apart:
    """How far two runs of one precision are apart, as shares of what they may be.

    losses: of any step, with the norms of gradients; masters and moments: of any tensor, at the end
    """

    losses: float
    masters: float
    moments: float
    numbers_differ: bool

    @property
    def equal(self) -> bool:
        """Whether nothing is further apart than rounding makes it."""
        return max(self.losses, self.masters, self.moments) <= 1 and not self.numbers_differ


def apart(
    config: RunConfig,
    found: tuple[list[StepRecord], Path],
    expected: tuple[list[StepRecord], Path],
) -> Apart:
    """Compare records of the same steps, and the checkpoints after the last of them."""
    tolerance = TOLERANCE[config.training.precision]
    assert [each.step for each in found[0]] == [each.step for each in expected[0]]
    pairs = list(zip(found[0], expected[0], strict=True))
    losses = max(
        abs(getattr(a, name) - getattr(b, name)) / abs(getattr(b, name))
        for a, b in pairs
        for name in ("loss", "grad_norm")
    )
    told = [
        [(each.lr, each.loss_scale, each.skipped, each.consumed_samples) for each in records]
        for records in (found[0], expected[0])
    ]
    ours, theirs = state_of(found[1]), state_of(expected[1])
    same = [name for name, value in theirs.items() if not torch.is_tensor(value)]
    floors = _floors(config, theirs, sum(each.lr for each in expected[0]))
    shares: dict[str, float] = defaultdict(float)
    for name, tensor in theirs.items():
        if not torch.is_tensor(tensor) or name not in floors:
            continue
        distance = float((ours[name].double() - tensor.double()).norm())
        allowed = tolerance * float(tensor.double().norm()) + floors[name]
        kind = "moments" if name.startswith("exp_avg") else "masters"
        shares[kind] = max(shares[kind], distance / allowed)
    return Apart(
        losses / tolerance,
        shares["masters"],
        shares["moments"],
        told[0] != told[1] or [ours[name] for name in same] != [theirs[name] for name in same],
    )


def _floors(config: RunConfig, state: dict[str, Any], rates: float) -> dict[str, float]:
    """What rounding does to fp32 weights and moments, besides what is relative to their size.

    As in roots/verify/floors.py, but of the state after the last step alone. The gradient that
    Adam has seen is the root of its corrected second moment; it is off by r times the largest of a
    matrix in the same block. So is the first moment, and the second, v = g^2, by twice the product
    of g and that. A step moves a weight by its rate times the steepness of Adam's quotient there.
    """
    adam = Arithmetic.of(config)
    updates = int(state["updates"])
    roots = {
        name.partition("/")[2]: (each.double() / (1 - adam.beta2**updates)).sqrt()
        for name, each in state.items()
        if name.startswith("exp_avg_sq/")
    }
    largest: dict[str, float] = defaultdict(float)
    for name, root in roots.items():
        if root.ndim > 1:
            largest[_block_of(name)] = max(largest[_block_of(name)], float(root.norm()))
    floors = {}
    for name, root in roots.items():
        size = float(root.norm())
        off = adam.relative * max(largest[_block_of(name)], size)
        floors[f"exp_avg/{name}"] = off * (1 - adam.beta1**updates)
        squares = off * (2 * size + off) / math.sqrt(root.numel())
        floors[f"exp_avg_sq/{name}"] = squares * (1 - adam.beta2**updates)
        first: Tensor = state[f"exp_avg/{name}"].double() / (1 - adam.beta1**updates)
        below = root + adam.epsilon
        steepness = (1 + first.abs() / below) / below
        moved = rates * off * float(steepness.square().mean().sqrt())
        master = f"master/{name}"
        floors[master if master in state else name] = moved
    return floors


def _block_of(name: str) -> str:
    """What the matrices of a block have in common: the name up to the number of the layer."""
    words = name.split(".")
    places = [place for place, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: places[0] + 1]) if places else ""
