"""Measures of answers for task files of lm_eval, by the code of `roots evaluate --pairs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from roots.evaluation.texts import normalised, word_f1


def best_of_answers(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of what was written, each of the right answer that it comes closest to."""
    (text,) = results
    answers = document["answers"]
    return {
        "exact_match": max(float(normalised(text) == normalised(answer)) for answer in answers),
        "f1": max(word_f1(text, answer) for answer in answers),
    }
