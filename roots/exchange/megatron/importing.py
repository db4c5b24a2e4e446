"""From a `torch_dist` checkpoint of Megatron-core to one of ROOTS, one tensor at a time.

Such a folder holds `.metadata` and `*.distcp` (torch.distributed.checkpoint) and `common.pt`, in
which a run of Megatron-LM has its arguments. Layers that are alike are stored as one tensor with
the layers in front, and experts as one with the experts in front of their own dimensions; of these
one layer's and one expert's values at a time are read.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from roots.checkpoint.safetensors_writer import TensorPlan
from roots.config.load import load_config
from roots.errors import RootsError, problem
from roots.exchange.foreign_folder import file_in
from roots.exchange.hf.config_map import Fields, Refusal
from roots.exchange.hf.model_files import common_dtype
from roots.exchange.imported_checkpoint import (
    DEFAULT_SHARD_BYTES,
    Exchanged,
    check_depth,
    check_source,
    new_folder,
    run_config,
    seal,
    write_weights,
)
from roots.exchange.megatron.arguments import differing_fields, megatron_model
from roots.exchange.megatron.limits import refused_arguments, refused_fields
from roots.exchange.megatron.saved_arguments import stored_arguments
from roots.exchange.megatron.tensor_map import megatron_tensors
from roots.log import Report, silent
from roots.parallel.distributed_checkpoint import DAMAGE, DistributedCheckpoint, UnreadableMetadata
from roots.planner.parameters import count_parameters

_ARCHITECTURE = "GPTModel"
_TABLE = "embedding.word_embeddings.weight"
_BODY = ("embedding.", "decoder.", "output_layer.")
_STACKS = (
    re.compile(r"(decoder\.layers)\.(\D.*)"),
    re.compile(r"(.*\.mlp\.experts\.experts)\.(\D.*)"),
)
# A norm of its own has the name that it has where it is fused into the product behind it.
_FUSED_NORMS = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}
_COMMON = "common.pt"


def import_megatron(
    source: Path,
    target: Path,
    *,
    config: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    report: Report = silent,
) -> Exchanged:
    """Write the GPTModel in the folder `source` as the checkpoint `target`.

    `config` is a YAML with the `model` section, which has to agree with the arguments in common.pt
    if there are any; without it they say what the model is. Raises RootsError where neither does,
    for what ROOTS does not have, and for tensors that do not fit.
    """
    files = MegatronFiles(source)
    if _TABLE not in files.tensors:
        rule = f"is not in {source}, so no GPTModel was saved there"
        fix = "give the iter_NNNNNNN folder of a training of a GPTModel"
        raise RootsError(problem(f"tensor {_TABLE}", None, rule, fix))
    table_rows = files.tensors[_TABLE].shape[0]
    kept = dtype or common_dtype(files.tensors.values())
    fields = _model_fields(config, source, table_rows)
    check_depth(fields, files, str(source / _COMMON) if config is None else str(config))
    made = run_config(fields, kept, None)
    rules = list(megatron_tensors(made.model, table_rows))
    check_source(files, rules)
    with new_folder(target) as folder:
        names = write_weights(folder, files, rules, dtype, shard_bytes, report)
        seal(folder, made, names)
    return Exchanged(
        folder=target,
        architecture=_ARCHITECTURE,
        tensors=len(rules),
        parameters=count_parameters(made.model).total,
        num_bytes=sum((target / name).stat().st_size for name in names),
        files=tuple(names),
        tokenizer="none (a Megatron folder has none; set data.tokenizer, or give --tokenizer)",
    )


class MegatronFiles:
    """The tensors of the model, those of stacks one by one: decoder.layers.3.mlp..., and within
    it experts.experts.5.linear_fc1...
    """

    def __init__(self, folder: Path) -> None:
        """Read the metadata. Raises RootsError if there is none."""
        self.place = folder
        if file_in(folder, ".metadata") is None:
            rule = "holds no .metadata, so it is no torch_dist checkpoint"
            fix = "give the iter_NNNNNNN folder of a training with --dist-ckpt-format torch_dist"
            raise RootsError(problem("folder", str(folder), rule, fix))
        try:
            self._stored = DistributedCheckpoint(folder)
            missing = [name for name in self._stored.file_names if file_in(folder, name) is None]
        except (OSError, UnreadableMetadata) as error:
            rule = f"is not readable ({error})"
            fix = "copy the folder again"
            raise RootsError(problem("metadata", str(folder / ".metadata"), rule, fix)) from None
        if missing:
            rule, fix = "is missing, but .metadata names it", "copy the folder again"
            raise RootsError(problem("model file", str(folder / missing[0]), rule, fix))
        self._check_bytes()
        self.tensors: dict[str, TensorPlan] = {}
        # Of every tensor the stored one that holds it, and its place in the first dimensions there.
        self._boxes: dict[str, tuple[str, tuple[int, ...]]] = {}
        for stored_name, stored in self._stored.tensors.items():
            if not stored_name.startswith(_BODY):
                continue
            for name, place in _members(stored_name, stored.shape):
                shape = stored.shape[len(place) :]
                self.tensors[name] = TensorPlan(name, shape, stored.dtype)
                self._boxes[name] = (stored_name, place)

    def _check_bytes(self) -> None:
        """Refuse sizes that the files cannot hold, before anything is done for each layer."""
        described = sum(
            math.prod(stored.shape) * stored.dtype.itemsize
            for stored in self._stored.tensors.values()
        )
        held = sum((self.place / name).stat().st_size for name in self._stored.file_names)
        if described > held:
            rule = f"describes {described:,} bytes of tensors, but its files hold {held:,}"
            where = str(self.place / ".metadata")
            raise RootsError(problem("metadata", where, rule, "copy the folder again"))

    def read(self, name: str) -> Tensor:
        """The values of one tensor."""
        stored, place = self._boxes[name]
        shape = self.tensors[name].shape
        offsets, sizes = (*place, *[0] * len(shape)), (*[1] * len(place), *shape)
        try:
            return self._stored.read(stored, offsets, sizes).reshape(shape)
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
        except DAMAGE as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        rule = f"of {self.place} is not readable ({reason})"
        raise RootsError(problem(f"tensor {stored}", None, rule, "copy the folder again"))


def _members(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors in a stored one: their names, and where in its first dimensions each is."""
    for theirs, fused in _FUSED_NORMS.items():
        name = name.replace(theirs, fused)
    members: list[tuple[str, tuple[int, ...]]] = [(name, ())]
    for stack in _STACKS:
        members = [
            (f"{match[1]}.{number}.{match[2]}", (*place, number)) if match else (each, place)
            for each, place in members
            for match in [stack.fullmatch(each)]
            for number in (range(shape[len(place)]) if match else range(1))
        ]
    return members


def _model_fields(config: Path | None, source: Path, table_rows: int) -> Fields:
    """Fields of `model` from `config`, or else from the arguments that the folder holds.

    Raises RootsError with every value that cannot be imported and, where both are given, every
    field in which they differ.
    """
    path = source / _COMMON
    arguments = stored_arguments(path, needed=config is None)
    model = None if config is None else load_config(config).model
    fields = [] if model is None else refused_fields(model, table_rows)
    refused = refused_arguments(arguments)
    if model is not None and not refused:
        known = {refusal.key for refusal in fields}
        found = differing_fields(model, arguments)
        fields += [refusal for refusal in found if refusal.key not in known]
    lines = [_line(f"model.{refusal.key}", refusal) for refusal in fields]
    lines += [_line(f"argument {refusal.key} of {path}", refusal) for refusal in refused]
    if lines:
        raise RootsError(*lines)
    return megatron_model(arguments, table_rows) if model is None else model.model_dump()


def _line(subject: str, refusal: Refusal) -> str:
    return problem(subject, refusal.value, refusal.rule, refusal.fix)
