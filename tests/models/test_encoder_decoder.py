"""Encoder-decoders and encoders: padding, causality, caches, recompute, pipelines, tensor ranks."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.models import block, embedding
from roots.models.attention import cross_attention
from roots.models.attention import self_attention as attention
from roots.models.attention.biased_attention import biased_attention
from roots.models.attention.cache import KVCache
from roots.models.build import model_layers
from roots.models.encoder_decoder import Source
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.ops import AttentionDropout
from roots.ops.attention import attention as fused_attention
from roots.parallel.mesh import Mesh
from roots.parallel.shard import gather_full, shard_of
from roots.parallel.topology import Topology
from roots.planner.parameters import count_parameters, layer_parameters
from tests.helpers.decoders import fake_axis, random_inputs, small_model
from tests.helpers.distributed import run_distributed
from tests.helpers.pairs import (
    BERT,
    TRANSFORMER,
    built,
    dropout_keys,
    pair_model,
    random_pairs,
    random_rows,
)

# By name: a T5, the Transformer of 2017, modern parts, a BERT, and an encoder without any extra.
FEATURES: dict[str, dict[str, Any]] = {
    "t5": {"architecture": "encoder_decoder"},
    "transformer": TRANSFORMER,
    "modern": {
        "position": "rotary",
        "activation": "swiglu",
        "num_kv_heads": 2,
        "qk_norm": True,
        "tied_embeddings": False,
    },
    "bert": BERT,
    "alibi": {"architecture": "encoder", "position": "alibi", "tied_embeddings": False},
    "learned": {**TRANSFORMER, "position": "learned", "norm_position": "pre", "head_bias": True},
}
# Decoders with what came with encoders, their tokens cut over the tensor ranks between blocks.
DECODERS: dict[str, dict[str, Any]] = {
    "decoder-alibi": {"position": "alibi", "embedding_norm": True, "head_bias": True},
    "decoder-relative": {"position": "relative", "relative_buckets": 8, "attention_scale": 0.5},
    "decoder-post": {"position": "sinusoidal", "norm_position": "post", "token_types": 2},
}
PAIRS = ["t5", "transformer", "modern", "learned"]


def model_of(name: str, **changes: Any) -> ModelConfig:
    if name in ("t5", "modern"):
        return pair_model(**{**FEATURES[name], **changes})
    return small_model(**{**FEATURES, **DECODERS}[name], **changes)


def inputs_of(model: ModelConfig) -> Any:
    makers = {"encoder": random_rows, "encoder_decoder": random_pairs, "decoder": random_inputs}
    return makers[model.architecture](model)


def loss_and_gradients(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    module.zero_grad()
    loss = module(*inputs)
    loss.backward()
    gradients = {shard_of(p).name: p.grad for p in module.parameters()}
    return loss.detach(), gradients


@pytest.mark.parametrize("name", FEATURES)
def test_counts_names_and_gradients_of_every_parameter(name: str) -> None:
    model = model_of(name)
    layers = model_layers(model, Mesh.single(), BuildOptions())
    sizes = {layer.name: sum(p.numel() for p in layer.build().parameters()) for layer in layers}
    # Their order tells stages apart, so it counts as well.
    assert list(sizes.items()) == list(layer_parameters(model).items())
    module = built(model)
    assert sum(p.numel() for p in module.parameters()) == count_parameters(model).total
    _, gradients = loss_and_gradients(module, inputs_of(model))
    for path, parameter in module.named_parameters():
        # Where a tied matrix is the head, its module also holds the head's bias.
        assert shard_of(parameter).name == path.replace("embedding.tokens.bias", "head.bias")
        assert gradients[shard_of(parameter).name].abs().sum() > 0, path


@pytest.mark.parametrize("name", PAIRS)
def test_padding_of_the_source_is_seen_by_nobody(name: str) -> None:
    model = model_of(name)
    module = built(model).eval()
    inputs = random_pairs(model)._replace(source_lengths_B=torch.tensor([7, 9, 4]))
    logits = module(*inputs[:5])
    inside = torch.arange(model.source_tokens) < inputs.source_lengths_B[:, None]
    others = (inputs.source_BS + 1) % model.vocab_size
    padded = torch.where(inside, inputs.source_BS, others)
    assert torch.equal(module(*inputs._replace(source_BS=padded)[:5]), logits)
    longer = torch.where(inside, others, inputs.source_BS)
    assert not torch.allclose(module(*inputs._replace(source_BS=longer)[:5]), logits)
    # And a row alone, without any padding.
    for row, length in enumerate(inputs.source_lengths_B.tolist()):
        alone = inputs._replace(source_BS=inputs.source_BS[:, :length])
        mine = module(*(tensor[row : row + 1] for tensor in alone[:5]))
        torch.testing.assert_close(mine[0], logits[row], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "alibi"])
def test_padding_of_an_encoders_row_is_seen_by_nobody_and_all_else_by_all(name: str) -> None:
    model = model_of(name)
    module = built(model).eval()
    tokens, _, keys, *_ = random_rows(model)
    lengths = torch.tensor([10, 24, 17])
    logits = module(tokens, lengths, keys)
    changed = tokens.clone()
    changed[0, 10:] += 1
    assert torch.equal(module(changed, lengths, keys)[:, :10], logits[:, :10])
    changed[1, 23] += 1
    assert not torch.allclose(module(changed, lengths, keys)[1, 0], logits[1, 0])


@pytest.mark.parametrize("name", PAIRS)
def test_target_sees_no_future_but_the_whole_source(name: str) -> None:
    model = model_of(name)
    module = built(model).eval()
    inputs = random_pairs(model)._replace(source_lengths_B=torch.full((3,), model.source_tokens))
    logits = module(*inputs[:5])
    changed = inputs.tokens_BT.clone()
    changed[:, 12:] = 0
    after = module(*inputs._replace(tokens_BT=changed)[:5])
    assert torch.equal(after[:, :12], logits[:, :12])
    source = inputs.source_BS.clone()
    source[:, -1] += 1
    assert not torch.allclose(module(*inputs._replace(source_BS=source)[:5])[:, 0], logits[:, 0])


@pytest.mark.parametrize("name", PAIRS)
def test_cached_greedy_decoding_equals_uncached(name: str) -> None:
    """Row by row and in a batch; the source is projected once, and beams may change places."""
    model = model_of(name, init_std=0.3)
    module = built(model).eval()
    inputs = random_pairs(model)
    starts = torch.arange(3)[:, None]
    with torch.no_grad():
        source = module.encode(inputs.source_BS, inputs.source_lengths_B)
        plain = starts
        for _ in range(12):
            zeros = torch.zeros_like(plain)
            everything = (plain, inputs.source_BS, zeros, *inputs[3:5])
            logits = module(*everything)
            assert torch.equal(module.decode(plain, source), logits)
            plain = torch.cat((plain, logits[:, -1:].argmax(-1)), dim=1)
        cache = KVCache.allocate(
            model, Mesh.single().tensor, rows=3, capacity=13,
            dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip
        cached, order = starts, torch.tensor([2, 0, 1])
        for step in range(12):
            last = cached[:, -1:] if step else cached
            cached = torch.cat((cached, module.decode(last, source, cache).argmax(-1)), dim=1)
            if step == 5:
                cache.select_rows(order)
                cached = cached[order]
                source = source._replace(lengths_B=source.lengths_B[order])
    assert len(set(map(tuple, plain.tolist()))) == 3
    assert torch.equal(cached, plain[order])


@pytest.mark.parametrize("name", PAIRS)
def test_rows_of_one_source_change_places_without_copying_it(name: str) -> None:
    """Three sources of two beams each: all that follows is equal, and the source stays in place."""
    model = model_of(name, init_std=0.3)
    module = built(model).eval()
    inputs = random_pairs(model)
    order = torch.tensor([1, 1, 2, 3, 5, 4])
    tokens = torch.arange(12).view(6, 2)
    after = []
    with torch.no_grad():
        source = module.encode(inputs.source_BS, inputs.source_lengths_B)
        source = Source(*(part.repeat_interleave(2, dim=0) for part in source))
        for same_source in (False, True):
            cache = KVCache.allocate(
                model, Mesh.single().tensor, rows=6, capacity=5,
                dtype=torch.float32, device=torch.device("cpu"),
            )  # fmt: skip
            module.decode(tokens, source, cache)
            held = source_addresses(cache)
            cache.select_rows(order, same_source=same_source)
            assert (source_addresses(cache) == held) == same_source
            after.append(module.decode(tokens[:, :1] + 20, source, cache))
    assert torch.equal(after[0], after[1])


def source_addresses(cache: KVCache) -> list[int]:
    return [part.data_ptr() for layer in cache.layers for part in layer.source or ()]


@pytest.mark.parametrize("name", FEATURES)
def test_recompute_and_a_chain_of_layers_change_nothing(name: str) -> None:
    model = model_of(name, dropout=0.1, attention_dropout=0.1)
    inputs = inputs_of(model)
    kept = loss_and_gradients(built(model), inputs)
    again = loss_and_gradients(built(model, recompute="full"), inputs)
    assert torch.equal(kept[0], again[0])
    for parameter, gradient in kept[1].items():
        assert torch.equal(gradient, again[1][parameter]), parameter
    modules = [layer.build() for layer in model_layers(model, Mesh.single(), BuildOptions())]
    for module in modules:
        initialise(module, 1, model)
    *stream, labels, weights = inputs
    for module in modules[:-1]:
        stream = module(stream)
    assert torch.equal(modules[-1](stream[0], labels, weights), kept[0])


def test_floating_tensors_of_the_stream_come_first() -> None:
    """DeepSpeed gives a place of the stream one buffer for both directions."""
    for name in FEATURES:
        model = model_of(name)
        *stream, _, _ = inputs_of(model)
        for layer in model_layers(model, Mesh.single(), BuildOptions())[:-1]:
            module = layer.build()
            initialise(module, 1, model)
            stream = module(stream)
            kinds = [tensor.is_floating_point() for tensor in stream]
            assert kinds == sorted(kinds, reverse=True)


def test_every_place_has_a_dropout_mask_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sites: list[str] = []

    def record(module: ModuleType, name: str, place: int | str) -> None:
        original = getattr(module, name)

        def recording(*arguments: Any, **named: Any) -> Any:
            site = named[place].site if isinstance(place, str) else arguments[place]
            sites.append(site)
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, recording)

    record(embedding, "dropout", 3)
    record(block, "bias_dropout_add", 5)
    record(attention, "biased_attention", "dropout")
    record(cross_attention, "attention", "dropout")
    model = pair_model(dropout=0.1, attention_dropout=0.1, num_encoder_layers=2)
    built(model)(*random_pairs(model))
    assert len(sites) == len(set(sites)) == 2 + 2 * 3 + 2 * 5
    assert {"embedding", "embedding.source", "layers.1.cross.probabilities"} <= set(sites)


def test_label_smoothing_and_z_loss_are_for_training() -> None:
    model = pair_model()
    inputs = random_pairs(model)
    plain = built(model)
    strict = built(model, label_smoothing=0.1, z_loss=0.01)
    assert torch.equal(strict.eval()(*inputs), plain(*inputs))
    logits = plain(*inputs[:5])
    smooth = nn.functional.cross_entropy(
        logits.flatten(0, 1), inputs.labels_BT.flatten(), label_smoothing=0.1
    )
    expected = smooth + 0.01 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(strict.train()(*inputs), expected)


@pytest.mark.parametrize("window", [0, 3])
def test_biased_attention_without_a_bias_is_attention(window: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 9, n, 8, generator=generator) for n in (4, 2, 2))
    dropout = AttentionDropout(0.3, dropout_keys(1, 2), "site", first_head=2)
    for causal in (True, False):
        named: dict[str, Any] = {
            "causal": causal, "window": window, "dropout": dropout, "scale": 0.7,
        }  # fmt: skip
        mine = biased_attention(q, k, v, torch.zeros(1, 4, 9, 9), **named)
        torch.testing.assert_close(mine, fused_attention(q, k, v, **named))


def tensor_parallel_step(rank: int, world_size: int, name: str) -> Any:
    model = model_of(name, dropout=0.1, attention_dropout=0.1)
    mesh = Mesh.create(Topology(tensor=world_size))
    module = built(model, mesh, sequence_parallel=name in DECODERS)
    loss, gradients = loss_and_gradients(module, inputs_of(model))
    shards = {shard_of(p).name: shard_of(p) for p in module.parameters()}
    full = {name: gather_full(g, shards[name], mesh.tensor) for name, g in gradients.items()}
    return loss, full, module.eval()(*inputs_of(model)[:-2]).detach()


@pytest.mark.parametrize("name", ["t5", "modern", "bert", "alibi", *DECODERS])
def test_tensor_parallel_model_equals_one_process(name: str) -> None:
    model = model_of(name, dropout=0.1, attention_dropout=0.1)
    module = built(model)
    loss, gradients = loss_and_gradients(module, inputs_of(model))
    logits = module.eval()(*inputs_of(model)[:-2]).detach()
    for other_loss, other_gradients, other_logits in run_distributed(tensor_parallel_step, 2, name):
        torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(other_logits, logits, rtol=1e-5, atol=1e-6)
        for parameter, gradient in gradients.items():
            difference = (other_gradients[parameter] - gradient).norm()
            assert difference <= 1e-5 * gradient.norm(), (parameter, difference)


def test_alibi_slopes_belong_to_global_heads() -> None:
    from roots.models.attention.score_bias import alibi_bias, alibi_slopes, distances

    steps = distances(2, 5, torch.device("cpu"))
    assert steps.tolist() == [[-3, -2, -1, 0, 1], [-4, -3, -2, -1, 0]]
    whole = alibi_bias(steps, 4, Mesh.single().tensor, torch.float32)
    halves = [alibi_bias(steps, 4, fake_axis(2, rank), torch.float32) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), whole)
    assert alibi_slopes(6) == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
