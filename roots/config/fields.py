"""The fields of a config by their dotted names, and which of them a wrong name stands for."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from roots.config.run import RunConfig
from roots.config.section import is_section

# Share of equal characters from which on a name elsewhere in the config is thought to be meant.
_NEAR_ELSEWHERE = 0.8

# What other programs call a field, where its name here is not the nearest.
FOREIGN_NAMES = {
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "attn_dropout": "model.attention_dropout",
    "batch_size": "training.global_batch_size",
    "block_size": "model.sequence_length",
    "clip_grad": "training.gradient_clipping",
    "data_path": "data.train",
    "dtype": "training.precision",
    "eval_interval": "evaluation.every_steps",
    "eval_iters": "evaluation.steps",
    "eval_steps": "evaluation.every_steps",
    "ffn_dim": "model.ffn_hidden_size",
    "gradient_accumulation_steps": "training.global_batch_size",
    "hidden_act": "model.activation",
    "initializer_range": "model.init_std",
    "intermediate_size": "model.ffn_hidden_size",
    "layer_norm_epsilon": "model.norm_epsilon",
    "log_interval": "tracking.log_every_steps",
    "logging_steps": "tracking.log_every_steps",
    "lr": "optimizer.learning_rate",
    "lr_decay_iters": "schedule.decay_steps",
    "lr_decay_style": "schedule.name",
    "lr_scheduler_type": "schedule.name",
    "lr_warmup_iters": "schedule.warmup_steps",
    "max_grad_norm": "training.gradient_clipping",
    "max_iters": "training.steps",
    "max_lr": "optimizer.learning_rate",
    "max_position_embeddings": "model.sequence_length",
    "max_seq_len": "model.sequence_length",
    "max_steps": "training.steps",
    "min_lr": "schedule.min_learning_rate",
    "n_embd": "model.hidden_size",
    "n_head": "model.num_heads",
    "n_kv_head": "model.num_kv_heads",
    "n_layer": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "num_hidden_layers": "model.num_layers",
    "num_key_value_heads": "model.num_kv_heads",
    "out_dir": "run.directory",
    "output_dir": "run.directory",
    "per_device_train_batch_size": "training.micro_batch_size",
    "pipe_parallel_size": "parallel.pipeline",
    "pipeline_model_parallel_size": "parallel.pipeline",
    "pp": "parallel.pipeline",
    "rms_norm_eps": "model.norm_epsilon",
    "rope_theta": "model.rotary_base",
    "save_interval": "checkpoint.every_steps",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "seq_length": "model.sequence_length",
    "tensor_model_parallel_size": "parallel.tensor",
    "tie_word_embeddings": "model.tied_embeddings",
    "tp": "parallel.tensor",
    "train_iters": "training.steps",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "vocab_file": "data.tokenizer",
    "warmup": "schedule.warmup_steps",
    "warmup_iters": "schedule.warmup_steps",
    "wd": "optimizer.weight_decay",
}


def annotation_at(parts: Sequence[str]) -> Any:
    """The type of the field or section at dotted `parts`; None where there is none."""
    section = section_at(parts[:-1])
    field = section.model_fields.get(parts[-1]) if section is not None else None
    return field.annotation if field is not None else None


def section_at(location: Sequence[int | str]) -> type[BaseModel] | None:
    """The section class at a location of the tree; that of the items for a list of sections."""
    section: type[BaseModel] = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        annotation = field.annotation if field is not None else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                section = candidate
                break
        else:
            return None
    return section


def known_keys(location: Sequence[int | str]) -> list[str]:
    """The names that could stand at the last place of a location."""
    section = section_at(location[:-1])
    return list(section.model_fields) if section is not None else []


def meant_by(location: Sequence[int | str], value: Any) -> list[tuple[int | str, ...]]:
    """Where a refused key with this value probably belongs, the best guesses alone.

    A field or section of the same name elsewhere; else what another program calls so; else the
    nearest name beside it; else the nearest names of all.
    """
    name = str(location[-1]).replace("-", "_")
    elsewhere: dict[str, list[tuple[int | str, ...]]] = {}
    for path in _paths(RunConfig, wants_section=isinstance(value, Mapping)):
        elsewhere.setdefault(path[-1], []).append(path)
    if name in elsewhere:
        return elsewhere[name]
    beside = difflib.get_close_matches(name, known_keys(location), n=1)
    if name in FOREIGN_NAMES and not isinstance(value, Mapping):
        section, *_, field = FOREIGN_NAMES[name].split(".")
        if field in beside or (section == location[0] and field in known_keys(location)):
            return [(*location[:-1], field)]
        return [tuple(FOREIGN_NAMES[name].split("."))]
    if beside:
        return [(*location[:-1], beside[0])]
    near = difflib.get_close_matches(name, list(elsewhere), n=1, cutoff=_NEAR_ELSEWHERE)
    return [path for key in near for path in elsewhere[key]]


def fields_named(words: str) -> list[str]:
    """The dotted names of the fields that `words`, dotted or not, stands for; sections are none."""
    parts = words.replace("-", "_").split(".")
    if not all(parts):
        return []
    places = [tuple(parts)] if annotation_at(parts) is not None else meant_by(parts, "")
    names = [[str(part) for part in place] for place in places]
    return [".".join(each) for each in names if not is_section(annotation_at(each))]


def suggestion(location: Sequence[int | str], value: Any) -> str:
    """The fix for a key that is not known."""
    places = meant_by(location, value)
    if not places:
        return f"use one of {', '.join(known_keys(location))}"
    if len(places) == 1 and places[0][:-1] == tuple(location[:-1]):
        return f"did you mean {places[0][-1]}?"
    given = "" if isinstance(value, Mapping) else f"={spelled(value)}"
    return f"did you mean {' or '.join('.'.join(map(str, place)) + given for place in places)}?"


def spelled(value: Any) -> str:
    """A value as an override spells it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _paths(
    section: type[BaseModel], *, wants_section: bool, here: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """The paths of all fields below a section, or of all sections."""
    for name, field in section.model_fields.items():
        inner = section_at((*here, name)) if is_section(field.annotation) else None
        if (inner is not None) == wants_section:
            yield (*here, name)
        if inner is not None:
            yield from _paths(inner, wants_section=wants_section, here=(*here, name))
