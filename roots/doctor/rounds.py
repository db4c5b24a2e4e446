"""Which hosts exchange data with which, at once and without disturbing each other."""

from __future__ import annotations


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Every pair of `count` hosts once, in rounds of pairs that share no host.

    There are count - 1 rounds, and `count` of them where that is odd: one host rests in each.
    """
    # As in a tournament: the first stays, all others move on by a place.
    places = list(range(count + count % 2))
    found = []
    for _ in places[1:]:
        half = len(places) // 2
        pairs = zip(places[:half], reversed(places[half:]))
        found.append([(min(pair), max(pair)) for pair in pairs if max(pair) < count])
        places = [places[0], places[-1], *places[1:-1]]
    return found
