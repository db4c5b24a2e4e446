"""Beam search against an exhaustive search over a small vocabulary.

Legend: R texts, V vocabulary.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from roots.errors import RootsError
from roots.generation.beam import BeamOptions, beam_search

END, VOCAB, LENGTH = 0, 4, 4
CPU = torch.device("cpu")


class Table:
    """Log-probabilities that depend on the row and on all tokens before, at random."""

    def __init__(self, rows: int, beams: int, seed: int, sharpness: float) -> None:
        self.texts: list[tuple[int, ...]] = [()] * (rows * beams)
        self.row_of = [row for row in range(rows) for _ in range(beams)]
        self.seed = seed
        self.sharpness = sharpness
        self.calls = 0

    def next_log_probabilities(self, tokens_R: Tensor | None) -> Tensor:
        self.calls += 1
        if tokens_R is not None:
            self.texts = [(*text, token) for text, token in zip(self.texts, tokens_R.tolist())]
        return torch.stack([self.row(*pair) for pair in zip(self.row_of, self.texts)])

    def row(self, row: int, text: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, row, text)) % 2**31)
        return (torch.randn(VOCAB, generator=generator) * self.sharpness).log_softmax(-1)

    def reorder(self, rows_R: Tensor) -> None:
        assert [self.row_of[r] for r in rows_R.tolist()] == self.row_of
        self.texts = [self.texts[r] for r in rows_R.tolist()]


def score(table: Table, row: int, text: tuple[int, ...], penalty: float) -> float:
    steps = [float(table.row(row, text[:i])[token]) for i, token in enumerate(text)]
    return sum(steps) / len(text) ** penalty


def all_texts() -> list[tuple[int, ...]]:
    """Every text that ends, or has the largest length."""
    words = range(VOCAB)
    whole = [text for n in range(1, LENGTH + 1) for text in itertools.product(words, repeat=n)]
    return [t for t in whole if END not in t[:-1] and (t[-1] == END or len(t) == LENGTH)]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_finds_the_best_of_all_texts(seed: int, penalty: float) -> None:
    rows, beams = 3, VOCAB**LENGTH // 2
    table = Table(rows, beams, seed, sharpness=1.0)
    options = BeamOptions(num_beams=beams, length_penalty=penalty, max_new_tokens=LENGTH)
    found = beam_search(table, options, rooms=[None] * rows, end=END, device=CPU)
    for row, hypothesis in enumerate(found):
        best = max(all_texts(), key=lambda text: score(table, row, text, penalty))
        assert hypothesis.token_ids == best[: len(best) - (best[-1] == END)]
        assert hypothesis.stopped_by == ("end_of_document" if best[-1] == END else "max_new_tokens")
        assert hypothesis.score == pytest.approx(score(table, row, best, penalty), rel=1e-5)


def test_one_beam_is_greedy_and_rows_do_not_depend_on_each_other() -> None:
    options = BeamOptions(num_beams=1, max_new_tokens=LENGTH)
    table = Table(40, 1, seed=3, sharpness=1.0)
    for row, hypothesis in enumerate(
        beam_search(table, options, rooms=[None] * 40, end=END, device=CPU)
    ):
        text: tuple[int, ...] = ()
        while len(text) < LENGTH and text[-1:] != (END,):
            text = (*text, int(table.row(row, text).argmax()))
        assert hypothesis.token_ids == text[: len(text) - (text[-1] == END)]


def test_search_ends_when_no_beam_can_win() -> None:
    """A scorer that is sure: N finished texts leave nothing to look for long before the limit."""
    table = Table(1, 2, seed=1, sharpness=8.0)
    options = BeamOptions(num_beams=2, length_penalty=0.0, max_new_tokens=200)
    (found,) = beam_search(table, options, rooms=[None], end=END, device=CPU)
    assert found.stopped_by == "end_of_document"
    assert table.calls < 100


def test_one_beam_never_changes_places() -> None:
    class Still(Table):
        def reorder(self, rows_R: Tensor) -> None:
            pytest.fail("a cache would be copied onto itself")

    options = BeamOptions(num_beams=1, max_new_tokens=LENGTH)
    table = Still(40, 1, seed=3, sharpness=1.0)
    beam_search(table, options, rooms=[None] * 40, end=END, device=CPU)
    assert table.calls == LENGTH


@pytest.mark.parametrize("beams", [1, 2, VOCAB**LENGTH // 2])
def test_every_row_has_its_own_room(beams: int) -> None:
    """Rows of a batch write what they would alone, under any limit of the others."""
    rooms: list[int | None] = [1, None, 3, LENGTH, 9]
    options = BeamOptions(num_beams=beams, length_penalty=0.6, max_new_tokens=LENGTH)
    table = Table(len(rooms), beams, seed=3, sharpness=1.0)
    together = beam_search(table, options, rooms=rooms, end=END, device=CPU)
    reasons = set()
    for row, room in enumerate(rooms):
        alone = Table(1, beams, seed=3, sharpness=1.0)
        alone.row_of = [row] * beams
        options = BeamOptions(
            num_beams=beams, length_penalty=0.6, max_new_tokens=min(room or LENGTH, LENGTH)
        )
        (expected,) = beam_search(alone, options, rooms=[None], end=END, device=CPU)
        assert together[row].token_ids == expected.token_ids
        assert together[row].score == pytest.approx(expected.score, rel=1e-6)
        reason = expected.stopped_by
        if reason == "max_new_tokens" and room is not None and room <= LENGTH:
            reason = "sequence_length"
        assert together[row].stopped_by == reason
        reasons.add(reason)
    assert "sequence_length" in reasons


def test_options_out_of_range_are_named_at_once() -> None:
    with pytest.raises(RootsError) as caught:
        BeamOptions(num_beams=0, max_new_tokens=-1, length_penalty=float("nan"))
    assert caught.value.lines == (
        "beams=0: must be 1 or more; raise it",
        "max_new_tokens=-1: must be 1 or more; raise it",
        "length_penalty=nan: must be a finite number; use 1 or near it",
    )
