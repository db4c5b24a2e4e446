"""Scores of continuations and targets are those of one forward over each text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from roots.checkpoint import read_config
from roots.device import Device, launch_environment
from roots.errors import RootsError
from roots.generation.layout import Degrees, join_processes
from roots.generation.load import load_network
from roots.generation.network import Network
from roots.generation.scoring import Score, score_continuations, score_targets
from roots.models.decoder import Decoder
from roots.models.encoder_decoder import EncoderDecoder
from tests.helpers.decoders import small_decoder, small_model
from tests.helpers.distributed import run_distributed
from tests.helpers.encoder_decoders import small_encoder_decoder
from tests.helpers.models import save_model

Pair = tuple[list[int], list[int]]
# A context that three continuations share, of which two begin alike; texts of one token; a text as
# long as the model reads, and one that must lose tokens from its left.
SHAPES = [(5, 3), (5, 1), (5, 4), (1, 1), (9, 2), (20, 5), (30, 4), (3, 0), (1, 24)]


def pairs_of(seed: int = 0, vocab_size: int = 100) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> list[int]:
        return torch.randint(vocab_size, (count,), generator=generator).tolist()

    shared = some(5)
    return [(shared if first == 5 else some(first), some(second)) for first, second in SHAPES]


@torch.no_grad()
def alone(decoder: Decoder, context: list[int], continuation: list[int]) -> Score:
    limit = decoder.model.sequence_length
    text = [*context, *continuation][-limit - 1 :]
    tokens_BT = torch.tensor([text[:-1]])
    zeros_B = torch.zeros(1, dtype=torch.int64)
    logits_TV = decoder(tokens_BT, torch.zeros_like(tokens_BT), zeros_B)[0].double()
    count = len(continuation)
    table = logits_TV.log_softmax(-1)[len(text) - 1 - count :]
    found = [row[token].item() for row, token in zip(table, continuation, strict=True)]
    return Score(tuple(found), bool((table.argmax(-1) == torch.tensor(continuation)).all()))


def assert_equal(scores: list[Score], expected: list[Score]) -> None:
    for score, other in zip(scores, expected, strict=True):
        assert score.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
        assert score.total == pytest.approx(sum(other.log_probabilities), abs=1e-4)
        assert score.greedy == other.greedy


@pytest.mark.parametrize("tokens_at_a_time", [1, 30, 2048])
@pytest.mark.parametrize(
    "fields", [{"num_heads": 4}, {"position": "rotary", "norm": "rms_norm", "num_kv_heads": 2}]
)
def test_scores_are_those_of_each_text_alone(fields: dict[str, Any], tokens_at_a_time: int) -> None:
    decoder = small_decoder(small_model(init_std=0.3, **fields)).eval()
    pairs = pairs_of()
    expected = [alone(decoder, *pair) for pair in pairs]
    done: list[int] = []
    scores = score_continuations(
        Network.of(decoder), pairs, tokens_at_a_time=tokens_at_a_time, progress=done.append
    )
    assert_equal(scores, expected)
    assert done == sorted(done)
    assert done[-1] == len(pairs)


def test_what_the_model_would_write_is_greedy() -> None:
    decoder = small_decoder(small_model(init_std=0.3)).eval()
    context, written = [3, 1, 4], list[int]()
    for _ in range(4):
        best = max(range(100), key=lambda each: alone(decoder, context + written, [each]).total)
        written.append(best)
    other = [*written[:3], (written[3] + 1) % 100]
    scores = score_continuations(Network.of(decoder), [(context, written), (context, other)])
    assert [score.greedy for score in scores] == [True, False]


def test_targets_score_as_each_alone() -> None:
    model = small_encoder_decoder(source_length=12)
    pairs = [pair for pair in pairs_of() if len(pair[1]) <= 24]
    expected = [target_alone(model, *pair) for pair in pairs]
    assert_equal(score_targets(model, pairs, begin=7, tokens_at_a_time=20), expected)


@torch.no_grad()
def target_alone(model: EncoderDecoder, source: list[int], target: list[int]) -> Score:
    if not target:
        return Score((), True)
    source_BS = torch.tensor([source[-model.model.source_tokens :]])
    tokens_BT = torch.tensor([[7, *target[:-1]]])
    zeros_B = torch.zeros(1, dtype=torch.int64)
    lengths_B = torch.tensor([source_BS.shape[1]])
    logits_BTV = model(tokens_BT, source_BS, torch.zeros_like(tokens_BT), lengths_B, zeros_B)
    table = logits_BTV[0].double().log_softmax(-1)
    found = [row[token].item() for row, token in zip(table, target, strict=True)]
    return Score(tuple(found), bool((table.argmax(-1) == torch.tensor(target)).all()))


def test_what_cannot_be_scored_is_told() -> None:
    network = Network.of(small_decoder(small_model()).eval())
    with pytest.raises(RootsError) as caught:
        score_continuations(network, [([1], [2]), ([], [2])])
    fix = "put the token there that begins a text"
    assert caught.value.lines == (f"context 2: is empty: nothing can follow nothing; {fix}",)
    with pytest.raises(RootsError) as caught:
        score_continuations(network, [([1], [2] * 25)])
    rule = "is more than the model's sequence_length of 24"
    assert caught.value.lines == (f"tokens of continuation 1=25: {rule}; shorten it",)


def scores_on(rank: int, world_size: int, folder: Path, degrees: Degrees) -> list[Score]:
    device = Device("cpu", rank)
    mesh = join_processes(read_config(folder), degrees, launch_environment(), device)
    return score_continuations(
        load_network(folder, device, mesh).network, pairs_of(), tokens_at_a_time=30
    )


@pytest.mark.parametrize(
    "degrees, world_size",
    [
        (Degrees(tensor=2, expert=1), 2),
        (Degrees(pipeline=2, expert=1), 2),
        (Degrees(expert=2), 2),
        (Degrees(tensor=2, pipeline=2, expert=1), 4),
    ],
)
def test_scores_do_not_depend_on_the_layout(
    tmp_path: Path, degrees: Degrees, world_size: int
) -> None:
    """Nor on how many copies there are, which take shares."""
    moe = {"num_experts": 4, "top_k": 2}
    model = {"vocab_size": 100, "sequence_length": 24, "position": "rotary", "moe": moe}
    save_model(tmp_path / "saved", model=model)
    network = load_network(tmp_path / "saved", Device("cpu", 0)).network
    expected = score_continuations(network, pairs_of())
    for scores in run_distributed(scores_on, world_size, tmp_path / "saved", degrees):
        for score, other in zip(scores, expected, strict=True):
            assert score.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-5)
            assert score.greedy == other.greedy
