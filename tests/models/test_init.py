"""Initial values: complete, of the right spread, equal on every layout."""

from __future__ import annotations

import math

import pytest
import torch

from roots.errors import RootsError
from roots.models.build import model_layers
from roots.models.init import initialise, weight_decay_groups
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.shard import shard_of, slice_full
from tests.helpers.decoders import fake_mesh, small_decoder, small_model


@pytest.mark.parametrize("degree", [2, 4])
def test_values_do_not_depend_on_the_tensor_parallel_degree(degree: int) -> None:
    model = small_model(num_kv_heads=4, activation="swiglu", tied_embeddings=False)
    whole = dict(small_decoder(model).named_parameters())
    for rank in range(degree):
        for name, local in small_decoder(model, fake_mesh(degree, rank)).named_parameters():
            assert torch.equal(local, slice_full(whole[name], shard_of(local))), name


def test_no_parameter_is_missed() -> None:
    decoder = small_decoder(small_model())
    for name, parameter in decoder.named_parameters():
        assert parameter.device.type == "cpu"
        assert parameter.requires_grad
        expected = 1.0 if name.endswith("norm.weight") else 0.0
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, expected)), name
        else:
            assert parameter.isfinite().all()
            assert parameter.unique().numel() > 0.9 * parameter.numel(), name


def test_matrices_have_the_spread_of_the_scheme() -> None:
    model = small_model(hidden_size=128, num_layers=2, init_std=0.05)
    for name, parameter in small_decoder(model).named_parameters():
        if parameter.ndim != 2:
            continue
        writes_residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
        std = 0.05 / math.sqrt(4) if writes_residual else 0.05
        # Six standard errors of a mean and of a standard deviation of n normal numbers.
        error = 6 * std / math.sqrt(parameter.numel())
        assert abs(parameter.mean().item()) < error, name
        assert abs(parameter.std().item() - std) < error, name


def test_seed_and_name_decide() -> None:
    model = small_model()
    first, again, other = (small_decoder(model, seed=seed).state_dict() for seed in (1, 1, 2))
    name = "layers.0.attention.qkv.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first[name.replace("layers.0", "layers.1")])


def test_tied_copy_starts_equal_to_the_embedding() -> None:
    model = small_model()
    layers = model_layers(model, Mesh.single(), BuildOptions())
    embedding, head = layers[0].build(), layers[-1].build()
    for module in (embedding, head):
        initialise(module, 3, model)
    weights = [module.get_parameter("tokens.weight") for module in (embedding, head)]
    assert torch.equal(weights[0], weights[1])


def test_sixteen_bit_values_are_the_rounded_ones() -> None:
    model = small_model()
    wide = small_decoder(model).state_dict()
    narrow = small_decoder(model, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)


def test_decay_is_for_matrices_only() -> None:
    decoder = small_decoder(small_model())
    decay, plain = weight_decay_groups(decoder)
    assert {id(p) for p in decay} | {id(p) for p in plain} == {id(p) for p in decoder.parameters()}
    assert all(parameter.ndim == 2 for parameter in decay)
    assert all(shard_of(p).name.endswith(("norm.weight", ".bias")) for p in plain)


def test_parameter_without_record_is_named() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(RootsError, match=r"^0\.weight"):
        initialise(module, 1, small_model())
