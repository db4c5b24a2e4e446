"""Reading tensors, or boxes of them, from a torch.distributed.checkpoint folder in one process.

The format keeps a tensor as chunks in files `__RANK_N.distcp` and their places in `.metadata`, a
pickle. A pickle can run any code, so this one is read with the classes alone that belong into it;
torch's own reader takes every class.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

_CLASSES: Mapping[str, frozenset[str]] = {
    "collections": frozenset({"OrderedDict"}),
    # torch's own writer says where it wrote; Python 3.13 and 3.14 call the module differently.
    "pathlib": frozenset({"PosixPath"}),
    "pathlib._local": frozenset({"PosixPath"}),
    "torch": frozenset({"Size"}),
    # A function that looks a name up in a table.
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo", "_StoragePrefix"}),
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.planner": frozenset(
        {"BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"}
    ),
}
# What reading damaged bytes as a pickle or as a file of torch raises.
DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError),
    *(TypeError, ValueError, OverflowError, MemoryError, RecursionError, AssertionError),
    RuntimeError,
)


class UnreadableMetadata(ValueError):
    """`.metadata` is damaged, or names a class that does not belong into it."""


@dataclass(frozen=True)
class DistributedTensor:
    """Global shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class DistributedCheckpoint:
    """The tensors of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read `.metadata`. Raises OSError if it is missing, UnreadableMetadata if it is torn."""
        self._reader = FileSystemReader(folder)
        self._metadata = _read_metadata(folder / ".metadata")
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self.tensors = {
            name: DistributedTensor(tuple(stored.size), stored.properties.dtype)
            for name, stored in self._metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

    @property
    def file_names(self) -> list[str]:
        """The files that hold chunks, as the metadata names them."""
        return sorted({place.relative_path for place in self._metadata.storage_data.values()})

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The box of `name` that starts at `offsets`, read from the chunks that it touches."""
        stored = self._metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        # Whatever no chunk covered would show as NaN.
        target = torch.full(tuple(sizes), torch.nan).to(stored.properties.dtype)
        plan = LoadPlan(create_read_items_for_chunk_list(name, stored, [box]))
        self._reader.read_data(plan, _OneTensor(target)).wait()
        return target


class _MetadataUnpickler(pickle.Unpickler):
    """Makes objects of the classes that belong into `.metadata`, and of no other."""

    def find_class(self, module: str, name: str) -> object:
        """The class, or a dtype of torch. Raises UnpicklingError for any other name."""
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which does not belong into it")


def _read_metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        _check(metadata)
    except DAMAGE as error:
        raise UnreadableMetadata(f"{type(error).__name__}: {error}") from None
    assert isinstance(metadata, Metadata)
    return metadata


def _check(metadata: object) -> None:
    """Raise TypeError if anything that is read later is not of its type."""
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise TypeError("holds no metadata of a checkpoint")
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is no name of a tensor")
        if not isinstance(stored, TensorStorageMetadata):
            continue
        boxes = [(box.offsets, box.sizes) for box in stored.chunks]
        sizes = [stored.size, *(size for box in boxes for size in box)]
        if not isinstance(stored.properties.dtype, torch.dtype) or not all(map(_is_shape, sizes)):
            raise TypeError(f"the description of {name} is damaged")
    for index, place in metadata.storage_data.items():
        numbers = (place.offset, place.length)
        if not isinstance(index, MetadataIndex) or not isinstance(place.relative_path, str):
            raise TypeError("the places of tensors are damaged")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise TypeError(f"the place of {index.fqn} is damaged")


def _is_shape(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(
        isinstance(size, int) and size >= 0 for size in value
    )


class _OneTensor(DefaultLoadPlanner):
    """Hands out the one tensor that is read."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Every read goes into it."""
        return self._target
