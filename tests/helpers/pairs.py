"""Small encoder-decoders, encoders and their inputs, for tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.build import build_model
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.seeding import derive_key
from tests.helpers.decoders import small_model

SOURCE_LENGTH = 13

# What makes a T5 of a small_model: relative positions, scores and stream not scaled, no biases.
T5: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "num_encoder_layers": 3,
    "source_length": SOURCE_LENGTH,
    "position": "relative",
    "relative_buckets": 8,
    "relative_max_distance": 12,
    "norm": "rms_norm",
    "norm_epsilon": 1e-6,
    "activation": "relu",
    "bias": False,
    "attention_scale": 1.0,
    "head_scale": 32**-0.5,
}
# The Transformer of 2017.
TRANSFORMER: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "num_encoder_layers": 3,
    "source_length": SOURCE_LENGTH,
    "position": "sinusoidal",
    "norm_position": "post",
    "activation": "relu",
    "embedding_scale": 32**0.5,
}
BERT: dict[str, Any] = {
    "architecture": "encoder",
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "embedding_norm": True,
    "token_types": 2,
    "head_transform": True,
    "head_bias": True,
}


class PairInputs(NamedTuple):
    """What EncoderDecoder.forward takes, in its order."""

    tokens_BT: Tensor
    source_BS: Tensor
    document_starts_BT: Tensor
    source_lengths_B: Tensor
    dropout_keys_B: Tensor
    labels_BT: Tensor
    loss_weights_BT: Tensor


class RowInputs(NamedTuple):
    """What Encoder.forward takes, in its order."""

    tokens_BT: Tensor
    lengths_B: Tensor
    dropout_keys_B: Tensor
    labels_BT: Tensor
    loss_weights_BT: Tensor


def pair_model(**changes: Any) -> ModelConfig:
    """A small_model by default a T5; `changes` override fields."""
    return small_model(**{**T5, **changes})


def built(model: ModelConfig, mesh: Mesh | None = None, *, seed: int = 1, **options: Any) -> Any:
    """`model` of any architecture built in fp32 on the CPU and initialised."""
    mesh = Mesh.single() if mesh is None else mesh
    module = build_model(model, mesh, options=BuildOptions(**options))
    initialise(module, seed, model)
    return module


def random_pairs(model: ModelConfig, rows: int = 3, seed: int = 5) -> PairInputs:
    """Random sources of random length and targets; equal weights that sum to 1 a row.

    The last token of the vocabulary never occurs: libraries take it for padding in these tests.
    """
    generator = torch.Generator().manual_seed(seed)
    length, vocab = model.sequence_length, model.vocab_size - 1
    text = torch.randint(vocab, (rows, length + 1), generator=generator)
    source = torch.randint(vocab, (rows, model.source_tokens), generator=generator)
    lengths = torch.randint(4, model.source_tokens + 1, (rows,), generator=generator)
    lengths[0] = model.source_tokens
    return PairInputs(
        text[:, :-1].contiguous(),
        source,
        torch.zeros(rows, length, dtype=torch.int64),
        lengths,
        dropout_keys(seed, rows),
        text[:, 1:].contiguous(),
        torch.full((rows, length), 1.0 / length),
    )


def random_rows(model: ModelConfig, rows: int = 3, seed: int = 5) -> RowInputs:
    """Random rows of random length, of which a seventh of the tokens is to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    shape, vocab = (rows, model.sequence_length), model.vocab_size - 1
    lengths = torch.randint(7, model.sequence_length + 1, (rows,), generator=generator)
    lengths[0] = model.sequence_length
    masked = (torch.arange(model.sequence_length) % 7 == 1) & (
        torch.arange(model.sequence_length) < lengths[:, None]
    )
    return RowInputs(
        torch.randint(vocab, shape, generator=generator),
        lengths,
        dropout_keys(seed, rows),
        torch.randint(vocab, shape, generator=generator),
        masked / masked.sum(dim=1, keepdim=True),
    )


def dropout_keys(seed: int, rows: int) -> Tensor:
    """One key a row."""
    return torch.tensor([derive_key(seed, "dropout", row) for row in range(rows)])


def perturb(module: nn.Module, seed: int = 3) -> None:
    """Move weights away from their initial values, where norms and biases would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
