"""FLOPs against the published equations, and the definition of MFU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from roots.config.data import OpsConfig
from roots.config.model import ModelConfig
from roots.planner.flops import MFU_FORMULA, mfu, token_flops, training_flops_per_token
from roots.planner.parameters import attention_matrix_parameters, mlp_matrix_parameters
from tests.helpers.decoders import small_model
from tests.helpers.pairs import BERT, T5, TRANSFORMER, built, random_pairs, random_rows


@pytest.mark.parametrize(
    ("layers", "width", "heads", "length"),
    [(4, 256, 4, 256), (24, 2048, 16, 2048), (96, 12288, 96, 2048)],
)
def test_gpt_equals_narayanan(layers: int, width: int, heads: int, length: int) -> None:
    vocab = 51200
    model = ModelConfig(
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        sequence_length=length,
        vocab_size=vocab,
    )
    expected = 72 * layers * width**2 * (1 + length / (6 * width) + vocab / (12 * layers * width))
    assert training_flops_per_token(model) == pytest.approx(expected, rel=1e-12)


def test_palm_equation_holds_for_a_gated_grouped_model() -> None:
    model = ModelConfig(
        num_layers=3,
        hidden_size=128,
        num_heads=8,
        num_kv_heads=2,
        ffn_hidden_size=320,
        vocab_size=1000,
        sequence_length=64,
        activation="swiglu",
    )
    # PaLM appendix B: 6 N + 12 L H Q T, where N are the weights that meet every token.
    weights = 3 * (128 * (8 + 4) * 16 + 128 * 128 + 3 * 128 * 320) + 128 * 1000
    assert training_flops_per_token(model) == 6 * weights + 12 * 3 * 8 * 16 * 64


@pytest.mark.parametrize("gate", [True, False])
def test_of_the_experts_only_those_count_that_a_token_goes_to(gate: bool) -> None:
    model = ModelConfig.model_validate(
        {
            "num_layers": 2,
            "hidden_size": 128,
            "num_heads": 8,
            "vocab_size": 1000,
            "sequence_length": 64,
            "activation": "swiglu",
            "moe": {
                "num_experts": 16,
                "top_k": 3,
                "ffn_hidden_size": 96,
                "num_shared_experts": 2,
                "shared_expert_gate": gate,
                "every": 2,
            },
        }
    )
    # The first block has an MLP of width 384, the second a router and 3 + 2 experts of 96.
    weights = 2 * 4 * 128**2 + 3 * 128 * 384 + 16 * 128 + 5 * 3 * 128 * 96 + 128 * 1000
    weights += 128 * gate
    assert training_flops_per_token(model) == 6 * weights + 12 * 2 * 128 * 64


def test_formula_string_says_what_is_computed() -> None:
    model = ModelConfig(
        num_layers=2, num_kv_heads=2, activation="swiglu", vocab_size=999, window=100
    )
    names = {
        "matrix weights of all blocks": model.num_layers
        * (attention_matrix_parameters(model) + mlp_matrix_parameters(model)),
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "head_size": model.head_size,
        "sequence_length": model.sequence_length,
        "window": model.window,
    }
    expression = MFU_FORMULA.split("flops_per_token = ")[1]
    for name, value in names.items():
        assert name in expression
        expression = expression.replace(name, str(value))
    assert eval(expression) == training_flops_per_token(model)


@pytest.mark.parametrize(
    "features",
    [
        {**T5, "num_layers": 3, "head_dim": 12, "num_kv_heads": 2},
        {**TRANSFORMER, "activation": "swiglu", "tied_embeddings": False},
        BERT,
    ],
    ids=["t5", "transformer", "bert"],
)
def test_encoders_cost_what_their_matrix_products_do(features: dict[str, Any]) -> None:
    """Counted by torch while the built model runs, with no fused attention and no padding."""
    model = small_model(**{**features, "vocab_size": 128})
    module = built(model, ops=OpsConfig(attention="reference")).eval()
    inputs = random_rows(model) if model.architecture == "encoder" else random_pairs(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs[:-2])
    expected = counter.get_total_flops() / inputs.tokens_BT.numel()
    assert token_flops(model).forward == int(expected)


def test_pairs_padded_to_less_cost_what_their_matrix_products_do() -> None:
    """As a batch of short pairs, on which data.pad_multiple saves most of the lengths."""
    model = small_model(**{**T5, "vocab_size": 128})
    module = built(model, ops=OpsConfig(attention="reference")).eval()
    tokens, source, starts, lengths, *others = random_pairs(model)
    cut = (tokens[:, :8], source[:, :5], starts[:, :8], lengths.clamp(max=5))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*cut, others[0])
    expected = counter.get_total_flops() / cut[0].numel()
    assert token_flops(model, 8, 5).forward == int(expected)
    assert token_flops(model, 8, 5).forward < token_flops(model, 8).forward


def test_padding_of_the_vocabulary_is_not_work() -> None:
    narrow = ModelConfig(vocab_size=1000, vocab_multiple=1)
    padded = ModelConfig(vocab_size=1000, vocab_multiple=4096)
    assert token_flops(narrow) == token_flops(padded)


def test_only_attention_depends_on_the_length() -> None:
    model = ModelConfig()
    short, long = token_flops(model, 128), token_flops(model, 256)
    assert long.attention == 2 * short.attention
    assert long.forward - short.forward == short.attention


def test_backward_is_twice_the_forward() -> None:
    flops = token_flops(ModelConfig())
    assert flops.training == 3 * flops.forward


def test_mfu_is_achieved_over_peak() -> None:
    assert mfu(1000.0, 2_000_000, 8e9) == 0.25


def test_planner_does_not_import_torch() -> None:
    code = (
        "import sys, roots.planner.flops, roots.planner.parameters;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
