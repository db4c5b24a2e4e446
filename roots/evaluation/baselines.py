"""What translates without a model: a trained one must beat these.

Copying writes the source as it is, which is right for names, numbers and code. A unigram table
writes, word by word, the target word that goes best with each source word in the training pairs:
the one with the largest Dice coefficient 2 c(s, t) / (c(s) + c(t)), where c counts the pairs that
hold a word (Smadja, McKeown, Hatzivassiloglou 1996); words never seen are copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class UnigramTable:
    """The best target word of every source word of some pairs."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Count words and their companions; one pass, memory for every pair of words that meet."""
        sources: Counter[str] = Counter()
        targets: Counter[str] = Counter()
        together: dict[str, Counter[str]] = {}
        for source, target in pairs:
            source_words, target_words = set(source.split()), set(target.split())
            sources.update(source_words)
            targets.update(target_words)
            for word in source_words:
                together.setdefault(word, Counter()).update(target_words)
        self._best = {
            # Of equal ones the first in the alphabet, so that runs are equal.
            word: max(
                sorted(met), key=lambda other: 2 * met[other] / (sources[word] + targets[other])
            )
            for word, met in together.items()
        }

    def translate(self, source: str) -> str:
        """Replace every word by its best companion."""
        return " ".join(self._best.get(word, word) for word in source.split())
