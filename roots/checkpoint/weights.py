"""Weights by global name, written as shards of any layout and read back as shards of any other.

Each file is a safetensors file whose metadata holds, per tensor, the Shard record: global shape,
sharded dimension and the global intervals that the local rows came from. Reading intersects the
intervals wanted with the intervals stored, so no layout has to know another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from roots.checkpoint.dtypes import DTYPES
from roots.checkpoint.manifest import MANIFEST_NAME, WEIGHTS_FOLDER, read_manifest
from roots.errors import RootsError, problem
from roots.files import usual_mode
from roots.parallel.shard import Shard


@dataclass(frozen=True)
class StoredPiece:
    """One contiguous interval of a tensor: global rows [start, stop) at `offset` in the file."""

    file: Path
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class StoredTensor:
    """Everything stored of one global tensor. `dim` is None for a tensor stored whole."""

    shape: tuple[int, ...]
    dim: int | None
    pieces: tuple[StoredPiece, ...]


def save_weights(
    folder: Path,
    tensors: Iterable[tuple[Shard, Tensor]],
    *,
    pipeline_rank: int,
    tensor_rank: int,
    expert_rank: int = 0,
) -> str:
    """Write this rank's shards to `folder/weights`; return the file's name relative to `folder`.

    Called by one data-parallel rank, or by one for each place on the expert axis: those after the
    first write their experts only. Tensors replicated over the tensor axis are written by tensor
    rank 0 only, and a copy tied to another tensor not at all.
    """
    records: dict[str, Any] = {}
    arrays: dict[str, Tensor] = {}
    for shard, tensor in tensors:
        if shard.tied_to is not None or (shard.dim is None and tensor_rank != 0):
            continue
        if expert_rank > 0 and not shard.expert:
            continue
        arrays[shard.name] = tensor.detach().cpu().contiguous()
        records[shard.name] = {
            "shape": shard.shape,
            "dim": shard.dim,
            "intervals": shard.intervals,
        }
    place = f"pipeline_{pipeline_rank:03d}_tensor_{tensor_rank:03d}"
    if expert_rank > 0:
        place += f"_expert_{expert_rank:03d}"
    name = f"{WEIGHTS_FOLDER}/{place}.safetensors"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors makes a file that its owner alone may read, whatever the umask says.
    mode = usual_mode(path)
    save_file(arrays, path, metadata={"shards": json.dumps(records)})
    path.chmod(mode)
    return name


class WeightStore:
    """The weights of one checkpoint, readable by any slice of any tensor."""

    def __init__(self, folder: Path) -> None:
        """Index the files below `folder/weights`, of a finished checkpoint those of its manifest.

        Raises RootsError if there are none, or one is not of this format.
        """
        self.folder = folder
        files = sorted((folder / WEIGHTS_FOLDER).glob("*.safetensors"))
        if (folder / MANIFEST_NAME).is_file():
            files = [folder / name for name in read_manifest(folder).weights]
        if not files:
            rule = f"holds no {WEIGHTS_FOLDER}/*.safetensors"
            fix = "give a checkpoint that ROOTS has saved"
            raise RootsError(problem("checkpoint", str(folder), rule, fix))
        self.tensors = _index(files)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which `name` is stored."""
        with safe_open(self.tensors[name].pieces[0].file, framework="pt") as file:
            return DTYPES[file.get_slice(name).get_dtype()]

    def read(self, wanted: Shard) -> Tensor:
        """Return the local tensor that `wanted` describes, in the stored dtype, on the CPU.

        Raises RootsError if the tensor is not stored, has another shape, or has a gap.
        """
        stored = self.tensors.get(wanted.name)
        if stored is None and wanted.tied_to is not None:
            stored = self.tensors.get(wanted.tied_to)
        if stored is None:
            raise self._mismatch(wanted.name, None, "is not in the checkpoint")
        if stored.shape != wanted.shape:
            rule = f"has shape {list(stored.shape)} in the checkpoint, not {list(wanted.shape)}"
            raise self._mismatch(wanted.name, list(wanted.shape), rule)
        name = wanted.name if wanted.name in self.tensors else str(wanted.tied_to)
        if stored.dim is None:
            full = _read_slice(stored.pieces[0].file, name, None, 0, 0)
            return full if wanted.dim is None else _cut(full, wanted)
        if wanted.dim not in (None, stored.dim):
            full = self._join(name, stored, ((0, stored.shape[stored.dim]),))
            return _cut(full, wanted)
        intervals = wanted.intervals or ((0, stored.shape[stored.dim]),)
        return self._join(name, stored, intervals)

    def _join(
        self, name: str, stored: StoredTensor, intervals: tuple[tuple[int, int], ...]
    ) -> Tensor:
        """Concatenate the wanted global intervals from whichever files hold them."""
        assert stored.dim is not None
        parts = []
        for start, stop in intervals:
            position = start
            for piece in stored.pieces:
                if piece.stop <= position or piece.start >= stop or piece.start > position:
                    continue
                end = min(piece.stop, stop)
                first = piece.offset + position - piece.start
                last = piece.offset + end - piece.start
                parts.append(_read_slice(piece.file, name, stored.dim, first, last))
                position = end
            if position < stop:
                rule = f"lacks rows {position} to {stop} of dimension {stored.dim}"
                raise self._mismatch(name, list(stored.shape), rule)
        return parts[0] if len(parts) == 1 else torch.cat(parts, stored.dim)

    def _mismatch(self, name: str, value: object, rule: str) -> RootsError:
        fix = f"is {self.folder} a checkpoint of another model? use the config stored beside it"
        return RootsError(problem(f"tensor {name}", value, rule, fix))


def load_weights(folder: Path, parameters: Iterable[tuple[Shard, Tensor]]) -> None:
    """Copy stored weights into local `parameters`, whatever layout wrote them."""
    store = WeightStore(folder)
    with torch.no_grad():
        for shard, parameter in parameters:
            parameter.copy_(store.read(shard))


def _index(files: list[Path]) -> dict[str, StoredTensor]:
    """Collect the pieces of every tensor over all files, in global order."""
    pieces: dict[str, list[StoredPiece]] = {}
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = {}
    for path in files:
        for shard in _shards(path):
            shapes[shard.name] = (shard.shape, shard.dim)
            offset = 0
            for start, stop in shard.intervals or [(0, 0)]:
                pieces.setdefault(shard.name, []).append(StoredPiece(path, start, stop, offset))
                offset += stop - start
    return {
        name: StoredTensor(shape, dim, tuple(sorted(pieces[name], key=lambda p: (p.start, p.stop))))
        for name, (shape, dim) in shapes.items()
    }


def _shards(path: Path) -> list[Shard]:
    """The records of one file. Raises RootsError where they do not fit its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            records = json.loads(file.metadata()["shards"])
            shards = [_shard(name, record) for name, record in records.items()]
            for shard in shards:
                if tuple(file.get_slice(shard.name).get_shape()) != _local_shape(shard):
                    raise ValueError(f"the record of {shard.name} is of another shape")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"holds no weights of ROOTS ({type(error).__name__}: {error})"
        fix = "use another checkpoint of the run"
        raise RootsError(problem("checkpoint file", str(path), rule, fix)) from None
    return shards


def _shard(name: str, record: dict[str, Any]) -> Shard:
    shape = tuple(int(size) for size in record["shape"])
    intervals = tuple((int(start), int(stop)) for start, stop in record["intervals"])
    dim = record["dim"]
    if dim is not None:
        if not isinstance(dim, int) or not 0 <= dim < len(shape):
            raise ValueError(f"{name} has no dimension {dim}")
        if not all(0 <= start <= stop <= shape[dim] for start, stop in intervals):
            raise ValueError(f"{name} has no rows {intervals}")
    elif intervals:
        raise ValueError(f"{name} is not sharded, and has intervals")
    return Shard(name, shape, dim, intervals)


def _local_shape(shard: Shard) -> tuple[int, ...]:
    if shard.dim is None:
        return shard.shape
    rows = sum(stop - start for start, stop in shard.intervals)
    return (*shard.shape[: shard.dim], rows, *shard.shape[shard.dim + 1 :])


def _read_slice(path: Path, name: str, dim: int | None, first: int, last: int) -> Tensor:
    with safe_open(path, framework="pt") as file:
        if dim is None:
            tensor: Tensor = file.get_tensor(name)
            return tensor
        index = (slice(None),) * dim + (slice(first, last),)
        part: Tensor = file.get_slice(name)[index]
        return part


def _cut(full: Tensor, wanted: Shard) -> Tensor:
    assert wanted.dim is not None
    parts = [full.narrow(wanted.dim, start, stop - start) for start, stop in wanted.intervals]
    return torch.cat(parts, wanted.dim)
