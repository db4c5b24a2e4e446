"""Whether the weights that several ranks hold are still equal, bit for bit.

Compared are what data-parallel replicas (with context parallelism the ranks of a sample too) hold
of every parameter, experts among the ranks that hold the same ones, and both copies of a weight
tied between two pipeline stages. At ZeRO 3 a rank has a part of its own of each parameter, and the
small ones whole (parallel.zero_persistence_threshold): only these are compared. All of them come
out of equal sums and equal updates; a difference is a fault of a machine or a bug, and would grow.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from roots.errors import ExitCode, RootsError, problem
from roots.parallel.mesh import Axis, Mesh
from roots.parallel.process import all_gather_object, all_gather_tensors, all_reduce_max
from roots.parallel.shard import Shard, is_spread_expert, shard_of
from roots.training.anomalies.fingerprint import fingerprints

_FIX = (
    "resume from a checkpoint before it, without the hosts of these ranks; if that does not "
    "help, report it with the config"
)


class ReplicaCheck:
    """Compares the weights of `module`. `check` is called by all ranks."""

    def __init__(self, module: nn.Module, mesh: Mesh) -> None:
        self._module, self._mesh = module, mesh

    def check(self, step: int) -> None:
        """Raise RootsError with exit code FAULTY, with a line for every tensor that differs.

        Communication: an all-reduce of two numbers a tensor over the replica axis, an all-gather of
        one over the pipeline axis, and an all-gather over all ranks where something differs.
        """
        held = list(_whole_weights(self._module))
        shared = [(shard, weight) for shard, weight, expert in held if not expert]
        experts = [(shard, weight) for shard, weight, expert in held if expert]
        lines = [
            *self._differences(self._mesh.replica, shared, step),
            *self._differences(self._mesh.expert_data, experts, step),
            *self._tied(shared, step),
        ]
        flag = torch.tensor([float(bool(lines))], device=self._device())
        if bool(all_reduce_max(self._mesh.world, flag)):
            found = all_gather_object(self._mesh.world, lines)
            every = dict.fromkeys(line for part in found for line in part)
            raise RootsError(*every, exit_code=ExitCode.FAULTY, speaks=self._mesh.world.rank == 0)

    def _differences(
        self, axis: Axis, held: Sequence[tuple[Shard, Tensor]], step: int
    ) -> list[str]:
        """A line for each of the tensors that differs along `axis`."""
        if axis.size == 1 or not held:
            return []
        mine = fingerprints([weight for _, weight in held])
        # The largest and, by its negative, the smallest at once.
        ends = all_reduce_max(axis, torch.stack([mine, -mine]))
        if torch.equal(ends[0], -ends[1]):
            return []
        found = torch.stack(all_gather_tensors(axis, mine)).T.tolist()
        hosts = all_gather_object(axis, socket.gethostname())
        return [
            _line(shard.name, step, row, axis, hosts)
            for (shard, _), row in zip(held, found, strict=True)
            if len(set(row)) > 1
        ]

    def _tied(self, held: Sequence[tuple[Shard, Tensor]], step: int) -> list[str]:
        """The line on a weight tied between two stages, if its copies differ."""
        axis = self._mesh.pipeline
        if axis.size == 1:
            return []
        tied = {shard.tied_to for shard, _ in held if shard.tied_to is not None}
        # Both stages know the name of the weight; the first has it as its own.
        names = {name for part in all_gather_object(axis, tied) for name in part}
        copies = [
            (shard, weight) for shard, weight in held if (shard.tied_to or shard.name) in names
        ]
        if not names:
            return []
        mine = torch.full((1,), -1, dtype=torch.int64, device=self._device())
        if copies:
            mine = fingerprints([weight for _, weight in copies[:1]])
        row = [int(each) for each in all_gather_tensors(axis, mine)]
        if len({each for each in row if each >= 0}) <= 1:
            return []
        ranks = [rank for rank, each in zip(axis.ranks, row, strict=True) if each >= 0]
        hosts = all_gather_object(axis, socket.gethostname())
        places = [
            f"{rank} ({host})"
            for rank, host in zip(axis.ranks, hosts, strict=True)
            if rank in ranks
        ]
        rule = f"is tied, and its copies on ranks {' and '.join(places)} differ after step {step}"
        return [problem(f"tensor {min(names)}", None, rule, _FIX)]

    def _device(self) -> torch.device:
        return next(self._module.parameters()).device


def _whole_weights(module: nn.Module) -> Iterator[tuple[Shard, Tensor, bool]]:
    """Record and values of every parameter that a rank holds as its replicas do; if an expert's."""
    for name, parameter in module.named_parameters():
        if getattr(parameter, "ds_persist", True) and parameter.numel():
            yield shard_of(parameter, name), parameter.detach(), is_spread_expert(parameter)


def _line(name: str, step: int, row: Sequence[int], axis: Axis, hosts: Sequence[str]) -> str:
    """Say which ranks differ: from the others, where most are equal."""
    (common, count), *_ = Counter(row).most_common(1)
    places = [f"{rank} ({host})" for rank, host in zip(axis.ranks, hosts, strict=True)]
    odd = [place for place, each in zip(places, row, strict=True) if each != common]
    if 2 * count > len(row):
        rule = f"differs on ranks {', '.join(odd)} from its replicas after step {step}"
    else:
        rule = f"differs between its replicas on ranks {', '.join(places)} after step {step}"
    return problem(f"tensor {name}", None, rule, _FIX)
