"""The loss on pairs is that of each pair alone, and the model's texts are scored."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from roots.errors import RootsError
from roots.evaluation.pairs import evaluate_pairs, total_loss
from roots.generation.beam import BeamOptions
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.encoder_decoders import small_encoder_decoder

BEGIN, END = 3, 256
PAIRS = [("one", "eins"), ("twenty-two", "zwei und zwanzig, gekuerzt"), ("a", "b")]


def test_loss_is_the_mean_over_tokens_of_every_pair_alone() -> None:
    model = small_encoder_decoder(vocab_size=257)
    words = ByteTokenizer()
    sources, targets = ([[*words.encode(pair[k]), END] for pair in PAIRS] for k in (0, 1))
    nats, tokens = total_loss(model, sources, targets, begin=BEGIN, batch_size=2)
    expected = 0.0
    for source, target in zip(sources, targets):
        target = target[: model.model.sequence_length]
        with torch.no_grad():
            logits_BTV = model(
                torch.tensor([[BEGIN, *target[:-1]]]),
                torch.tensor([source]),
                torch.zeros(1, len(target), dtype=torch.int64),
                torch.tensor([len(source)]),
                torch.zeros(1, dtype=torch.int64),
            )
        losses = torch.nn.functional.cross_entropy(
            logits_BTV[0], torch.tensor(target), reduction="sum"
        )
        expected += float(losses)
    assert tokens == 5 + 24 + 2
    assert nats == pytest.approx(expected, rel=1e-5)


def test_what_the_model_writes_is_scored() -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (`pip install sacrebleu`)")
    model = small_encoder_decoder(vocab_size=257)
    options = BeamOptions(num_beams=2, max_new_tokens=6)
    seen: list[int] = []
    scores = evaluate_pairs(
        model, ByteTokenizer(), PAIRS, options, begin=BEGIN, batch_size=2, progress=seen.append
    )
    assert seen == [3]
    assert (scores.pairs, len(scores.written)) == (3, 3)
    assert scores.tokens == 5 + 24 + 2, "ends are predicted too"
    assert scores.perplexity == pytest.approx(math.exp(scores.loss))
    own = [(source, text) for (source, _), text in zip(PAIRS, scores.written)]
    same = evaluate_pairs(model, ByteTokenizer(), own, options, begin=BEGIN)
    assert same.texts.exact_match == 100.0


def test_perplexity_too_large_to_hold_is_infinite() -> None:
    """Logits of this size make a wrong token cost thousands of nats, and e to that no float."""
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (`pip install sacrebleu`)")
    model = small_encoder_decoder(vocab_size=257)
    with torch.no_grad():
        model.embedding.tokens.weight *= 1e4
    scores = evaluate_pairs(
        model, ByteTokenizer(), PAIRS, BeamOptions(num_beams=1, max_new_tokens=2), begin=BEGIN
    )
    assert 1000 < scores.loss < math.inf
    assert scores.perplexity == math.inf


def test_missing_sacrebleu_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sacrebleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RootsError, match="need the package sacrebleu"):
        evaluate_pairs(
            small_encoder_decoder(vocab_size=257),
            ByteTokenizer(),
            PAIRS,
            BeamOptions(),
            begin=BEGIN,
        )
