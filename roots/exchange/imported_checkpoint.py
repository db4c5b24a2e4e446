"""What imports of all formats share: tensors checked against the rules, written as a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from roots.checkpoint import manifest
from roots.checkpoint.safetensors_writer import SafetensorsWriter, TensorPlan, split_by_bytes
from roots.config.load import dump_config, parse_config
from roots.config.run import RunConfig
from roots.errors import RootsError, problem
from roots.exchange.hf.model_files import TensorSource
from roots.exchange.hf.tensor_map import Part, Rule
from roots.files import sync_folder, write_atomically
from roots.lock import Place, lock_beside, owned
from roots.log import Report, silent

DEFAULT_SHARD_BYTES = 5 * 10**9
_MAX_LINES = 12
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Exchanged:
    """What an import or export wrote."""

    folder: Path
    architecture: str
    tensors: int
    parameters: int
    num_bytes: int
    files: tuple[str, ...]
    tokenizer: str


@contextlib.contextmanager
def new_folder(target: Path, option: str = "--to") -> Iterator[Path]:
    """A temporary folder that becomes `target` when all went well, and vanishes otherwise.

    Raises RootsError if `target` exists and is not empty, or another process is making it.
    """
    _refuse_full(target, option)
    fix = "wait for that process, or name another folder"
    place = Place(option, "the folder is made there", fix, value=str(target))
    with owned(lock_beside(target), place):
        _refuse_full(target, option)
        with _made_beside(target, option) as temporary:
            yield temporary


def _refuse_full(target: Path, option: str) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        rule = "exists already, and nothing is overwritten"
        raise RootsError(problem(option, str(target), rule, "name a new folder"))


@contextlib.contextmanager
def _made_beside(target: Path, option: str) -> Iterator[Path]:
    """The work of `new_folder`, for the one process that owns `target`."""
    temporary = target.with_name(f".{target.name}.partial")
    try:
        # What a process left that was killed here.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        rule = f"cannot be written ({error.strerror or error})"
        fix = "name a folder that can be written, on a disk with room"
        raise RootsError(problem(option, str(target), rule, fix)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_depth(fields: Mapping[str, object], source: TensorSource, where: str) -> None:
    """Refuse more layers or experts than there are tensors, before anything is done for each.

    Raises RootsError.
    """
    experts = fields.get("moe")
    counts = {
        "layers": fields.get("num_layers"),
        "layers of the encoder": fields.get("num_encoder_layers"),
        "experts": experts.get("num_experts") if isinstance(experts, dict) else None,
    }
    for what, count in counts.items():
        if isinstance(count, int) and count > len(source.tensors):
            rule = f"are more than the {len(source.tensors)} tensors of {source.place}"
            fix = "use the config that the weights were saved with"
            raise RootsError(problem(f"{what} of {where}", count, rule, fix))


def check_source(source: TensorSource, rules: Sequence[Rule]) -> None:
    """Compare names and shapes with what the rules read.

    Raises RootsError with every tensor that is missing, of another shape, or without a place.
    """
    lines = []
    used = {part.name: part for rule in rules for part in rule.parts}
    for name, part in used.items():
        plan = source.tensors.get(name)
        if plan is None:
            fix = "is the config of this model another one's? copy the model again"
            lines.append(problem(f"tensor {name}", None, f"is not in {source.place}", fix))
        elif plan.shape != part.shape:
            rule = f"must have shape {list(part.shape)} by the config of {source.place}"
            fix = "use the config that the weights were saved with"
            lines.append(problem(f"tensor {name}", list(plan.shape), rule, fix))
    for name in source.tensors:
        if name not in used:
            rule = f"is in {source.place}, and a model of this config has no place for it"
            fix = "use the config that the weights were saved with"
            lines.append(problem(f"tensor {name}", None, rule, fix))
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], f"... and {len(lines) - _MAX_LINES} more tensors that differ"]
    if lines:
        raise RootsError(*lines)


def write_weights(
    folder: Path,
    source: TensorSource,
    rules: Sequence[Rule],
    dtype: torch.dtype | None,
    shard_bytes: int,
    report: Report = silent,
) -> list[str]:
    """Write the tensors that `rules` make of `source` as weights of a checkpoint; file names.

    One tensor is in memory at a time. `dtype` None keeps that of the first part of each.
    """
    by_name = {rule.name: rule for rule in rules}
    plans = [
        TensorPlan(rule.name, rule.shape, dtype or source.tensors[rule.parts[0].name].dtype)
        for rule in rules
    ]
    (folder / manifest.WEIGHTS_FOLDER).mkdir()
    names = []
    written, total = 0, sum(plan.num_bytes for plan in plans)
    for number, part in enumerate(split_by_bytes(plans, shard_bytes)):
        # Rows of a tensor are read alone, so each is recorded as the one slice of its first dim.
        records = {
            plan.name: {"shape": plan.shape, "dim": 0, "intervals": [[0, plan.shape[0]]]}
            for plan in part
        }
        names.append(f"{manifest.WEIGHTS_FOLDER}/part_{number:05d}.safetensors")
        metadata = {"shards": json.dumps(records)}
        with SafetensorsWriter(folder / names[-1], part, metadata) as writer:
            for plan in writer.order:
                writer.write(_joined(source, by_name[plan.name], plan.dtype))
                written += plan.num_bytes
                report(written, total)
    return names


def run_config(
    fields: dict[str, object],
    dtype: torch.dtype,
    tokenizer: str | None,
    tokens: Mapping[str, int] | None = None,
) -> RunConfig:
    """The config beside imported weights; `tokens` are fields of `data` that name special ones.

    Raises RootsError for a dtype that nobody trains in.
    """
    if dtype not in _PRECISIONS:
        fix = "give --dtype fp32, bf16 or fp16"
        raise RootsError(problem("dtype", str(dtype), "is none that ROOTS trains in", fix))
    precision = {"precision": _PRECISIONS[dtype]}
    data = {"tokenizer": tokenizer, **(tokens or {})}
    return parse_config({"model": fields, "training": precision, "data": data})


def seal(folder: Path, config: RunConfig, names: Sequence[str]) -> None:
    """Write the config and, last, the manifest of a checkpoint that no run has trained yet."""
    write_atomically(folder / manifest.CONFIG_NAME, dump_config(config))
    layout = manifest.Layout(1, 1, 1, 0, config.training.precision)
    files = manifest.describe_files(folder, [manifest.CONFIG_NAME, *names])
    sealed = manifest.Manifest(0, 0, layout, files, saved=int(time.time()))
    manifest.write_manifest(folder, sealed)


def _joined(source: TensorSource, rule: Rule, dtype: torch.dtype) -> Tensor:
    def read(part: Part) -> Tensor:
        return source.read(part.name)

    return rule.join(read, dtype)
