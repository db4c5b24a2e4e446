"""The table of idle fields against built models: what it lists changes nothing, all else something.

Both directions are asked of every field of every model below, so that a field which is left out of
the table, or a new one, fails here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from roots.config.model import RESOLVED_FIELDS, ModelConfig
from roots.config.rules.table import cross_section_problems
from roots.config.run import RunConfig
from roots.config.unread_fields import (
    default_of,
    field_names,
    field_of,
    idle_fields,
    with_fields,
    without_idle_fields,
)
from tests.helpers.decoders import random_inputs, small_model
from tests.helpers.pairs import BERT, T5, TRANSFORMER, built, perturb, random_pairs, random_rows

LLAMA = {"position": "rotary", "norm": "rms_norm", "activation": "swiglu", "bias": False}
MOE = {"num_experts": 5, "ffn_hidden_size": 24}
SHARED = {**MOE, "num_shared_experts": 1}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "llama": LLAMA,
    "linear": {**LLAMA, "rotary_scaling": {"kind": "linear", "factor": 2}},
    "ntk": {**LLAMA, "rotary_scaling": {"kind": "ntk", "factor": 2}},
    "yarn": {**LLAMA, "rotary_scaling": {"kind": "yarn", "factor": 2, "original_length": 400}},
    "llama3": {**LLAMA, "rotary_scaling": {"kind": "llama3", "factor": 2, "original_length": 12}},
    "alibi": {"position": "alibi"},
    "no-positions": {"position": "none"},
    "relative": {"position": "relative", "relative_buckets": 8, "relative_max_distance": 12},
    "experts": {**LLAMA, "moe": MOE},
    "experts-of-dense-width": {"moe": {"num_experts": 5}},
    "every-other": {**LLAMA, "moe": {**SHARED, "every": 2}},
    "shared-experts": {**LLAMA, "moe": SHARED},
    "t5": T5,
    "transformer": TRANSFORMER,
    "bert": BERT,
}
# Another value of every field.
OTHERS: dict[str, Any] = {
    "hidden_size": 64, "num_layers": 3, "num_encoder_layers": 1, "num_heads": 8, "num_kv_heads": 2,
    "head_dim": 12, "ffn_hidden_size": 40, "vocab_size": 70, "vocab_multiple": 50,
    "source_length": 9, "position": "sinusoidal", "relative_buckets": 4,
    "relative_max_distance": 6, "rotary_base": 500.0, "rotary_fraction": 0.5,
    "rotary_scaling.kind": "none", "rotary_scaling.factor": 3.0,
    "rotary_scaling.original_length": 40, "rotary_scaling.low_frequency": 0.5,
    "rotary_scaling.high_frequency": 2.0, "rotary_scaling.beta_fast": 2.0,
    "rotary_scaling.beta_slow": 0.01, "rotary_scaling.attention_factor": 1.5, "window": 3,
    "parallel_residual": True, "qk_norm": True, "norm": "layer_norm", "norm_position": "post",
    "norm_epsilon": 0.1, "norm_zero_centred": True, "activation": "gelu_tanh", "bias": False,
    "qkv_bias": True, "tied_embeddings": False, "embedding_scale": 3.0, "embedding_norm": True,
    "token_types": 3, "head_transform": True, "head_bias": True, "head_scale": 2.0,
    "attention_scale": 0.7, "dropout": 0.5, "attention_dropout": 0.5, "init_std": 0.1,
    "moe.num_experts": 6, "moe.top_k": 3, "moe.ffn_hidden_size": 20, "moe.num_shared_experts": 2,
    "moe.shared_ffn_hidden_size": 28, "moe.shared_expert_gate": True,
    "moe.capacity_factor": 0.4, "moe.balance_loss": 1.0, "moe.z_loss": 1.0,
    "moe.normalise_weights": False, "moe.every": 2,
}  # fmt: skip
# One that differs from the default too, where the value above does not.
WHERE_IDLE: dict[str, Any] = {**OTHERS, "rotary_scaling.kind": "linear"}
# Other kinds of models, and lengths of samples that only learned positions make part of a model.
NOT_ASKED = {"architecture", "sequence_length"}


def behaviour(model: ModelConfig, like: ModelConfig) -> dict[str, Tensor]:
    """Parameters and their gradients by name, outputs and loss, of the inputs of `like`."""
    module = built(model)
    initial = {name: value.detach().clone() for name, value in module.named_parameters()}
    perturb(module)
    make = {"decoder": random_inputs, "encoder": random_rows, "encoder_decoder": random_pairs}
    inputs = make[like.architecture](like.model_copy(update={"vocab_size": 70}))
    loss = module.train()(*inputs)
    loss.backward()
    with torch.no_grad():
        logits = module.eval()(*inputs[:-2])
    gradients = {f"d {name}": each.grad for name, each in module.named_parameters()}
    return {**initial, **gradients, "loss": loss.detach(), "logits": logits}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and torch.equal(first[name], second[name])
        for name in first
    )


def test_every_field_has_another_value() -> None:
    assert set(field_names()) == {*OTHERS, *NOT_ASKED}


@pytest.mark.parametrize("name", MODELS)
def test_idle_fields_are_those_that_change_nothing(name: str) -> None:
    model = small_model(**MODELS[name])
    idle, reference = idle_fields(model), behaviour(model, model)
    # Without learned positions a length is a limit, and no part of the model.
    unseen = {"source_length"} if model.position != "learned" else set()
    for field, value in OTHERS.items():
        other = WHERE_IDLE[field] if field in idle else value
        changed = with_fields(model, {field: other})
        resolved = RESOLVED_FIELDS.get(field, field)
        if field in idle:
            assert equal(behaviour(changed, model), reference), f"{field} has an effect"
        elif field in unseen or field_of(changed, resolved) == field_of(model, resolved):
            continue
        elif not cross_section_problems(RunConfig(model=changed)):
            assert not equal(behaviour(changed, model), reference), f"{field} has no effect"


@pytest.mark.parametrize("name", MODELS)
def test_what_is_idle_stays_idle_at_its_default(name: str) -> None:
    model = small_model(**MODELS[name])
    idle = idle_fields(model)
    noisy = with_fields(model, {field: WHERE_IDLE[field] for field in idle})
    plain = without_idle_fields(noisy)
    assert idle_fields(noisy) == idle_fields(plain) == idle
    assert all(field_of(plain, field) == default_of(field) for field in idle)
    assert plain == without_idle_fields(model)
    assert equal(behaviour(plain, model), behaviour(model, model))


def test_table_says_what_a_rotary_and_a_learned_model_leave_unread() -> None:
    learned, rotary = idle_fields(ModelConfig()), idle_fields(ModelConfig(position="rotary"))
    assert {"rotary_base", "rotary_fraction", "rotary_scaling.kind"} <= learned - rotary
    assert {"relative_buckets", "relative_max_distance"} <= learned & rotary
