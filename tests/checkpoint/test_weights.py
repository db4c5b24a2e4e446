"""Weights written on one layout and read on another; manifests that notice every damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from roots.checkpoint import manifest
from roots.checkpoint.weights import WeightStore
from roots.errors import RootsError
from roots.parallel.mesh import Axis
from roots.parallel.shard import Shard, chunked, even, replicated
from tests.helpers.manifests import edit_manifest
from tests.helpers.stored_weights import save_weights

FULL: dict[str, Tensor] = {
    "qkv": torch.arange(24 * 5, dtype=torch.float32).view(24, 5),
    "output": torch.arange(6 * 8, dtype=torch.float32).view(6, 8) + 1000,
    "norm": torch.arange(7, dtype=torch.float32),
}


def axis(size: int, rank: int) -> Axis:
    return Axis(name="tensor", size=size, rank=rank, ranks=tuple(range(size)))


def shards(size: int, rank: int) -> list[Shard]:
    here = axis(size, rank)
    return [
        chunked("qkv", (24, 5), 0, here, [16, 4, 4]),
        even("output", (6, 8), 1, here),
        replicated("norm", (7,)),
    ]


def cut(full: Tensor, shard: Shard) -> Tensor:
    if shard.dim is None:
        return full
    parts = [full.narrow(shard.dim, start, stop - start) for start, stop in shard.intervals]
    return torch.cat(parts, shard.dim)


def save_on(folder: Path, size: int) -> None:
    for rank in range(size):
        tensors = [(shard, cut(FULL[shard.name], shard)) for shard in shards(size, rank)]
        save_weights(folder, tensors, pipeline_rank=0, tensor_rank=rank)


@pytest.mark.parametrize("saved", [1, 2, 4])
@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_weights_of_any_layout_read_on_any_other(tmp_path: Path, saved: int, wanted: int) -> None:
    save_on(tmp_path, saved)
    store = WeightStore(tmp_path)
    for rank in range(wanted):
        for shard in shards(wanted, rank):
            assert torch.equal(store.read(shard), cut(FULL[shard.name], shard))


def test_stages_add_what_they_hold(tmp_path: Path) -> None:
    """Each writes files of its own, also of tensors that tensor ranks hold alike."""
    for stage, name in enumerate(("output", "norm")):
        for rank in range(2):
            held = [shard for shard in shards(2, rank) if shard.name == name]
            tensors = [(shard, cut(FULL[name], shard)) for shard in held]
            save_weights(tmp_path, tensors, pipeline_rank=stage, tensor_rank=rank)
    store = WeightStore(tmp_path)
    assert torch.equal(store.read(replicated("norm", (7,))), FULL["norm"])
    assert torch.equal(store.read(replicated("output", (6, 8))), FULL["output"])


def test_sharded_tensor_reads_as_replicated_and_along_another_dim(tmp_path: Path) -> None:
    save_on(tmp_path, 2)
    store = WeightStore(tmp_path)
    assert torch.equal(store.read(replicated("qkv", (24, 5))), FULL["qkv"])
    other = even("output", (6, 8), 0, axis(2, 1))
    assert torch.equal(store.read(other), FULL["output"][3:])


def test_tied_copy_reads_what_it_is_tied_to(tmp_path: Path) -> None:
    save_on(tmp_path, 2)
    tied = even("head", (6, 8), 1, axis(2, 0), tied_to="output")
    assert torch.equal(WeightStore(tmp_path).read(tied), FULL["output"][:, :4])


def test_missing_tensor_and_other_shape_are_named(tmp_path: Path) -> None:
    save_on(tmp_path, 1)
    store = WeightStore(tmp_path)
    fix = f"is {tmp_path} a checkpoint of another model? use the config stored beside it"
    with pytest.raises(RootsError) as caught:
        store.read(replicated("bias", (3,)))
    assert caught.value.lines == (f"tensor bias: is not in the checkpoint; {fix}",)
    with pytest.raises(RootsError) as caught:
        store.read(replicated("norm", (9,)))
    assert caught.value.lines == (
        f"tensor norm=[9]: has shape [7] in the checkpoint, not [9]; {fix}",
    )


def test_lost_shard_is_noticed(tmp_path: Path) -> None:
    save_on(tmp_path, 2)
    (tmp_path / "weights" / "pipeline_000_tensor_001_expert_000.safetensors").unlink()
    with pytest.raises(RootsError, match=r"lacks 24 of the elements \[0 to 6, 0 to 8\]"):
        WeightStore(tmp_path).read(replicated("output", (6, 8)))


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RootsError, match=r"holds no weights/\*\.safetensors"):
        WeightStore(tmp_path)


def sealed(folder: Path) -> manifest.Manifest:
    (folder / "a").write_bytes(b"12345678")
    files = manifest.describe_files(folder, ["a"])
    layout = manifest.Layout(1, 1, 1, 1, "fp32")
    manifest.write_manifest(folder, manifest.Manifest(3, 24, layout, files))
    return manifest.read_manifest(folder)


def test_manifest_reads_back(tmp_path: Path) -> None:
    found = sealed(tmp_path)
    assert (found.step, found.consumed_samples, found.layout.precision) == (3, 24, "fp32")
    assert manifest.damage_of(tmp_path, found, ["a"]) == []


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "is missing"),
        (b"1234", "has 4 bytes where the manifest says 8"),
        (b"12345679", "does not have the checksum that the manifest records"),
    ],
)
def test_every_damage_is_noticed(tmp_path: Path, content: bytes | None, rule: str) -> None:
    found = sealed(tmp_path)
    path = tmp_path / "a"
    path.unlink() if content is None else path.write_bytes(content)
    assert manifest.damage_of(tmp_path, found, ["a"]) == [
        f"checkpoint file={str(path)!r}: {rule}; use another checkpoint of the run"
    ]


def test_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    sealed(tmp_path)
    edit_manifest(tmp_path, lambda tree: tree.update(version=9))
    with pytest.raises(RootsError) as caught:
        manifest.read_manifest(tmp_path)
    assert caught.value.lines == (
        f"checkpoint={str(tmp_path)!r}: is roots-checkpoint version 9, "
        "this ROOTS reads roots-checkpoint versions 1 to 3; use the ROOTS that wrote it",
    )


def test_torn_manifest_is_refused_in_one_line(tmp_path: Path) -> None:
    sealed(tmp_path)
    path = tmp_path / manifest.MANIFEST_NAME
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RootsError, match="is not readable") as caught:
        manifest.read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_tied_copy_is_not_written_twice(tmp_path: Path) -> None:
    tied = replicated("head", (7,), tied_to="norm")
    tensors = [(replicated("norm", (7,)), FULL["norm"]), (tied, FULL["norm"])]
    save_weights(tmp_path, tensors, pipeline_rank=0, tensor_rank=0)
    assert set(WeightStore(tmp_path).tensors) == {"norm"}


def test_ranks_of_the_expert_axis_add_their_experts_and_nothing_else(tmp_path: Path) -> None:
    """Each writes a file; the router and all that is replicated stand in the first one's."""
    for rank in range(2):
        tensors = [(replicated("router", (3,)), torch.full((3,), float(rank)))]
        for expert in (2 * rank, 2 * rank + 1):
            shard = Shard(f"experts.{expert}", (2, 2), None, (), expert=True)
            tensors.append((shard, torch.full((2, 2), float(expert))))
        save_weights(tmp_path, tensors, pipeline_rank=0, tensor_rank=0, expert_rank=rank)
    store = WeightStore(tmp_path)
    assert set(store.tensors) == {"router", *(f"experts.{expert}" for expert in range(4))}
    assert store.read(replicated("router", (3,))).tolist() == [0.0] * 3
    for expert in range(4):
        assert store.read(replicated(f"experts.{expert}", (2, 2))).unique().tolist() == [expert]
