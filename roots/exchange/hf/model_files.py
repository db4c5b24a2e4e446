"""The safetensors files of a Hugging Face folder: one, or several with an index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from roots.checkpoint.dtypes import DTYPES
from roots.checkpoint.safetensors_writer import TensorPlan
from roots.errors import RootsError, problem
from roots.exchange.foreign_folder import file_in

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_COPY = "copy it again from where the model comes from"


class TensorSource(Protocol):
    """Tensors by name, of which one at a time is in memory."""

    @property
    def place(self) -> Path:
        """Where they lie, for messages."""

    @property
    def tensors(self) -> Mapping[str, TensorPlan]:
        """Name, shape and dtype of each."""

    def read(self, name: str) -> Tensor:
        """The values of one."""


class ModelFiles:
    """The tensors of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        """Index all files. Raises RootsError for a missing or torn one."""
        self.place = folder
        self.tensors: dict[str, TensorPlan] = {}
        self._files: dict[str, Path] = {}
        for path in _paths(folder):
            self._index(path)

    def read(self, name: str) -> Tensor:
        """The values of one tensor."""
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if name in self._files:
                        rule = f"is in {self._files[name]} and in {path}"
                        fix = "keep the file that belongs to the model"
                        raise RootsError(problem(f"tensor {name}", None, rule, fix))
                    part = file.get_slice(name)
                    dtype = part.get_dtype()
                    if dtype not in DTYPES:
                        rule = f"has dtype {dtype} in {path}, which ROOTS does not read"
                        fix = "convert the model to F32, BF16 or F16 first"
                        raise RootsError(problem(f"tensor {name}", None, rule, fix))
                    shape = tuple(part.get_shape())
                    self.tensors[name] = TensorPlan(name, shape, DTYPES[dtype])
                    self._files[name] = path
        except SafetensorError as error:
            rule = f"is no whole safetensors file ({str(error).splitlines()[0]})"
            raise RootsError(problem("model file", str(path), rule, _COPY)) from None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file. Raises RootsError where there is none."""
    if file_in(path.parent, path.name) is None:
        rule = f"does not exist, so {path.parent} is no folder of a Hugging Face model"
        fix = "give a folder with config.json and *.safetensors"
        raise RootsError(problem(what, str(path), rule, fix))
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RootsError(problem(what, str(path), f"is not JSON ({error})", _COPY)) from None
    if not isinstance(tree, dict):
        raise RootsError(problem(what, str(path), "must hold a JSON object", _COPY))
    return tree


def write_index(folder: Path, files: Mapping[str, Iterable[TensorPlan]]) -> None:
    """Write the index of several files: which file holds which tensor, and the bytes of all."""
    places = {plan.name: name for name, plans in files.items() for plan in plans}
    total = sum(plan.num_bytes for plans in files.values() for plan in plans)
    tree = {"metadata": {"total_size": total}, "weight_map": places}
    text = json.dumps(tree, indent=2, sort_keys=True) + "\n"
    (folder / INDEX_NAME).write_text(text, encoding="utf-8")


def common_dtype(plans: Iterable[TensorPlan]) -> torch.dtype:
    """The dtype of most of the floating values; masks and ids have none to keep."""
    counts: dict[torch.dtype, int] = {torch.float32: 0}
    for plan in plans:
        if not plan.dtype.is_floating_point:
            continue
        counts[plan.dtype] = counts.get(plan.dtype, 0) + plan.num_bytes // plan.dtype.itemsize
    return max(counts, key=lambda dtype: counts[dtype])


def _paths(folder: Path) -> list[Path]:
    """The files that the index names, or the single one. Raises RootsError for a missing one."""
    index = file_in(folder, INDEX_NAME)
    if index is not None:
        places = read_json(index, "index").get("weight_map")
        if not isinstance(places, dict) or not places or not all(map(_is_text, places.values())):
            rule = "must hold a weight_map that names the file of every tensor"
            raise RootsError(problem("index", str(index), rule, _COPY))
        names = sorted(set(places.values()))
        missing = [folder / name for name in names if file_in(folder, name) is None]
        if missing:
            rule = f"is missing, but {INDEX_NAME} names it"
            raise RootsError(*(problem("model file", str(path), rule, _COPY) for path in missing))
        return [folder / name for name in names]
    if file_in(folder, SINGLE_NAME) is None:
        rule = f"holds neither {SINGLE_NAME} nor {INDEX_NAME}"
        fix = "save the model with save_pretrained, which writes safetensors"
        if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
            rule = f"holds its weights in {pickles[0]}, a pickle, which could run code"
            fix = "load the model in transformers and save it by save_pretrained as safetensors"
        raise RootsError(problem("folder", str(folder), rule, fix))
    return [folder / SINGLE_NAME]


def _is_text(value: object) -> bool:
    return isinstance(value, str)
