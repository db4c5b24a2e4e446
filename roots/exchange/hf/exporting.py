"""From a checkpoint of any layout to a Hugging Face folder, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from roots.checkpoint import check_model, read_config
from roots.checkpoint.safetensors_writer import SafetensorsWriter, TensorPlan, split_by_bytes
from roots.checkpoint.weights import WeightStore
from roots.config.run import RunConfig
from roots.errors import RootsError, problem
from roots.exchange.hf.config_map import Fields
from roots.exchange.hf.model_files import SINGLE_NAME, common_dtype, write_index
from roots.exchange.hf.registry import choose_family
from roots.exchange.hf.tensor_map import Part, Rule
from roots.exchange.hf.tokenizer_files import (
    TOKENIZER_FOLDER,
    check_vocabulary,
    fed_documents,
    find_tokenizer,
    generation_settings,
    token_ids,
    write_tokenizer,
)
from roots.exchange.imported_checkpoint import DEFAULT_SHARD_BYTES, Exchanged, new_folder
from roots.log import Report, silent
from roots.parallel.shard import Shard
from roots.planner.parameters import count_parameters
from roots.tokenizer.special_tokens import (
    GENERATION_NAME,
    SPECIAL_MAP_NAME,
    TOKENIZER_CONFIG_NAME,
    read_json,
)
from roots.tokenizer.tokenizer import Tokenizer, load_tokenizer

_DTYPE_KEYS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint seen as tensors of another format."""

    store: WeightStore
    rules: Sequence[Rule]

    def check(self) -> None:
        """Raises RootsError with every tensor that is missing or of another shape."""
        lines = []
        for rule in self.rules:
            stored = self.store.tensors.get(rule.name)
            if stored is None or stored.shape != rule.shape:
                found = None if stored is None else list(stored.shape)
                must = f"must be in {self.store.folder} with shape {list(rule.shape)}"
                fix = "give a checkpoint whose weights belong to its config.yaml"
                lines.append(problem(f"tensor {rule.name}", found, must, fix))
        if lines:
            raise RootsError(*lines)

    def plans(self, dtype: torch.dtype | None) -> list[TensorPlan]:
        """All tensors of the other format, in `dtype` or as they are stored."""
        return [
            TensorPlan(part.name, part.shape, dtype or self.store.dtype(rule.name))
            for rule in self.rules
            for part in rule.parts
        ]

    def read(self, rule: Rule, part: Part) -> Tensor:
        """The values of one part, read from those rows of the checkpoint's tensor alone."""
        wanted = Shard(rule.name, rule.shape, 0, (rule.rows_of(part),))
        return part.to_theirs(self.store.read(wanted))


def open_checkpoint(checkpoint: Path) -> tuple[RunConfig, WeightStore]:
    """Config and weights of a finished checkpoint. Raises RootsError if they are damaged."""
    config = read_config(checkpoint)
    check_model(checkpoint)
    return config, WeightStore(checkpoint)


def export_hf(
    checkpoint: Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    report: Report = silent,
    tokenizer: str | None = None,
) -> Exchanged:
    """Write the finished `checkpoint` as the folder `target` that transformers loads.

    `tokenizer` None takes the checkpoint's own. Raises RootsError for a model that no architecture
    of Hugging Face expresses, and for damaged or missing weights; nothing is left behind then.
    """
    config, store = open_checkpoint(checkpoint)
    family, tree = choose_family(config.model)
    model = StoredModel(store, list(family.tensors(config.model)))
    model.check()
    plans = model.plans(dtype)
    words, reason = find_tokenizer(config, checkpoint, tokenizer)
    fed = fed_documents(checkpoint)
    found = None
    if words is not None:
        found = load_tokenizer(words, fed=fed)
        check_vocabulary(found, words, config.model.vocab_size)
    # What an imported model came with, unless it is to have another tokenizer.
    own = checkpoint / TOKENIZER_FOLDER if tokenizer is None else None
    with new_folder(target) as folder:
        names = _write_model(folder, model, plans, shard_bytes, report)
        end = None if found is None else found.end_of_document
        ids = token_ids(found, _begin_token(config, end), own)
        padding = {"pad_token_id": _config_padding(config, ids)}
        _write_json(folder / "config.json", {**tree, **ids, **padding, **_dtype_keys(plans)})
        _write_json(folder / GENERATION_NAME, generation_settings(ids, own))
        if words is not None and found is not None:
            write_tokenizer(words, folder, fed)
            _name_padding(folder, found)
    return Exchanged(
        folder=target,
        architecture=family.architecture,
        tensors=len(plans),
        parameters=count_parameters(config.model).total,
        num_bytes=sum(plan.num_bytes for plan in plans),
        files=tuple(names),
        tokenizer=words or f"none ({reason})",
    )


def _begin_token(config: RunConfig, end: int | None) -> int | None:
    """What an encoder-decoder was trained to write after; None for others."""
    if config.model.architecture != "encoder_decoder":
        return None
    return end if config.data.begin_token is None else config.data.begin_token


def _config_padding(config: RunConfig, ids: Fields) -> int | None:
    """What config.json says of padding: null but for T5, which makes its decoder's input of it.

    transformers gives the row of the embedding that config.json names no gradient, in the Llamas,
    Qwens, Mixtral and BERT; ROOTS trains every row. A missing key would mean 0 in BERT.
    """
    if config.model.architecture != "encoder_decoder":
        return None
    padding: int | None = ids.get("pad_token_id")
    return padding


def _name_padding(folder: Path, words: Tokenizer) -> None:
    """Let the tokenizer in `folder` pad by the end of a document, unless its files name a token.

    Without one transformers makes no batch of two prompts.
    """
    path = folder / TOKENIZER_CONFIG_NAME
    tree, others = read_json(path), read_json(folder / SPECIAL_MAP_NAME)
    if tree.get("pad_token") is None and others.get("pad_token") is None:
        _write_json(path, {**tree, "pad_token": words.name_of(words.end_of_document)})


def _write_model(
    folder: Path,
    model: StoredModel,
    plans: Sequence[TensorPlan],
    shard_bytes: int,
    report: Report,
) -> list[str]:
    """Write the tensors, in one file or in several with an index; return the files' names."""
    parts = {part.name: (rule, part) for rule in model.rules for part in rule.parts}
    shards = split_by_bytes(plans, shard_bytes)
    written, total = 0, sum(plan.num_bytes for plan in plans)
    names = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    if len(shards) == 1:
        names = [SINGLE_NAME]
    for name, shard in zip(names, shards, strict=True):
        with SafetensorsWriter(folder / name, shard, {"format": "pt"}) as writer:
            for plan in writer.order:
                writer.write(model.read(*parts[plan.name]).to(plan.dtype))
                written += plan.num_bytes
                report(written, total)
    if len(shards) > 1:
        write_index(folder, dict(zip(names, shards, strict=True)))
    return names


def _dtype_keys(plans: Sequence[TensorPlan]) -> Fields:
    """The dtype by its newer and its older key."""
    name = _DTYPE_KEYS.get(common_dtype(plans), "float32")
    return {"dtype": name, "torch_dtype": name}


def _write_json(path: Path, tree: Fields) -> None:
    path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")
