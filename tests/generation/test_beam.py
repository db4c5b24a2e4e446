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
    found = beam_search(table, options, rows=rows, end=END, device=CPU)
    for row, hypothesis in enumerate(found):
        best = max(all_texts(), key=lambda text: score(table, row, text, penalty))
        assert hypothesis.token_ids == best[: len(best) - (best[-1] == END)]
        assert hypothesis.finished == (best[-1] == END)
        assert hypothesis.score == pytest.approx(score(table, row, best, penalty), rel=1e-5)


def test_one_beam_is_greedy_and_rows_do_not_depend_on_each_other() -> None:
    options = BeamOptions(num_beams=1, max_new_tokens=LENGTH)
    table = Table(40, 1, seed=3, sharpness=1.0)
    for row, hypothesis in enumerate(beam_search(table, options, rows=40, end=END, device=CPU)):
        text: tuple[int, ...] = ()
        while len(text) < LENGTH and text[-1:] != (END,):
            text = (*text, int(table.row(row, text).argmax()))
        assert hypothesis.token_ids == text[: len(text) - (text[-1] == END)]


def test_search_ends_when_no_beam_can_win() -> None:
    """A scorer that is sure: N finished texts leave nothing to look for long before the limit."""
    table = Table(1, 2, seed=1, sharpness=8.0)
    options = BeamOptions(num_beams=2, length_penalty=0.0, max_new_tokens=200)
    assert beam_search(table, options, rows=1, end=END, device=CPU)[0].finished
    assert table.calls < 100


def test_options_out_of_range_are_named_at_once() -> None:
    with pytest.raises(RootsError) as caught:
        BeamOptions(num_beams=0, max_new_tokens=-1)
    assert caught.value.lines == (
        "num_beams=0: must be 1 or more; raise it",
        "max_new_tokens=-1: must be 1 or more; raise it",
    )
