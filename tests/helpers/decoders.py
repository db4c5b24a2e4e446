"""Small decoders and batches for tests."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.models.build import build_model
from roots.models.decoder import Decoder
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Axis, Mesh
from roots.seeding import derive_key


class Inputs(NamedTuple):
    """What Decoder.forward takes, in its order."""

    tokens_BT: Tensor
    document_starts_BT: Tensor
    dropout_keys_B: Tensor
    labels_BT: Tensor
    loss_weights_BT: Tensor


def small_model(**changes: Any) -> ModelConfig:
    """A decoder of two layers with 100 tokens and 24 positions; `changes` override fields."""
    fields: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 100,
        "vocab_multiple": 64,
        "sequence_length": 24,
    }
    return ModelConfig(**{**fields, **changes})


def build_decoder(model: ModelConfig, mesh: Mesh, *, options: BuildOptions) -> Decoder:
    """`build_model` of a decoder, not yet filled."""
    decoder = build_model(model, mesh, options=options)
    assert isinstance(decoder, Decoder)
    return decoder


def small_decoder(
    model: ModelConfig, mesh: Mesh | None = None, *, seed: int = 1, **options: Any
) -> Decoder:
    """`model` built in fp32 on the CPU and initialised; `options` are fields of BuildOptions."""
    mesh = Mesh.single() if mesh is None else mesh
    decoder = build_decoder(model, mesh, options=BuildOptions(**options))
    initialise(decoder, seed, model)
    return decoder


def fake_axis(size: int, rank: int) -> Axis:
    """The tensor axis of one rank of several, without processes: shapes and shards only."""
    return Axis("tensor", size=size, rank=rank, ranks=tuple(range(size)))


def fake_mesh(size: int, rank: int) -> Mesh:
    """A mesh whose tensor axis is `fake_axis`."""
    single = Mesh.single()
    return dataclasses.replace(single, tensor=fake_axis(size, rank))


def random_inputs(model: ModelConfig, rows: int = 3, length: int = 0, seed: int = 5) -> Inputs:
    """Random tokens in documents of random length; equal weights that sum to 1 per row."""
    generator = torch.Generator().manual_seed(seed)
    length = length or model.sequence_length
    shape = (rows, length)
    text = torch.randint(model.vocab_size, (rows, length + 1), generator=generator)
    is_start = torch.rand(shape, generator=generator) < 0.15
    is_start[:, 0] = True
    starts = (torch.arange(length) * is_start).cummax(dim=1).values
    keys = torch.tensor([derive_key(seed, "dropout", row) for row in range(rows)])
    weights = torch.full(shape, 1.0 / length)
    return Inputs(text[:, :-1].contiguous(), starts, keys, text[:, 1:].contiguous(), weights)
