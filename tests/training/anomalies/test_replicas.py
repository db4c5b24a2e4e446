"""Weights that several ranks hold: equal as long as all is well, and named where a bit flips."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.device import launch_environment
from roots.errors import ExitCode, RootsError
from roots.parallel.mesh import Mesh
from roots.parallel.shard import attach, replicated, shard_of
from roots.parallel.topology import Topology
from roots.training.anomalies.replicas import ReplicaCheck
from roots.training.assemble import build_engine, start_process, topology_of
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import small_config, write_dataset

FIX = (
    "resume from a checkpoint before it, without the hosts of these ranks; if that does not "
    "help, report it with the config"
)
STEPS = 3

# precision, fields of `parallel`, parameter in which the last rank flips a bit, what is said of it
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("fp32", {"zero_stage": 0}, "layers.1.mlp.up.weight", "differs between its replicas on ranks"),
    ("bf16", {"zero_stage": 2}, "final_norm.weight", "differs between its replicas on ranks"),
    ("fp32", {"zero_stage": 3}, "final_norm.weight", "differs between its replicas on ranks"),
    ("bf16", {"context": 2}, "layers.0.mlp.up.weight", "differs between its replicas on ranks"),
    ("bf16", {"pipeline": 2}, "head.weight", "is tied, and its copies on ranks"),
    ("fp32", {"pipeline": 2, "zero_stage": 0}, "head.weight", "is tied, and its copies on ranks"),
]


def flip_a_bit(parameter: torch.Tensor) -> None:
    parameter.detach().view(-1)[-1:].view(torch.uint8)[0] ^= 1


def check_all(rank: int, world_size: int, configs: list[RunConfig]) -> list[tuple[str, ...]]:
    """Lines of the check of every run, once its last rank has flipped a bit."""
    device = start_process(launch_environment(), rank)
    found = []
    for config, (_, _, name, _) in zip(configs, CASES, strict=True):
        plan = plan_batch(config, world_size)
        mesh = Mesh.create(topology_of(config, plan))
        engine = build_engine(config, plan, mesh, device)
        check = ReplicaCheck(engine.module, mesh)
        for step, (batches, _) in enumerate(
            build_data(config, plan, mesh.data.rank).train.iterate()
        ):
            engine.train_step(batches, 1e-2)
            check.check(step + 1)
        if rank == world_size - 1:
            parameters = engine.module.named_parameters()
            flip_a_bit(next(each for key, each in parameters if shard_of(each, key).name == name))
        with pytest.raises(RootsError) as caught:
            check.check(STEPS)
        assert caught.value.exit_code is ExitCode.FAULTY
        found.append(caught.value.lines)
    return found


def test_replicas_stay_equal_and_a_flipped_bit_is_named_on_every_rank(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data")
    configs = [
        small_config(
            prefix,
            tmp_path,
            parallel=parallel,
            # Sizes at which no vector register is full.
            model={"num_layers": 2, "hidden_size": 20, "num_heads": 2, "ffn_hidden_size": 13},
            training={"steps": STEPS, "precision": precision},
            optimizer={"implementation": "torch"},
            data={"valid": []},
        )
        for precision, parallel, _, _ in CASES
    ]
    first, second = run_distributed(check_all, 2, configs)
    assert first == second
    for (_, parallel, name, rule), (line,) in zip(CASES, first, strict=True):
        tied = "embedding.tokens.weight" if name == "head.weight" else name
        host = socket.gethostname()
        both = f"0 ({host}){' and' if name == 'head.weight' else ','} 1 ({host})"
        end = f"{both} {'differ ' if name == 'head.weight' else ''}after step {STEPS}; {FIX}"
        assert line == f"tensor {tied}: {rule} {end}", parallel


def check_three(rank: int, world_size: int) -> tuple[str, ...]:
    mesh = Mesh.create(Topology(data=world_size))
    module = nn.Linear(3, 3)
    for name, parameter in module.named_parameters():
        nn.init.ones_(parameter)
        attach(parameter, replicated(name, parameter.shape), mesh.tensor)
    ReplicaCheck(module, mesh).check(1)
    if rank == 1:
        for parameter in module.parameters():
            flip_a_bit(parameter)
    with pytest.raises(RootsError) as caught:
        ReplicaCheck(module, mesh).check(2)
    return caught.value.lines


def test_the_odd_one_of_three_is_told_from_the_others_for_every_tensor() -> None:
    host = socket.gethostname()
    expected = tuple(
        f"tensor {name}: differs on ranks 1 ({host}) from its replicas after step 2; {FIX}"
        for name in ("weight", "bias")
    )
    assert run_distributed(check_three, 3) == [expected] * 3
