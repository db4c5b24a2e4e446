"""On how many processes a trained model lies when it is used, and in which way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from roots.config.run import RunConfig
from roots.device import Device, LaunchEnvironment
from roots.errors import RootsError, problem
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, initialise
from roots.parallel.topology import Topology

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """How a model is cut; None: as in its training, where so many processes are there, else 1.

    What remains of the processes are copies of the model, each with a share of the work.
    """

    tensor: int | None = None
    pipeline: int | None = None
    expert: int | None = None


def topology_for(config: RunConfig, degrees: Degrees, world_size: int) -> Topology:
    """The layout of `world_size` processes that use the model of `config`.

    Raises RootsError if they cannot be cut so.
    """
    given = {name: value for name, value in asdict(degrees).items() if value is not None}
    trained = {name: getattr(config.parallel, name) for name in asdict(degrees)}
    sizes = {**trained, **given}
    if not _fits(sizes, world_size):
        sizes = {**dict.fromkeys(trained, 1), **given}
    model_ranks = sizes["tensor"] * sizes["pipeline"]
    if world_size % model_ranks:
        rule = f"tensor {sizes['tensor']} x pipeline {sizes['pipeline']} must divide the "
        rule += f"{world_size} processes"
        fix = "start as many processes as the model is to be cut into, or a multiple"
        raise RootsError(problem("layout", model_ranks, rule, fix))
    stages = sizes["pipeline"]
    if stages > config.model.num_layers:
        rule = f"is more than the {config.model.num_layers} blocks of the model"
        raise RootsError(problem("pipeline", stages, rule, "choose fewer stages"))
    if stages > 1 and config.model.architecture != "decoder":
        rule = f"is for decoders, and this is of architecture {config.model.architecture}"
        raise RootsError(problem("pipeline", stages, rule, "cut it over tensor ranks instead"))
    return Topology(data=world_size // model_ranks, **sizes)


def _fits(sizes: dict[str, int], world_size: int) -> bool:
    model_ranks = sizes["tensor"] * sizes["pipeline"]
    return world_size % model_ranks == 0 and world_size // model_ranks % sizes["expert"] == 0


def join_processes(
    config: RunConfig, degrees: Degrees, environment: LaunchEnvironment, device: Device
) -> Mesh:
    """The mesh of the processes that were started together; of one process without a group.

    Raises RootsError as `topology_for`, and if they do not meet.
    """
    topology = topology_for(config, degrees, environment.world_size)
    if environment.world_size == 1:
        return Mesh.single()
    initialise(environment, device)
    return Mesh.create(topology)


def copies(mesh: Mesh) -> tuple[int, int]:
    """(which copy of the model this rank belongs to, how many there are).

    Ranks that share experts read the same tokens together, and so are one copy.
    """
    return mesh.expert_data.rank, mesh.expert_data.size


def of_all_copies(mesh: Mesh, found: Mapping[int, Found]) -> list[Found]:
    """What all copies have found of their shares, in the order of its numbers, on every rank.

    Communication: an all-gather between the copies.
    """
    parts = all_gather_object(mesh.expert_data, dict(found))
    everything = {number: each for part in parts for number, each in part.items()}
    return [everything[number] for number in sorted(everything)]
