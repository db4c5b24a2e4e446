"""The list of layers: closed-form counts, global names, the options of the architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from roots.models.build import TIED_KEY, TIED_WEIGHT, model_layers
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.shard import shard_of
from roots.planner.parameters import count_parameters, layer_parameters
from tests.helpers.decoders import fake_mesh, random_inputs, small_decoder, small_model

FEATURES: list[dict[str, Any]] = [
    {},
    {"position": "rotary"},
    {"norm": "rms_norm"},
    {"norm": "rms_norm", "bias": False},
    {"bias": False},
    {"activation": "gelu_tanh"},
    {"activation": "swiglu"},
    {"activation": "swiglu", "ffn_hidden_size": 48},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "position": "rotary", "rotary_fraction": 0.5},
    {"tied_embeddings": False},
    {"ffn_hidden_size": 40, "num_layers": 3},
]


def elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_closed_form_counts_equal_the_built_model(features: dict[str, Any]) -> None:
    model = small_model(**features)
    layers = model_layers(model, Mesh.single(), BuildOptions())
    assert [(layer.name, elements(layer.build())) for layer in layers] == list(
        layer_parameters(model).items()
    )
    assert elements(small_decoder(model)) == count_parameters(model).total


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_every_parameter_learns_and_carries_its_module_path(features: dict[str, Any]) -> None:
    model = small_model(**features)
    decoder = small_decoder(model)
    decoder(*random_inputs(model)).backward()
    for name, parameter in decoder.named_parameters():
        assert shard_of(parameter).name == name
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_parameters_have_the_documented_names() -> None:
    names = dict(small_decoder(small_model(num_layers=1, tied_embeddings=False)).named_parameters())
    block = [
        f"layers.0.{part}.{kind}"
        for part in (
            "attention_norm",
            "attention.qkv",
            "attention.output",
            "mlp_norm",
            "mlp.up",
            "mlp.down",
        )
        for kind in ("weight", "bias")
    ]
    ends = ["embedding.tokens.weight", "embedding.positions.weight"]
    ends += ["final_norm.weight", "final_norm.bias", "head.weight"]
    assert sorted(names) == sorted(block + ends)


def test_fused_matrices_are_cut_part_by_part() -> None:
    model = small_model(num_kv_heads=2, activation="swiglu", ffn_hidden_size=64)
    block = model_layers(model, fake_mesh(2, 1), BuildOptions())[1].build()
    shards = {shard_of(p).name: shard_of(p) for p in block.parameters()}
    # Q is rows 0 to 32, K 32 to 48, V 48 to 64; rank 1 holds the second half of each.
    assert shards["layers.0.attention.qkv.weight"].intervals == ((16, 32), (40, 48), (56, 64))
    assert shards["layers.0.mlp.up.weight"].intervals == ((32, 64), (96, 128))
    assert shards["layers.0.attention.output.weight"].dim == 1


def test_tied_ends_share_a_key_and_untied_ones_do_not() -> None:
    tied = model_layers(small_model(), Mesh.single(), BuildOptions())
    assert [layer.tied_key for layer in tied] == [TIED_KEY, None, None, None, TIED_KEY]
    for layer in (tied[0], tied[-1]):
        assert layer.build().get_parameter(TIED_WEIGHT).shape == (128, 32)
    head_shard = shard_of(tied[-1].build().get_parameter(TIED_WEIGHT))
    assert head_shard.tied_to == "embedding.tokens.weight"
    untied = model_layers(small_model(tied_embeddings=False), Mesh.single(), BuildOptions())
    assert {layer.tied_key for layer in untied} == {None}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_layers_chained_as_a_pipeline_equal_the_decoder(tied: bool) -> None:
    """A tied head has a copy of the matrix there, and both are told the same of the head."""
    fields = {"head_scale": 0.5, "head_bias": True, "tied_embeddings": tied}
    model = small_model(position="rotary", dropout=0.1, **fields)
    inputs = random_inputs(model)
    expected = small_decoder(model)(*inputs)
    modules = [layer.build() for layer in model_layers(model, Mesh.single(), BuildOptions())]
    for module in modules:
        initialise(module, 1, model)
    stream = inputs[:3]
    for module in modules[:-1]:
        stream = module(stream)
    logits_BTV = small_decoder(model)(*inputs[:3])
    torch.testing.assert_close(modules[-1](stream[0]), logits_BTV, rtol=0, atol=0)
    loss = modules[-1](stream[0], inputs.labels_BT, inputs.loss_weights_BT)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
