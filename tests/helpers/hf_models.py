"""Tiny models of Hugging Face transformers with perturbed random weights, and their comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip(
    "transformers", reason="compares with Hugging Face transformers, which is not installed"
)


@dataclass(frozen=True)
class Case:
    """One random configuration of one architecture; `same_ops` where the arithmetic is the same."""

    name: str
    config: Callable[[], Any]
    seed: int = 0
    same_ops: bool = True


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 5000.0, **fields}


def gpt2(**fields: Any) -> Any:
    sizes = {"n_embd": 36, "n_layer": 3, "n_head": 3, "n_positions": 80, "vocab_size": 101}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id"), 1)
    return transformers.GPT2Config(**{**sizes, **rates, **tokens, **fields})


def gpt_neox(**fields: Any) -> Any:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    more = {"intermediate_size": 90, "vocab_size": 77, "max_position_embeddings": 96}
    return transformers.GPTNeoXConfig(**{**sizes, **more, **fields})


def of_llama(kind: str, **fields: Any) -> Any:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    more = {"num_key_value_heads": 2, "intermediate_size": 70, "vocab_size": 99}
    length = {"max_position_embeddings": 96}
    return getattr(transformers, kind)(**{**sizes, **more, **length, **fields})


def build(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of a case, its weights moved away from values that would hide a mistake."""
    torch.manual_seed(case.seed)
    model = transformers.AutoModelForCausalLM.from_config(case.config()).to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def load(folder: Path) -> nn.Module:
    """The model in a folder, as a user of transformers loads it.

    Its weights are moved out of the mapped file, where they begin at any address: matrix products
    round by how their operands are aligned, so not even a model saved and loaded is bit-equal.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def tokens_of(vocab_size: int, rows: int = 2, length: int = 33, seed: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, length), generator=generator)
