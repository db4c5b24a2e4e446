"""The unigram table finds what goes together, and copies what it never saw."""

from __future__ import annotations

from roots.evaluation.baselines import UnigramTable

PAIRS = [
    ("the house", "das Haus"),
    ("the tree", "der Baum"),
    ("the green house", "das gruene Haus"),
    ("a tree", "ein Baum"),
    ("green", "gruene"),
    ("the small", "das kleine"),
]


def test_best_companion_is_no_mere_frequent_word() -> None:
    table = UnigramTable(PAIRS)
    assert table.translate("the  green tree 42") == "das gruene Baum 42"
    # Equally good companions: the first in the alphabet.
    assert UnigramTable([("x y", "b a")]).translate("x y") == "a a"
