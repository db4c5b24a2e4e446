"""The decoder: documents, positions, dropout, recompute, tensor-parallel equality."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from roots.config.data import OpsConfig
from roots.errors import RootsError
from roots.log import get_logger, log_once
from roots.models import block, embedding
from roots.models.attention import self_attention as attention
from roots.models.decoder import Decoder
from roots.parallel.mesh import Mesh
from roots.parallel.shard import gather_full, shard_of
from roots.parallel.topology import Topology
from tests.helpers.decoders import Inputs, random_inputs, small_decoder, small_model
from tests.helpers.distributed import run_distributed


def loss_and_gradients(decoder: Decoder, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    decoder.zero_grad()
    loss = decoder(*inputs)
    loss.backward()
    gradients = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_no_document_sees_another(position: str) -> None:
    model = small_model(position=position)
    decoder = small_decoder(model).eval()
    tokens, _, keys, *_ = random_inputs(model, rows=1)
    starts = torch.tensor([[0] * 10 + [10] * 14])
    changed = tokens.clone()
    changed[:, :10] = (changed[:, :10] + 1) % model.vocab_size
    before, after = (decoder(t, starts, keys) for t in (tokens, changed))
    assert torch.equal(before[:, 10:], after[:, 10:])
    assert not torch.allclose(before[:, :10], after[:, :10])
    joined = small_decoder(model, separate_documents=False).eval()
    assert not torch.allclose(joined(tokens, starts, keys)[:, 10:], after[:, 10:])


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_reset_positions_make_a_document_independent_of_its_place(position: str) -> None:
    model = small_model(position=position)
    decoder = small_decoder(model, reset_positions=True).eval()
    tokens, _, keys, *_ = random_inputs(model, rows=1)
    starts = torch.tensor([[0] * 10 + [10] * 14])
    packed = decoder(tokens, starts, keys)[:, 10:]
    alone = decoder(tokens[:, 10:], torch.zeros(1, 14, dtype=torch.int64), keys)
    torch.testing.assert_close(packed, alone)


def test_window_bounds_what_is_seen_and_stays_inside_documents() -> None:
    model = small_model(window=5, num_layers=1)
    decoder = small_decoder(model).eval()
    tokens, _, keys, *_ = random_inputs(model, rows=1)
    starts = torch.tensor([[0] * 8 + [8] * 16])
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % model.vocab_size
    before, after = (decoder(t, starts, keys)[0] for t in (tokens, changed))
    seen = (before != after).any(dim=-1).nonzero().flatten().tolist()
    assert seen == [12, 13, 14, 15, 16]
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % model.vocab_size
    seen = (before != decoder(changed, starts, keys)[0]).any(dim=-1).nonzero().flatten().tolist()
    assert seen == [7]


def test_parallel_residual_reads_the_input_of_the_block_in_both_branches() -> None:
    model = small_model(parallel_residual=True)
    layer = small_decoder(model).eval().layers[0]
    x_BTH = torch.randn(2, 6, 32)
    zeros = torch.zeros(2, 6, dtype=torch.int64)
    geometry = layer.geometry(zeros)
    attended, attended_bias = layer.attention(layer.attention_norm(x_BTH), zeros[:, 0], geometry)
    inner, inner_bias = layer.mlp(layer.mlp_norm(x_BTH))
    expected = x_BTH + attended + attended_bias + inner + inner_bias
    torch.testing.assert_close(layer((x_BTH, zeros, zeros[:, 0]))[0], expected)


def test_zero_centred_norms_start_as_the_identity_of_their_scale() -> None:
    plain, centred = (small_decoder(small_model(norm_zero_centred=on)) for on in (False, True))
    assert centred.final_norm.weight.count_nonzero() == 0
    inputs = random_inputs(small_model())
    torch.testing.assert_close(centred(*inputs), plain(*inputs))


def test_future_tokens_are_not_seen() -> None:
    model = small_model()
    decoder = small_decoder(model).eval()
    tokens, starts, keys, *_ = random_inputs(model)
    changed = tokens.clone()
    changed[:, 12:] = 0
    assert torch.equal(
        decoder(tokens, starts, keys)[:, :12], decoder(changed, starts, keys)[:, :12]
    )


def test_logits_leave_out_the_padded_vocabulary_and_agree_with_the_loss() -> None:
    model = small_model()
    decoder = small_decoder(model).eval()
    inputs = random_inputs(model)
    logits = decoder(*inputs[:3])
    assert logits.shape == (3, 24, model.vocab_size)
    log_probabilities = logits.log_softmax(-1).gather(-1, inputs.labels_BT[..., None])[..., 0]
    torch.testing.assert_close(decoder(*inputs), -(log_probabilities / 24).sum() / 3)
    last = decoder(*inputs[:3], logits_at_B=torch.tensor([3, 23, 0]))
    torch.testing.assert_close(last[:, 0], logits[[0, 1, 2], [3, 23, 0]])


def test_dropout_follows_the_keys_and_ends_in_evaluation() -> None:
    model = small_model(dropout=0.2, attention_dropout=0.2)
    decoder = small_decoder(model)
    inputs = random_inputs(model)
    first = decoder(*inputs)
    assert torch.equal(first, decoder(*inputs))
    assert not torch.equal(
        first, decoder(*inputs._replace(dropout_keys_B=inputs.dropout_keys_B + 1))
    )
    decoder.eval()
    plain = small_decoder(small_model()).eval()
    assert torch.equal(decoder(*inputs), plain(*inputs))


def test_every_place_has_a_dropout_mask_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sites: list[str] = []

    def record(module: ModuleType, name: str, site_of: Callable[..., str]) -> None:
        original = getattr(module, name)

        def recording(*arguments: Any, **named: Any) -> Any:
            sites.append(site_of(*arguments, **named))
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, recording)

    record(embedding, "dropout", lambda x, rate, keys, site, **_: site)
    record(block, "bias_dropout_add", lambda x, b, r, rate, keys, site, **_: site)
    record(attention, "attention", lambda *_, dropout, **__: dropout.site)
    model = small_model(dropout=0.1, attention_dropout=0.1)
    small_decoder(model)(*random_inputs(model))
    branches = ("attention.probabilities", "attention", "mlp")
    blocks = [f"layers.{layer}.{branch}" for layer in (0, 1) for branch in branches]
    assert sites == ["embedding", *blocks]


def test_dropout_of_a_row_does_not_depend_on_the_batch_around_it() -> None:
    model = small_model(dropout=0.2, attention_dropout=0.2)
    decoder = small_decoder(model)
    inputs = random_inputs(model, rows=4)
    whole = decoder(*inputs)
    halves = [decoder(*(tensor[rows] for tensor in inputs)) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


@pytest.mark.parametrize(
    ("position", "options"),
    [
        ("learned", {"recompute": "full"}),
        ("rotary", {"recompute": "full"}),
        ("rotary", {"recompute": "full", "recompute_every": 2}),
        ("rotary", {"recompute": "selective"}),
        ("rotary", {"recompute": "selective", "ops": OpsConfig(attention="reference")}),
    ],
)
def test_recompute_changes_nothing(position: str, options: dict[str, Any]) -> None:
    model = small_model(position=position, dropout=0.1, attention_dropout=0.1)
    inputs = random_inputs(model)
    kept = loss_and_gradients(small_decoder(model, ops=options.get("ops", OpsConfig())), inputs)
    again = loss_and_gradients(small_decoder(model, **options), inputs)
    assert torch.equal(kept[0], again[0])
    for name, gradient in kept[1].items():
        assert torch.equal(gradient, again[1][name]), name


def test_recompute_keeps_less_in_the_blocks_that_it_is_asked_for() -> None:
    """Scores are T x T per head; a block that runs again keeps nothing but its input."""
    model = small_model(num_layers=4, sequence_length=64)
    inputs = random_inputs(model)

    def kept(**options: Any) -> tuple[int, int]:
        sizes: list[int] = []

        def count(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        reference = OpsConfig(attention="reference")
        decoder = small_decoder(model, ops=reference, **options)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            decoder(*inputs)
        return len(sizes), sum(size == 3 * 4 * 64 * 64 for size in sizes)

    everything, scores = kept()
    per_block = scores // 4
    assert per_block > 0
    assert scores == 4 * per_block
    assert kept(recompute="selective")[1] == 0
    assert kept(recompute="selective", recompute_every=3)[1] == 2 * per_block
    full, half = kept(recompute="full")[0], kept(recompute="full", recompute_every=2)[0]
    assert everything - half == half - full > 0


def test_selective_recompute_says_once_that_fused_attention_leaves_it_nothing_to_do(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_once.cache_clear()
    monkeypatch.setattr(get_logger("roots"), "propagate", True)
    model = small_model()
    decoder = small_decoder(model, recompute="selective")
    with caplog.at_level("INFO", logger="roots"):
        decoder(*random_inputs(model))
    line = "recompute: fused attention stores no scores, so selective recompute does nothing"
    assert caplog.messages.count(line) == 1


def test_recompute_is_right_for_interleaved_micro_batches() -> None:
    model = small_model(position="rotary")
    decoder = small_decoder(model, recompute="full", reset_positions=True)
    batches = [random_inputs(model, seed=seed) for seed in (1, 2)]
    expected = [loss_and_gradients(decoder, batch)[1] for batch in batches]
    losses = [decoder(*batch) for batch in batches]  # both forwards first, as in 1F1B
    for loss, gradients in zip(losses, expected, strict=True):
        decoder.zero_grad()
        loss.backward()
        for name, parameter in decoder.named_parameters():
            assert torch.equal(parameter.grad, gradients[name]), name


def test_row_longer_than_learned_positions_is_refused() -> None:
    model = small_model()
    inputs = random_inputs(model, length=25)
    with pytest.raises(RootsError) as error:
        small_decoder(model)(*inputs)
    assert error.value.lines == (
        "tokens in a row=25: is more than the 24 positions that the model has learned; "
        "shorten the text",
    )
    rotary = small_model(position="rotary")
    assert small_decoder(rotary)(*inputs).isfinite()


FAMILIES: list[dict[str, Any]] = [
    {"dropout": 0.1, "attention_dropout": 0.1},
    {
        "position": "rotary",
        "norm": "rms_norm",
        "activation": "swiglu",
        "num_kv_heads": 2,
        "bias": False,
        "tied_embeddings": False,
        "dropout": 0.1,
    },
    {
        "position": "rotary",
        "rotary_fraction": 0.5,
        "rotary_scaling": {"kind": "linear", "factor": 2.0},
        "head_dim": 12,
        "num_kv_heads": 2,
        "qk_norm": True,
        "parallel_residual": True,
        "window": 7,
        "norm_zero_centred": True,
        "activation": "geglu",
        "qkv_bias": False,
    },
]


def tensor_parallel_step(rank: int, world_size: int, features: dict[str, Any]) -> Any:
    model = small_model(**features)
    mesh = Mesh.create(Topology(tensor=world_size))
    decoder = small_decoder(model, mesh)
    loss, gradients = loss_and_gradients(decoder, random_inputs(model))
    shards = {name: shard_of(parameter) for name, parameter in decoder.named_parameters()}
    full = {name: gather_full(g, shards[name], mesh.tensor) for name, g in gradients.items()}
    logits = decoder.eval()(*random_inputs(model)[:3]).detach()
    return loss, full, logits


@pytest.mark.parametrize("features", FAMILIES, ids=["gpt", "llama", "all-options"])
def test_tensor_parallel_decoder_equals_one_process(features: dict[str, Any]) -> None:
    model = small_model(**features)
    decoder = small_decoder(model)
    loss, gradients = loss_and_gradients(decoder, random_inputs(model))
    logits = decoder.eval()(*random_inputs(model)[:3]).detach()
    for other_loss, other_gradients, other_logits in run_distributed(
        tensor_parallel_step, 2, features
    ):
        torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(other_logits, logits, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            difference = (other_gradients[name] - gradient).norm() / gradient.norm()
            assert difference < 1e-5, (name, difference)
