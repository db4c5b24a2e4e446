"""Export for llama.cpp and its world: one GGUF file with weights, architecture and tokenizer.

The tensors are those of the Hugging Face rules under llama.cpp's names. Its `llama` architecture
rotates neighbouring dimensions where Hugging Face rotates halves, so rows of queries and keys are
permuted inside every head; its `qwen2` and `qwen3` rotate halves. Vectors are stored as F32, as
llama.cpp's arithmetic wants them. The file is written tensor by tensor with the package `gguf`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem
from roots.exchange.gguf.tokenizer import add_tokenizer
from roots.exchange.hf.exporting import StoredModel, open_checkpoint
from roots.exchange.hf.llama import LLAMA, QWEN2, QWEN3
from roots.exchange.hf.registry import choose_family
from roots.exchange.hf.tensor_map import Part, Rule, permuted
from roots.exchange.hf.tokenizer_files import check_vocabulary, fed_documents, find_tokenizer
from roots.exchange.imported_checkpoint import Exchanged, new_folder
from roots.planner.parameters import count_parameters
from roots.tokenizer.tokenizer import load_tokenizer

FILE_NAME = "model.gguf"
_FAMILIES = {family.architecture: family.model_type for family in (LLAMA, QWEN2, QWEN3)}
_BODY_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class _Planned:
    """One tensor of the file and where it comes from."""

    rule: Rule
    part: Part
    dtype: torch.dtype


def export_gguf(
    checkpoint: Path,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: str | None = None,
) -> Exchanged:
    """Write the finished `checkpoint` as `target`/model.gguf.

    Raises RootsError for a model or a tokenizer that the format does not express, and without the
    package `gguf`; nothing is left behind then.
    """
    package = _package()
    config, store = open_checkpoint(checkpoint)
    model = config.model
    family, _ = choose_family(model)
    _check(model, family.architecture)
    arch = _FAMILIES[family.architecture]
    rules = list(_rules(model, arch, family.tensors(model)))
    stored = StoredModel(store, rules)
    stored.check()
    planned = [
        _Planned(rule, part, _file_dtype(part, dtype or store.dtype(rule.name)))
        for rule in rules
        for part in rule.parts
    ]
    words, reason = find_tokenizer(config, checkpoint, tokenizer)
    with new_folder(target) as folder:
        writer = package.GGUFWriter(folder / FILE_NAME, arch)
        _add_architecture(writer, package, model, arch, planned)
        if words is not None:
            found = load_tokenizer(words, fed=fed_documents(checkpoint))
            check_vocabulary(found, words, model.vocab_size)
            add_tokenizer(writer, words, found, model.vocab_size)
        else:
            # llama.cpp refuses a file that says nothing of a tokenizer.
            writer.add_tokenizer_model("no_vocab")
        _write_tensors(writer, package, stored, planned)
    return Exchanged(
        folder=target,
        architecture=f"{arch} (GGUF)",
        tensors=len(planned),
        parameters=count_parameters(model).total,
        num_bytes=(target / FILE_NAME).stat().st_size,
        files=(FILE_NAME,),
        tokenizer=words or f"none ({reason})",
    )


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        rule = "needs the package gguf, which is not installed"
        fix = "pip install .[gguf]"
        raise RootsError(problem("--format", "gguf", rule, fix)) from None


def _check(model: ModelConfig, architecture: str) -> None:
    """Raises RootsError with everything that llama.cpp's file cannot say of `model`."""
    lines = []
    if architecture not in _FAMILIES and model.window is None:
        rule = f"has no GGUF form here; a model must be one of {', '.join(_FAMILIES)}"
        lines.append(problem("--format gguf", architecture, rule, "export it with --format hf"))
    fix = "export it with --format hf"
    for name, value, wanted in (
        ("window", model.window, None),
        ("bias", model.bias, False),
        ("rotary_scaling.kind", model.rotary_scaling.kind, ("none", "ntk")),
    ):
        if value not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            shown = " or ".join(wanted) if isinstance(wanted, tuple) else wanted
            lines.append(problem(f"model.{name}", value, f"must be {shown} for --format gguf", fix))
    if lines:
        raise RootsError(*lines)


def _rules(model: ModelConfig, arch: str, rules: Sequence[Rule] | Any) -> Iterator[Rule]:
    """The Hugging Face rules with llama.cpp's names and order of rows."""
    for rule in rules:
        parts = (_renamed(model, arch, part) for part in rule.parts)
        yield replace(rule, parts=tuple(parts))


def _renamed(model: ModelConfig, arch: str, part: Part) -> Part:
    base, kind = part.name.rsplit(".", 1)
    match = _LAYER.fullmatch(base)
    if match is None:
        return replace(part, name=f"{_BODY_NAMES[base]}.{kind}")
    short = _LAYER_NAMES[match[2]]
    name = f"blk.{match[1]}.{short}.{kind}"
    if arch != LLAMA.model_type or short not in ("attn_q", "attn_k"):
        return replace(part, name=name)
    heads = part.shape[0] // model.head_size
    # Theirs: pairs (i, i + D/2) of a head beside each other.
    return permuted(name, (heads, model.head_size // 2, 2), (0, 2, 1), *part.shape[1:])


def _file_dtype(part: Part, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if len(part.shape) == 1 else dtype


def _add_architecture(
    writer: Any, package: Any, model: ModelConfig, arch: str, planned: Sequence[_Planned]
) -> None:
    base = model.rotary_base
    if model.rotary_scaling.kind == "ntk":
        size = model.rotary_size
        base *= model.rotary_scaling.factor ** (size / (size - 2))
    types = {
        torch.float32: package.LlamaFileType.ALL_F32,
        torch.float16: package.LlamaFileType.MOSTLY_F16,
        torch.bfloat16: package.LlamaFileType.MOSTLY_BF16,
    }
    writer.add_name(f"roots-{arch}")
    writer.add_file_type(types[planned[0].dtype])
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.sequence_length)
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.ffn_size)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    writer.add_layer_norm_rms_eps(model.norm_epsilon)
    writer.add_rope_dimension_count(model.rotary_size)
    writer.add_rope_freq_base(base)


def _write_tensors(
    writer: Any, package: Any, stored: StoredModel, planned: Sequence[_Planned]
) -> None:
    raw = {
        torch.float32: (package.GGMLQuantizationType.F32, torch.int32),
        torch.float16: (package.GGMLQuantizationType.F16, torch.int16),
        torch.bfloat16: (package.GGMLQuantizationType.BF16, torch.int16),
    }
    for each in planned:
        kind, bits = raw[each.dtype]
        array_type = torch.empty(0, dtype=bits).numpy().dtype
        count = torch.Size(each.part.shape).numel() * each.dtype.itemsize
        writer.add_tensor_info(each.part.name, each.part.shape, array_type, count, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in planned:
        tensor = stored.read(each.rule, each.part).to(each.dtype).contiguous()
        writer.write_tensor_data(tensor.view(raw[each.dtype][1]).numpy())
    writer.close()
