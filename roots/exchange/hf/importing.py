"""From a Hugging Face folder to a checkpoint of ROOTS, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from roots.checkpoint.safetensors_writer import TensorPlan
from roots.errors import RootsError, problem
from roots.exchange.foreign_folder import file_in
from roots.exchange.hf.config_map import Fields
from roots.exchange.hf.family import Family
from roots.exchange.hf.model_files import ModelFiles, TensorSource, common_dtype, read_json
from roots.exchange.hf.registry import family_of, read_model
from roots.exchange.hf.special_tokens import data_tokens
from roots.exchange.hf.tensor_map import Rule
from roots.exchange.hf.tokenizer_files import (
    MODEL_NAMES,
    TOKENIZER_FOLDER,
    TOKENIZER_NAME,
    check_vocabulary,
    copy_files,
    copy_tokenizer,
)
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
from roots.log import Report, get_logger, silent
from roots.planner.parameters import count_parameters
from roots.tokenizer.tokenizer import load_tokenizer

_logger = get_logger(__name__)


def import_hf(
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    report: Report = silent,
) -> Exchanged:
    """Write the model in the folder `source` as the checkpoint `target`, in `dtype` or as it is.

    Raises RootsError for an architecture or a value that ROOTS does not have, and for tensors that
    are missing, superfluous or of another shape; nothing is left behind then.
    """
    path = source / "config.json"
    tree = read_json(path, "config")
    family = family_of(tree, path)
    fields = read_model(family, tree, path)
    files = ModelFiles(source)
    check_depth(fields, files, str(path))
    found = _Named(files, family)
    fields = found.with_own_head(fields)
    kept = dtype or common_dtype(found.tensors.values())
    has_tokenizer = file_in(source, TOKENIZER_NAME) is not None
    where = str(target.resolve() / TOKENIZER_FOLDER) if has_tokenizer else None
    architecture = str(fields.get("architecture", "decoder"))
    config = run_config(fields, kept, where, data_tokens(source, architecture, tree))
    rules = list(family.tensors(config.model))
    found.keep(rules)
    check_source(found, rules)
    if has_tokenizer:
        check_vocabulary(load_tokenizer(source), str(source), config.model.vocab_size)
    with new_folder(target) as folder:
        names = write_weights(folder, found, rules, dtype, shard_bytes, report)
        copied = copy_tokenizer(source, folder / TOKENIZER_FOLDER)
        copied += copy_files(source, folder / TOKENIZER_FOLDER, MODEL_NAMES)
        seal(folder, config, [*names, *(f"{TOKENIZER_FOLDER}/{name}" for name in copied)])
    size = sum((target / name).stat().st_size for name in names)
    return Exchanged(
        folder=target,
        architecture=family.architecture,
        tensors=len(rules),
        parameters=count_parameters(config.model).total,
        num_bytes=size,
        files=tuple(names),
        tokenizer=where or f"none ({source / TOKENIZER_NAME} does not exist)",
    )


class _Named(TensorSource):
    """A folder's tensors by the names of the whole model, without those that carry nothing."""

    def __init__(self, files: TensorSource, family: Family) -> None:
        self._files = files
        self._family = family
        present = {family.name_of(name): name for name in files.tensors}
        is_body = not any(name.startswith(family.prefix) for name in present)
        prefix = family.prefix if is_body else ""
        self._names = {
            prefix + name: stored
            for name, stored in present.items()
            if not family.is_ignored(prefix + name)
        }
        dropped = sorted(
            name for name in present if any(re.fullmatch(each, name) for each in family.dropped)
        )
        if dropped:
            _logger.info("left out, as ROOTS has no such head: %s", ", ".join(dropped))

    def with_own_head(self, fields: Fields) -> Fields:
        """The fields, of a head of its own if the file holds one that is not the tied table.

        As transformers 5 has it: what a config ties and a file holds twice with other values is two
        matrices. Tables that ROOTS has once must be equal. Raises RootsError.
        """
        head = self._family.copies[0][0] if self._family.copies else ""
        for copy, original in self._family.copies:
            if copy not in self._names or original not in self._names:
                continue
            if copy == head and not fields.get("tied_embeddings"):
                continue
            if torch.equal(self.read(copy), self.read(original)):
                del self._names[copy]
            elif copy == head:
                _logger.info("%s is not %s, so the head is not tied", copy, original)
                fields = {**fields, "tied_embeddings": False}
            else:
                rule = f"must equal {original}: ROOTS has one table for both"
                fix = "this model cannot be imported"
                raise RootsError(problem(f"tensor {copy}", None, rule, fix))
        return fields

    def keep(self, rules: Sequence[Rule]) -> None:
        """Forget copies of the table where the rules read none."""
        used = {part.name for rule in rules for part in rule.parts}
        for copy, original in self._family.copies:
            if copy not in used and original in self._names:
                self._names.pop(copy, None)

    @property
    def place(self) -> Path:
        """The folder."""
        return self._files.place

    @property
    def tensors(self) -> dict[str, TensorPlan]:
        """Shapes and dtypes by the whole model's names."""
        return {full: self._files.tensors[name] for full, name in self._names.items()}

    def read(self, name: str) -> Tensor:
        """The values of one tensor."""
        return self._files.read(self._names[name])
