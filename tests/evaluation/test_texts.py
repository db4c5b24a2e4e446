"""Scores of texts: known values, and one line where sacrebleu is missing."""

from __future__ import annotations

import sys

import pytest

from roots.errors import RootsError
from roots.evaluation.texts import normalised, score_texts, word_f1


def test_words_in_common() -> None:
    assert normalised("The  cat, a CAT!") == "cat cat"
    assert word_f1("the cat sat", "a cat sat down") == pytest.approx(2 * 2 / (2 + 3))
    assert word_f1("cat cat", "cat") == pytest.approx(2 * 1 / 3)
    assert (word_f1("", "the"), word_f1("", "cat"), word_f1("cat", "")) == (1.0, 0.0, 0.0)


def test_scores_of_a_corpus() -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (`pip install sacrebleu`)")
    references = ["the cat sat on the mat", "all is well that ends well"]
    same = score_texts(references, references)
    assert (same.bleu, same.chrf, same.exact_match, same.f1) == pytest.approx((100.0,) * 4)
    assert "smooth:exp" in same.signature
    # By hand: 9 of 12 words, 6 of 10, 4 of 8 and 2 of 6 n-grams, and no brevity penalty.
    half = score_texts(["the cat sat on the mat", "all was good that ends well"], references)
    shares = (10 / 12) * (7 / 10) * (5 / 8) * (3 / 6)
    assert half.bleu == pytest.approx(100 * shares**0.25)
    assert half.exact_match == 50.0
    assert half.f1 == pytest.approx(100 * (1 + 4 / 6) / 2)
    # Case, punctuation and articles are of no matter to two of the measures.
    cased = score_texts(["A cat sat, on the mat.", "All is WELL that ends well!"], references)
    assert (cased.exact_match, cased.f1) == (100.0, 100.0)
    assert cased.bleu < 100.0


def test_missing_sacrebleu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sacrebleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RootsError) as caught:
        score_texts(["a"], ["a"])
    assert caught.value.lines == (
        "sacrebleu: BLEU and chrF need the package sacrebleu, which is not installed; "
        "run `pip install .[eval]`, or `pip install sacrebleu`",
    )
