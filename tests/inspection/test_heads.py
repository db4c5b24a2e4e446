"""Heads that copy are found by what they look at in a text that comes twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roots.errors import RootsError
from roots.inspection.heads import (
    NAMED_FROM,
    repeated_length,
    repeated_tokens,
    score_heads,
    scores_by_kind,
)
from roots.models.decoder import Decoder
from tests.helpers.decoders import small_decoder, small_model

LENGTH, VOCABULARY, ROWS = 32, 32, 32
# The step at which induction appears differs with the seed, and with some it takes thousands.
SEED, MOST_STEPS = 2, 400


def periodic_rows(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows that repeat random tokens, each with a period of its own, so that no place tells what
    comes; and weights of what can be copied."""
    periods_B1 = torch.randint(5, LENGTH // 2 + 1, (ROWS, 1), generator=generator)
    once = torch.rand(ROWS, VOCABULARY, generator=generator).argsort(1)
    places = torch.arange(LENGTH + 1)
    weights_BT = (places[1:] > periods_B1).float()
    return once.gather(1, places % periods_B1), weights_BT / weights_BT.sum(1, keepdim=True)


def train_to_copy() -> Decoder:
    """Two blocks whose MLPs are too narrow to help."""
    model = small_model(
        vocab_size=VOCABULARY,
        sequence_length=LENGTH,
        num_heads=2,
        ffn_hidden_size=2,
        position="rotary",
        rotary_base=100.0,
        norm="rms_norm",
        bias=False,
        init_std=0.2,
    )
    decoder = small_decoder(model, seed=SEED)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (1.0 - step / MOST_STEPS)
    )
    generator = torch.Generator().manual_seed(0)
    keys_B = torch.zeros(ROWS, dtype=torch.int64)
    for _ in range(MOST_STEPS):
        rows, weights_BT = periodic_rows(generator)
        tokens_BT, labels_BT = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        loss = decoder(tokens_BT, torch.zeros_like(tokens_BT), keys_B, labels_BT, weights_BT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if loss.item() < 0.2:
            break
    return decoder.eval()


def test_model_of_repeated_tokens_has_an_induction_head_that_is_named() -> None:
    """In its second block, behind a head of the first that looks at the token before; and what
    comes again costs next to nothing. An untrained model has neither."""
    found = score_heads(train_to_copy(), length=12)
    named = {(each["kind"], each["block"]) for each in found["named"]}
    assert ("induction", 1) in named
    assert ("previous", 0) in named
    assert ("induction", 0) not in named
    first, again = found["losses"]
    assert first > 3.0
    assert again < 0.5
    untrained = score_heads(small_decoder(small_model(init_std=0.2)).eval())
    assert not untrained["named"]


def test_scores_are_attention_to_the_places_of_the_definitions() -> None:
    """Heads made by hand: each looks at one place, where there is one."""
    length = 5
    weights = torch.zeros(1, 4, 2 * length, 2 * length)
    for query in range(1, 2 * length):
        weights[0, 1, query, query - 1] = 1.0
        weights[0, 3, query, 0] = 1.0
        if query >= length:
            weights[0, 0, query, query - length + 1] = 1.0
            weights[0, 2, query, query - length] = 1.0
    scores = scores_by_kind({0: weights}, length)
    for head, kind in enumerate(("induction", "previous", "duplicate")):
        assert scores[kind][0, :3].tolist() == [float(each == head) for each in range(3)]
    # The first place is the one before the second, and where the first token was.
    assert scores["first"][0].tolist() == pytest.approx([0.0, 1 / 9, 1 / 9, 1.0])
    assert float(scores["previous"][0, 3]) == pytest.approx(1 / 9)
    assert float(scores["duplicate"][0, 3]) == pytest.approx(1 / 5)


def test_repeated_tokens_differ_and_leave_out_what_is_no_word() -> None:
    model = small_model(vocab_size=20)
    tokens_BT = repeated_tokens(model, length=12, rows=3, seed=1, without=[0, 7])
    assert torch.equal(tokens_BT[:, :12], tokens_BT[:, 12:])
    for row in tokens_BT.tolist():
        assert len(set(row)) == 12
        assert not {0, 7} & set(row)


def test_length_is_what_the_model_sees_at_once() -> None:
    assert repeated_length(small_model(sequence_length=24)) == 12
    assert repeated_length(small_model(sequence_length=24, position="rotary", window=10)) == 5
    assert repeated_length(small_model(sequence_length=400)) == 48


def test_model_that_sees_too_little_is_refused() -> None:
    decoder = small_decoder(small_model(sequence_length=7))
    with pytest.raises(RootsError) as error:
        score_heads(decoder)
    assert error.value.lines == (
        "tokens that the model sees at once=7: must be 8 or more for a sequence to be repeated in "
        "it; use another",
    )


def test_chance_names_no_head() -> None:
    """Attention spread over the fewest tokens that are repeated stays below the threshold."""
    spread = torch.ones(1, 1, 8, 8).tril()
    spread /= spread.sum(-1, keepdim=True)
    scores = scores_by_kind({0: spread}, 4)
    assert max(float(scores[kind].max()) for kind in ("induction", "previous", "duplicate")) < (
        NAMED_FROM
    )
