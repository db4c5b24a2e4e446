"""Measures of written texts against references: BLEU, chrF, exact match and F1.

BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are sacrebleu's, with its defaults, on whole
corpora of detokenised text, so that figures can be compared with those of others (Post, "A call for
clarity in reporting BLEU scores", 2018); the signature says how they were computed. Exact match and
F1 are those of SQuAD (Rajpurkar et al. 2016): the mean over texts, after lower case and without
punctuation, articles and extra space; F1 counts words in common.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from roots.errors import RootsError, problem

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TextScores:
    """All from 0 to 100; `signature` is sacrebleu's of BLEU."""

    bleu: float
    chrf: float
    exact_match: float
    f1: float
    signature: str


def score_texts(written: Sequence[str], references: Sequence[str]) -> TextScores:
    """Compare texts with one reference each.

    Raises RootsError where sacrebleu is not installed or there are no texts.
    """
    if not references:
        raise RootsError(problem("texts", 0, "there is nothing to score", "give some pairs"))
    assert len(written) == len(references), "every text has one reference"
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ModuleNotFoundError:
        rule = "BLEU and chrF need the package sacrebleu, which is not installed"
        fix = "run `pip install .[eval]`, or `pip install sacrebleu`"
        raise RootsError(problem("sacrebleu", None, rule, fix)) from None
    bleu = BLEU()
    score = bleu.corpus_score(list(written), [list(references)])
    chrf = CHRF().corpus_score(list(written), [list(references)])
    pairs = list(zip(written, references))
    exact = sum(normalised(text) == normalised(reference) for text, reference in pairs)
    return TextScores(
        bleu=float(score.score),
        chrf=float(chrf.score),
        exact_match=100.0 * exact / len(pairs),
        f1=100.0 * sum(word_f1(text, reference) for text, reference in pairs) / len(pairs),
        signature=str(bleu.get_signature()),
    )


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and extra space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(text: str, reference: str) -> float:
    """Harmonic mean of the shares of words in common, 0 to 1; of two empty texts 1."""
    words, wanted = normalised(text).split(), normalised(reference).split()
    common = sum((Counter(words) & Counter(wanted)).values())
    if not words or not wanted:
        return float(words == wanted)
    return 2 * common / (len(words) + len(wanted))
