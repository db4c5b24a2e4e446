"""Encoder-decoders, encoders and ALiBi against Hugging Face transformers, with equal weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models.attention.score_bias import distances, relative_buckets
from roots.parallel.shard import shard_of
from tests.helpers.decoders import random_inputs, small_model
from tests.helpers.pairs import (
    BERT,
    TRANSFORMER,
    built,
    pair_model,
    perturb,
    random_pairs,
    random_rows,
)

transformers = pytest.importorskip(
    "transformers", reason="compares with Hugging Face transformers, which is not installed"
)

NamedTensors = dict[str, Tensor]
# Their names of the parts of one of our layers, the parts of a fused matrix in order.
Parts = dict[str, list[str]]


class Case(NamedTuple):
    """A model in both libraries. `rows` are our inputs, `theirs` the keyword arguments for them."""

    model: ModelConfig
    reference: nn.Module
    convert: Callable[[NamedTensors], NamedTensors]
    rows: tuple[Tensor, ...]
    theirs: dict[str, Tensor]


def joined(theirs: NamedTensors, layers: dict[str, str], parts: Parts) -> NamedTensors:
    """Our tensors from theirs: `layers` maps prefixes, `parts` what stands below them."""
    ours = {}
    for our_prefix, their_prefix in layers.items():
        for our_part, their_parts in parts.items():
            for kind in ("weight", "bias"):
                names = [f"{their_prefix}.{part}.{kind}" for part in their_parts]
                if all(name in theirs for name in names):
                    name = f"{our_prefix}{our_part}.{kind}"
                    ours[name] = torch.cat([theirs[each] for each in names])
    return ours


def mask_of(lengths_B: Tensor, size: int) -> Tensor:
    return (torch.arange(size) < lengths_B[:, None]).long()


def t5(**changes: Any) -> Case:
    gated, tied = changes.get("activation") == "geglu_tanh", changes.get("tied_embeddings", True)
    model = pair_model(head_dim=12, ffn_hidden_size=48, **changes)
    config = transformers.T5Config(
        d_model=32, d_kv=12, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4,
        vocab_size=100, relative_attention_num_buckets=8, relative_attention_max_distance=12,
        dropout_rate=0.0, feed_forward_proj="gated-gelu" if gated else "relu", pad_token_id=99,
        tie_word_embeddings=tied,
    )  # fmt: skip
    reference = transformers.T5ForConditionalGeneration(config)
    if not tied:
        # This version ties whatever the config says; T5 1.1 has a head of its own.
        reference.lm_head.weight = nn.Parameter(torch.randn(100, 32))
    inputs = random_pairs(model)
    theirs = {
        "input_ids": inputs.source_BS,
        "attention_mask": mask_of(inputs.source_lengths_B, model.source_tokens),
        "decoder_input_ids": inputs.tokens_BT,
    }
    return Case(model, reference, from_t5, inputs, theirs)


def from_t5(theirs: NamedTensors) -> NamedTensors:
    table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ours = {
        "embedding.tokens.weight": theirs["shared.weight"],
        "embedding.source.relative.weight": theirs[f"encoder.{table}"],
        "embedding.relative.weight": theirs[f"decoder.{table}"],
        "encoder.final_norm.weight": theirs["encoder.final_layer_norm.weight"],
        "final_norm.weight": theirs["decoder.final_layer_norm.weight"],
    }
    if theirs.get("lm_head.weight", theirs["shared.weight"]) is not theirs["shared.weight"]:
        ours["head.weight"] = theirs["lm_head.weight"]
    own: Parts = {
        "attention.qkv": [f"layer.0.SelfAttention.{part}" for part in "qkv"],
        "attention.output": ["layer.0.SelfAttention.o"],
        "attention_norm": ["layer.0.layer_norm"],
    }

    def mlp(number: int) -> list[Parts]:
        base = f"layer.{number}.DenseReluDense"
        shared = {"mlp.down": [f"{base}.wo"], "mlp_norm": [f"layer.{number}.layer_norm"]}
        return [shared, {"mlp.up": [f"{base}.wi"]}, {"mlp.up": [f"{base}.wi_0", f"{base}.wi_1"]}]

    cross: Parts = {
        "cross.query": ["layer.1.EncDecAttention.q"],
        "cross.kv": ["layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"],
        "cross.output": ["layer.1.EncDecAttention.o"],
        "cross_norm": ["layer.1.layer_norm"],
    }
    encoder = {f"encoder.layers.{i}.": f"encoder.block.{i}" for i in range(3)}
    decoder = {f"layers.{i}.": f"decoder.block.{i}" for i in range(2)}
    for parts in (own, *mlp(1)):
        ours |= joined(theirs, encoder, parts)
    for parts in (own, cross, *mlp(2)):
        ours |= joined(theirs, decoder, parts)
    return ours


def marian() -> Case:
    model = small_model(**{**TRANSFORMER, "ffn_hidden_size": 48, "head_bias": False})
    config = transformers.MarianConfig(
        d_model=32, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=100,
        max_position_embeddings=24, scale_embedding=True, activation_function="relu",
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, pad_token_id=99,
        decoder_start_token_id=99,
    )  # fmt: skip
    inputs = random_pairs(model)
    theirs = {
        "input_ids": inputs.source_BS,
        "attention_mask": mask_of(inputs.source_lengths_B, model.source_tokens),
        "decoder_input_ids": inputs.tokens_BT,
    }
    return Case(model, transformers.MarianMTModel(config), from_marian, inputs, theirs)


def from_marian(theirs: NamedTensors) -> NamedTensors:
    own: Parts = {
        "attention.qkv": [f"self_attn.{part}_proj" for part in "qkv"],
        "attention.output": ["self_attn.out_proj"],
        "attention_norm": ["self_attn_layer_norm"],
        "mlp.up": ["fc1"],
        "mlp.down": ["fc2"],
        "mlp_norm": ["final_layer_norm"],
        "cross.query": ["encoder_attn.q_proj"],
        "cross.kv": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
        "cross.output": ["encoder_attn.out_proj"],
        "cross_norm": ["encoder_attn_layer_norm"],
    }
    layers = {f"encoder.layers.{i}.": f"model.encoder.layers.{i}" for i in range(3)}
    layers |= {f"layers.{i}.": f"model.decoder.layers.{i}" for i in range(2)}
    ours = {"embedding.tokens.weight": theirs["model.shared.weight"]}
    return ours | joined(theirs, layers, own)


def bert() -> Case:
    model = small_model(**BERT)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        vocab_size=100, max_position_embeddings=24, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=99,
    )  # fmt: skip
    inputs = random_rows(model)
    theirs = {
        "input_ids": inputs.tokens_BT,
        "attention_mask": mask_of(inputs.lengths_B, model.sequence_length),
    }
    return Case(model, transformers.BertForMaskedLM(config), from_bert, inputs, theirs)


def from_bert(theirs: NamedTensors) -> NamedTensors:
    ours = joined(
        theirs,
        {"": "bert.embeddings"},
        {
            "embedding.tokens": ["word_embeddings"],
            "embedding.positions": ["position_embeddings"],
            "embedding.token_types": ["token_type_embeddings"],
            "embedding.norm": ["LayerNorm"],
        },
    )
    ours |= joined(
        theirs,
        {"": "cls.predictions.transform"},
        {"head_transform.dense": ["dense"], "head_transform.norm": ["LayerNorm"]},
    )
    ours["head.bias"] = theirs["cls.predictions.bias"]
    parts: Parts = {
        "attention.qkv": [f"attention.self.{part}" for part in ("query", "key", "value")],
        "attention.output": ["attention.output.dense"],
        "attention_norm": ["attention.output.LayerNorm"],
        "mlp.up": ["intermediate.dense"],
        "mlp.down": ["output.dense"],
        "mlp_norm": ["output.LayerNorm"],
    }
    return ours | joined(theirs, {f"layers.{i}.": f"bert.encoder.layer.{i}" for i in (0, 1)}, parts)


def bloom(heads: int) -> Case:
    model = small_model(
        position="alibi", embedding_norm=True, activation="gelu_tanh", num_heads=heads,
        hidden_size=48,
    )  # fmt: skip
    config = transformers.BloomConfig(
        hidden_size=48, n_layer=2, n_head=heads, vocab_size=100, hidden_dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    inputs = random_inputs(model)
    inputs = inputs._replace(document_starts_BT=torch.zeros_like(inputs.tokens_BT))

    def convert(theirs: NamedTensors) -> NamedTensors:
        return from_bloom(theirs, heads)

    reference = transformers.BloomForCausalLM(config)
    return Case(model, reference, convert, inputs, {"input_ids": inputs.tokens_BT})


def from_bloom(theirs: NamedTensors, heads: int) -> NamedTensors:
    ours = joined(
        theirs,
        {"": "transformer"},
        {
            "embedding.tokens": ["word_embeddings"],
            "embedding.norm": ["word_embeddings_layernorm"],
            "final_norm": ["ln_f"],
        },
    )
    parts: Parts = {
        "attention_norm": ["input_layernorm"],
        "attention.qkv": ["self_attention.query_key_value"],
        "attention.output": ["self_attention.dense"],
        "mlp_norm": ["post_attention_layernorm"],
        "mlp.up": ["mlp.dense_h_to_4h"],
        "mlp.down": ["mlp.dense_4h_to_h"],
    }
    ours |= joined(theirs, {f"layers.{i}.": f"transformer.h.{i}" for i in (0, 1)}, parts)
    for name in [name for name in ours if "qkv" in name]:
        # Theirs has q, k and v of one head behind each other.
        ours[name] = ours[name].unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return ours


CASES: dict[str, Callable[[], Case]] = {
    "t5": t5,
    "t5-1.1": lambda: t5(activation="geglu_tanh", tied_embeddings=False, head_scale=1.0),
    "marian": marian,
    "bert": bert,
    "bloom": lambda: bloom(4),
    "bloom-6-heads": lambda: bloom(6),
}


@pytest.mark.parametrize("family", CASES)
def test_logits_loss_and_gradients_agree(family: str) -> None:
    model, reference, convert, rows, theirs = CASES[family]()
    perturb(reference)
    reference.eval()
    ours = built(model)
    parameters = {shard_of(p).name: p for p in ours.parameters()}
    state = dict(reference.named_parameters())
    weights = convert(state)
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, tensor in weights.items():
            # Rows beyond the tensor's are the padding of the vocabulary.
            parameters[name][: len(tensor)].copy_(tensor)
    *inputs, labels_BT, weights_BT = rows
    expected_logits = reference(**theirs).logits
    logits = ours(*inputs)
    # What a token of padding would say is of no interest.
    counts = weights_BT.amax(dim=1) > 0 if family != "bert" else weights_BT > 0
    difference = (logits - expected_logits)[counts].abs().max()
    assert difference < 1e-5 * expected_logits.abs().max()

    losses = F.cross_entropy(expected_logits.transpose(1, 2), labels_BT, reduction="none")
    expected_loss = (losses * weights_BT).sum() / len(losses)
    loss = ours(*rows)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)

    expected_loss.backward()
    loss.backward()
    names = {name: p.grad for name, p in state.items() if p.grad is not None}
    gradients = convert(names)
    assert gradients.keys() == parameters.keys()
    for name, gradient in gradients.items():
        mine = parameters[name].grad[: len(gradient)]
        assert (mine - gradient).norm() < 1e-4 * gradient.norm() + 1e-9, name
        assert parameters[name].grad[len(gradient) :].count_nonzero() == 0


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_t5(bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    for buckets, furthest in ((32, 128), (8, 12), (16, 1000)):
        ours = relative_buckets(
            distances(300, 300, torch.device("cpu")), buckets, furthest, bidirectional=bidirectional
        )
        positions = torch.arange(300)
        theirs = T5Attention._relative_position_bucket(
            positions[None, :] - positions[:, None], bidirectional, buckets, furthest
        )
        assert torch.equal(ours, theirs)
