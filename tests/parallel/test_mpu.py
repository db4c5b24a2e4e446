"""The adapter answers every name that DeepSpeed asks an mpu for, with real groups."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from roots.parallel.mesh import Mesh
from roots.parallel.mpu import DeepSpeedMpu
from roots.parallel.topology import Topology
from tests.helpers.distributed import run_distributed

# Kind in DeepSpeed's names -> our axis.
KINDS = {
    "model_parallel": "model",
    "data_parallel": "replica",
    "tensor_model_parallel": "tensor",
    "slice_parallel": "tensor",
    "pipeline_model_parallel": "pipeline",
    "pipe_parallel": "pipeline",
}
# Files that ask the mpu of the engine only in modes that ROOTS does not enter: its own tensor
# parallelism and DeepSpeed's sequence parallelism, domino and hybrid engines.
OPTIONAL = r"sequence|_init_tp_mesh_device|initialize_"


def _answers(rank: int, world_size: int, topology: Topology) -> dict[str, tuple[int, ...]]:
    mpu = DeepSpeedMpu(Mesh.create(topology))
    found = {}
    for kind in KINDS:
        group = getattr(mpu, f"get_{kind}_group")()
        total = torch.tensor(rank)
        dist.all_reduce(total, group=group)
        found[kind] = (
            getattr(mpu, f"get_{kind}_rank")(),
            getattr(mpu, f"get_{kind}_world_size")(),
            dist.get_world_size(group),
            int(total),
        )
    found["data ranks"] = tuple(mpu.get_data_parallel_group_ranks())
    found["tensor source"] = (mpu.get_tensor_model_parallel_src_rank(),)
    found["global"] = (mpu.get_global_rank(),)
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(
    "topology",
    [
        Topology(),
        Topology(tensor=2),
        Topology(2, 2, 1),
        Topology(1, 2, 2),
        Topology(data=2, context=2),
    ],
    ids=str,
)
def test_ranks_sizes_and_groups_follow_the_mesh(topology: Topology) -> None:
    answers = run_distributed(_answers, topology.world_size, topology)
    for rank, found in enumerate(answers):
        for kind, axis in KINDS.items():
            ranks = topology.group_of(axis, rank)
            size = len(ranks)
            assert found[kind] == (ranks.index(rank), size, size, sum(ranks)), kind
        assert found["data ranks"] == tuple(topology.group_of("replica", rank))
        assert found["tensor source"] == (topology.group_of("tensor", rank)[0],)
        assert found["global"] == (rank,)


def test_no_name_that_deepspeed_asks_for_is_missing() -> None:
    spec = find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    files = [root / "runtime/engine.py", root / "runtime/utils.py", root / "runtime/config.py"]
    files += [root / "runtime/base_optimizer.py", root / "utils/groups.py", root / "utils/bwc.py"]
    files += sorted((root / "runtime/zero").glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    asked = set(re.findall(r"\bmpu\.(\w+)\(", text))
    assert len(asked) > 10
    missing = {name for name in asked if not hasattr(DeepSpeedMpu, name)}
    assert not {name for name in missing if not re.search(OPTIONAL, name)}
    # Their absence is an answer: DeepSpeed takes the degree of sequence parallelism to be 1.
    assert not any("sequence" in name for name in dir(DeepSpeedMpu))
