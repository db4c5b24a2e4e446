"""What the ranks of tests.bench.checkpoint do: save, load, and measure both.

Every function is one rank of a process group; its figures are seconds and bytes.
"""

from __future__ import annotations

import gc
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from roots.checkpoint.manifest import read_manifest
from roots.checkpoint.staging import staged_bytes
from roots.checkpoint.zero_universal import universal_checkpoint_info
from roots.config import RunConfig, parse_config
from roots.config.batch import BatchPlan, plan_batch
from roots.data.batch import Batch
from roots.device import Device, launch_environment, memory_bytes
from roots.models.init import initialise
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, anywhere, barrier
from roots.parallel.shard import shard_of
from roots.training.anomalies.checks import Checks
from roots.training.anomalies.event_log import EventLog
from roots.training.assemble import build_engine, start_process, topology_of
from roots.training.checkpointing import Checkpointer
from roots.training.engine import step as engine_step
from roots.training.engine.deepspeed_json import deepspeed_config
from roots.training.engine.pipeline import build_pipeline_engine
from roots.training.engine.step import Engine
from roots.training.resume_point import ResumePoint
from tests.helpers.runs import write_dataset

SEQUENCE, MICRO_BATCHES, WARM_STEPS = 16, 2, 3
VOCABULARY = 4096
SEED = 1


def config_of(
    parameters: int, folder: Path, name: str, *, resume: Path | None = None, **parallel: int
) -> RunConfig:
    """A run in bf16 of about so many parameters; sequences are short, so that steps are.

    Its data in `folder` say what they are in checkpoints, as those of any run.
    """
    data = folder / "data" / "text"
    if not data.parent.exists():
        data.parent.mkdir()
        write_dataset(data)
    unit = 256 if parameters >= 5_000_000 else 64
    hidden = unit * max(1, round((parameters / 170) ** 0.5 / unit))
    layers = 2 * max(2, round((parameters - 2 * VOCABULARY * hidden) / (24 * hidden**2)))
    model = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": max(4, hidden // 64),
        "sequence_length": SEQUENCE,
        "vocab_size": VOCABULARY,
        "tied_embeddings": False,
    }
    training = {"precision": "bf16", "micro_batch_size": 1, "seed": SEED}
    return parse_config(
        {
            "run": {"name": name, "directory": str(folder)},
            "model": model,
            "data": {"train": [str(data)], "valid": [str(data)]},
            "training": {**training, "global_batch_size": MICRO_BATCHES},
            "parallel": {"zero_stage": 1, **parallel},
            "checkpoint": {"keep_last": 1, "resume": "auto" if resume is None else str(resume)},
        }
    )


@dataclass(frozen=True)
class Rank:
    """The engine of one rank, and where it stands."""

    config: RunConfig
    plan: BatchPlan
    mesh: Mesh
    engine: Engine

    def train(self) -> float:
        """Seconds of one step, which all ranks begin together."""
        generator = torch.Generator().manual_seed(SEED)
        tokens_BT = torch.randint(VOCABULARY, (1, SEQUENCE), generator=generator)
        zeros_BT = torch.zeros_like(tokens_BT)
        batch = Batch(
            tokens_BT=tokens_BT,
            labels_BT=tokens_BT,
            loss_weights_BT=torch.full(tokens_BT.shape, 1.0 / SEQUENCE),
            document_starts_BT=zeros_BT,
            dropout_keys_B=zeros_BT[:, 0],
            source_BS=zeros_BT[:, :0],
            source_lengths_B=zeros_BT[:, 0],
        )
        return self.timed(lambda: self.engine.train_step([batch] * self.plan.accumulation, 1e-4))

    def timed(self, action: Callable[[], object]) -> float:
        """Seconds until all ranks have done it."""
        barrier(self.mesh.world)
        started = time.perf_counter()
        action()
        barrier(self.mesh.world)
        return time.perf_counter() - started


def build(config: RunConfig, world_size: int) -> Rank:
    """This rank's engine, as `roots train` has it."""
    plan, mesh, device = _place(config, world_size)
    return Rank(config, plan, mesh, build_engine(config, plan, mesh, device))


def _place(config: RunConfig, world_size: int) -> tuple[BatchPlan, Mesh, Device]:
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    plan = plan_batch(config, world_size)
    return plan, Mesh.create(topology_of(config, plan)), device


def save_rounds(
    rank: int, world_size: int, beside: RunConfig, waiting: RunConfig, rounds: int
) -> list[dict[str, float]]:
    """Save beside training, then while it waits, then let dd write as much: a row a round.

    The first round has the first save of each.
    """
    found = build(beside, world_size)
    savers = {each: Checkpointer(each, found.mesh) for each in (beside, waiting)}
    found.train()
    savers[beside].saver.prepare(found.engine)
    for _ in range(WARM_STEPS):
        found.train()
    rows = []
    for number in range(1, rounds + 1):
        point = ResumePoint(number, number)
        row = {"step": found.train()}
        savers[beside].start(found.engine, point)
        steps = [found.train()]
        while anywhere(found.mesh.world, savers[beside].saver.busy):
            steps.append(found.train())
        saved = savers[beside].finish()
        assert saved is not None
        row["stall"] = max(all_gather_object(found.mesh.world, saved.stall_seconds))
        # With the copy beside it; then with the writing alone.
        row["step_of_copy"] = steps[0]
        row["step_beside"] = max(steps[1:], default=row["step"])
        savers[beside].saver.settle()
        began = time.process_time()
        row["waiting"] = found.timed(
            lambda p=point: (savers[waiting].start(found.engine, p), savers[waiting].finish())
        )
        row["waiting_cpu"] = time.process_time() - began
        folder = savers[waiting].root / f"step_{number:08d}"
        row["bytes"] = read_manifest(folder).total_bytes
        row |= _plain_writing(found, folder)
        rows.append(row)
    return rows


def _plain_writing(found: Rank, folder: Path) -> dict[str, float]:
    """Bytes and seconds of as many dd at once as there are ranks, each of its rank's largest file.

    From the page cache, so that the same bytes go to the same disk.
    """
    mine = sorted(folder.rglob(f"rank_{found.mesh.rank:05d}*"), key=lambda p: p.stat().st_size)[-1]
    with mine.open("rb", buffering=0) as file:
        while file.read(16 << 20):
            pass
    target = folder.parent / f"dd_{found.mesh.rank}"
    words = ["dd", f"if={mine}", f"of={target}", "bs=16M", "conv=fsync", "status=none"]
    seconds = found.timed(lambda: subprocess.run(words, check=True))
    sizes = all_gather_object(found.mesh.world, target.stat().st_size)
    target.unlink()
    return {"dd_bytes": sum(sizes), "dd": seconds}


def save_once(rank: int, world_size: int, config: RunConfig) -> dict[str, float]:
    """Save after a step, while training waits."""
    found = build(config, world_size)
    found.train()
    saver = Checkpointer(config, found.mesh)
    seconds = found.timed(lambda: saver.save(found.engine, ResumePoint(1, 1)))
    manifest = read_manifest(saver.root / "step_00000001")
    return {"save": seconds, "bytes": manifest.total_bytes}


def load_once(rank: int, world_size: int, config: RunConfig) -> dict[str, float]:
    """Find the checkpoint that the config names, load it, make a step."""
    found = build(config, world_size)
    loader = Checkpointer(config, found.mesh)
    barrier(found.mesh.world)
    folder: list[Path | None] = []
    check = found.timed(lambda: folder.append(loader.find()))
    assert folder[0] is not None
    load = found.timed(lambda: loader.load(found.engine, folder[0]))  # type: ignore[arg-type]
    return {"check": check, "load": load, "step": found.train()}


def deepspeed_save(rank: int, world_size: int, config: RunConfig, folder: Path) -> float:
    """Seconds of DeepSpeed's save_checkpoint, of the same model as a pipeline of one stage."""
    found = _pipeline(config, world_size, universal=False)
    found.train()
    named = [(name, shard_of(p, name)) for name, p in found.engine.module.named_parameters()]
    stages = all_gather_object(found.mesh.pipeline, named)
    info = universal_checkpoint_info((each for part in stages for each in part), world_size)
    state = {"iteration": 1, **info}
    return found.timed(lambda: found.engine.save_deepspeed_files(folder, "saved", state))


def deepspeed_load(rank: int, world_size: int, config: RunConfig, folder: Path) -> dict[str, float]:
    """Load the universal checkpoint that was made of it, make a step."""
    found = _pipeline(config, world_size, universal=True)
    engine = found.engine.deepspeed
    load = found.timed(lambda: engine.load_checkpoint(str(folder), tag="universal"))
    return {"load": load, "step": found.train()}


def _pipeline(config: RunConfig, world_size: int, universal: bool) -> Rank:
    """A pipeline, of one stage if need be: DeepSpeed's layers have the same names in no other."""

    def composed(config: RunConfig, plan: BatchPlan) -> dict[str, Any]:
        tree = deepspeed_config(config, plan)
        pipeline = {"pipe_partitioned": False, "grad_partitioned": False}
        return {**tree, "pipeline": pipeline, "checkpoint": {"load_universal": universal}}

    def fill(module: torch.nn.Module) -> None:
        initialise(module, SEED, config.model, device=torch.device("cpu"))

    plan, mesh, device = _place(config, world_size)
    with patch.object(engine_step, "deepspeed_config", composed):
        engine = build_pipeline_engine(config, plan, mesh, device, fill)
    return Rank(config, plan, mesh, engine)


def memory_of_load(
    rank: int, world_size: int, config: RunConfig, warm: RunConfig
) -> dict[str, float]:
    """Peak of this rank while it loads, above what it had before it was built.

    Libraries are warm from a small model, `warm`. `gradients` are the fp32 sums that DeepSpeed
    makes with the engine, whether anything is loaded or not.
    """
    small = build(warm, world_size)
    small.train()
    del small
    gc.collect()
    before = resident_bytes()
    found = build(config, world_size)
    loader = Checkpointer(config, found.mesh)
    folder = loader.find()
    assert folder is not None
    built = resident_bytes() - before
    reset_peak()
    loader.load(found.engine, folder)
    peak = peak_bytes() - before
    state = staged_bytes(found.engine.kept_pieces())
    gradients = 4 * sum(each.numel() for each in found.engine.module.parameters())
    return {"built": built, "peak": peak, "gradients": gradients, "state": state}


def memory_of_saves(rank: int, world_size: int, config: RunConfig, saves: int) -> dict[str, Any]:
    """Peak during each of many saves beside training, above what the rank had before them."""
    found = build(config, world_size)
    saver = Checkpointer(config, found.mesh)
    found.train()
    found.train()
    before, peaks = resident_bytes(), []
    for number in range(1, saves + 1):
        reset_peak()
        saver.start(found.engine, ResumePoint(number, number))
        while anywhere(found.mesh.world, saver.saver.busy):
            found.train()
        saver.finish()
        peaks.append(peak_bytes() - before)
    return {"peaks": peaks, "state": staged_bytes(found.engine.written_pieces())}


def cost_of_checks(rank: int, world_size: int, config: RunConfig, repeats: int) -> dict[str, float]:
    """Processor seconds of a step, and of what each check of the ranks at its default adds."""
    found = build(config, world_size)
    checks = Checks(config, found.engine, EventLog(None))
    every = config.checks

    def step(number: int) -> float:
        started = time.process_time()
        checks.before_step(number, [], 0.0)
        found.train()
        checks.after_step(number)
        return time.process_time() - started

    found.train()
    # By default a step at which replicas are compared is one at which paces are.
    numbers = {"plain": 1, "pace": every.pace_every_steps, "both": every.replicas_every_steps}
    taken: dict[str, list[float]] = {name: [] for name in numbers}
    for _ in range(repeats):
        for name, number in numbers.items():
            taken[name].append(step(number))
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "step": median["plain"],
        "pace": max(0.0, median["pace"] - median["plain"]),
        "replicas": max(0.0, median["both"] - median["pace"]),
    }


def resident_bytes() -> int:
    """What this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def reset_peak() -> None:
    """Let the largest resident size begin anew, from what it is now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The largest resident size since `reset_peak`; files' pages in the cache are not of it."""
    return memory_bytes(Device("cpu", 0))
