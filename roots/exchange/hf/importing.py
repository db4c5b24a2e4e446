"""From a Hugging Face folder to a checkpoint of ROOTS, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from roots.exchange.hf.family import Family
from roots.exchange.hf.model_files import ModelFiles, TensorSource, common_dtype, read_json
from roots.exchange.hf.registry import family_of, read_model
from roots.exchange.hf.special_tokens import data_tokens
from roots.exchange.hf.tensor_map import Rule
from roots.exchange.hf.tokenizer_files import (
    GENERATION_NAME,
    TOKENIZER_FOLDER,
    TOKENIZER_NAME,
    copy_files,
    copy_tokenizer,
)
from roots.exchange.imported_checkpoint import (
    DEFAULT_SHARD_BYTES,
    Exchanged,
    check_source,
    new_folder,
    run_config,
    seal,
    write_weights,
)
from roots.exchange.safetensors_writer import TensorPlan
from roots.planner.parameters import count_parameters


def import_hf(
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
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
    kept = dtype or common_dtype(files.tensors.values())
    has_tokenizer = (source / TOKENIZER_NAME).is_file()
    where = str(target.resolve() / TOKENIZER_FOLDER) if has_tokenizer else None
    architecture = str(fields.get("architecture", "decoder"))
    config = run_config(fields, kept, where, data_tokens(source, architecture, tree))
    rules = list(family.tensors(config.model))
    found = _Named(files, family, rules)
    check_source(found, rules)
    with new_folder(target) as folder:
        names = write_weights(folder, found, rules, dtype, shard_bytes)
        copied = copy_tokenizer(source, folder / TOKENIZER_FOLDER)
        copied += copy_files(source, folder / TOKENIZER_FOLDER, [GENERATION_NAME])
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

    def __init__(self, files: TensorSource, family: Family, rules: Sequence[Rule]) -> None:
        self._files = files
        used = {part.name for rule in rules for part in rule.parts}
        is_body = not any(name.startswith(family.prefix) for name in files.tensors)
        prefix = family.prefix if is_body else ""
        self._names = {
            prefix + name: name
            for name in files.tensors
            if prefix + name in used or not family.is_ignored(prefix + name)
        }

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
