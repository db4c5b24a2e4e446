"""Makes tests/parallel/rows.json: `python -m tests.parallel.generate`, a minute or two.

Greedy twice: layouts that have all pairs of axes, each filled with as many choices as go together;
then layouts of few ranks, filled, until every choice has met every feature. At the end a row goes
whose choices find a place in others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from roots.files import write_atomically
from tests.parallel.combinations import Layout, covering
from tests.parallel.covering import (
    ROWS,
    Pair,
    Row,
    all_pairs,
    as_json,
    joined,
    legal_layouts,
    refusal,
    refused_pairs,
    required,
    simplest,
)
from tests.parallel.fields import CHOICES, Choice

_FEW_RANKS = 4
_ARCHITECTURES = ("model.architecture", "data.objective", "model.moe.num_experts")


def main() -> None:
    """Write the rows and the refused pairs."""
    refused = refused_pairs()
    rows = thinned(list(rows_for(all_pairs() - refused.keys())))
    rows.sort(key=lambda row: row.layout.ranks)
    write_atomically(ROWS, json.dumps(as_json(rows, refused), indent=1) + "\n")
    ranks = sum(row.layout.ranks for row in rows)
    print(f"{len(rows)} rows with {ranks} ranks; {len(refused)} pairs refused")


def rows_for(wanted: set[Pair]) -> Iterator[Row]:
    """Rows that together have all of `wanted` and all pairs of axes."""
    halves = {choice.name for choice in CHOICES if choice.halves}
    of_halves = {pair for pair in wanted if pair[0] in halves}
    plain = wanted - of_halves
    for layout in covering(legal_layouts()):
        row = _best(layout, plain)
        plain -= row.pairs()
        yield row
    for missing in (of_halves, plain):
        while missing:
            row = _next(missing)
            missing -= row.pairs()
            yield row


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Fewer rows with the same pairs: those are tried first that have the fewest alone."""
    kept = list(rows)
    found = True
    while found:
        found = False
        for row in sorted(kept, key=lambda row: (len(_alone(row, kept)), -row.layout.ranks)):
            others = _without(row, kept)
            if others is not None:
                kept, found = others, True
    return kept


def _alone(row: Row, rows: Sequence[Row]) -> set[Pair]:
    """The pairs that no other row has."""
    return row.pairs().difference(*(each.pairs() for each in rows if each is not row))


def _without(row: Row, rows: Sequence[Row]) -> list[Row] | None:
    """The other rows with all that this one has alone, or None where something finds no place."""
    others = [each for each in rows if each is not row]
    axes = set().union(*(each.layout.choices(2) for each in others))
    if not row.layout.choices(2) <= axes:
        return None
    counts = Counter(pair for each in others for pair in each.pairs())
    for name, feature in sorted(_alone(row, rows)):
        if counts[name, feature] > 0:
            continue
        (choice,) = (each for each in CHOICES if each.name == name)
        for place, other in enumerate(others):
            changed = (
                _exchanged(other, choice, counts) if feature in other.layout.features else None
            )
            if changed is not None:
                counts.subtract(other.pairs())
                counts.update(changed.pairs())
                others[place] = changed
                break
        else:
            return None
    return others


def _exchanged(row: Row, choice: Choice, counts: Counter[Pair]) -> Row | None:
    """The row with `choice` in place of what contradicts it, if other rows have that too."""
    kept = []
    for each in row.choices:
        if joined(each.settings, choice.settings) is None:
            if any(counts[each.name, feature] < 2 for feature in row.layout.features):
                return None
        else:
            kept.append(each)
    changed = Row((*kept, choice), row.layout)
    legal = joined(required(row.layout), choice.settings) is not None
    if not legal or choice.halves or any(each.halves for each in kept):
        return None
    return None if refusal(changed.settings, row.layout) else changed


def _next(missing: set[Pair]) -> Row:
    """A row of few ranks with many of the missing pairs."""
    by_field: dict[str, dict[str, set[str]]] = {}
    for name, feature in missing:
        by_field.setdefault(name.partition("=")[0], {}).setdefault(name, set()).add(feature)

    def worth(layout: Layout) -> float:
        """How many it could have, of each field those of one value, for a rank."""
        features = layout.features
        found = (max(len(each & features) for each in v.values()) for v in by_field.values())
        return sum(found) / (2 + layout.ranks)

    row = _best(max((e for e in legal_layouts() if e.ranks <= _FEW_RANKS), key=worth), missing)
    if row.pairs() & missing:
        return row
    # What is left does not go with the many axes of such a layout.
    name, feature = min(missing)
    (choice,) = (each for each in CHOICES if each.name == name)
    alone = next(each for each in simplest(feature) if not refusal(choice.settings, each))
    return _filled(alone, [choice], missing)


def _best(layout: Layout, missing: set[Pair]) -> Row:
    """The row of a layout with the most missing pairs, begun with each kind of model in turn."""
    wanted = {name for name, feature in missing if feature in layout.features}
    kinds = [each for each in CHOICES if each.field in _ARCHITECTURES and each.name in wanted]
    rows = [_filled(layout, [], missing)]
    for kind in kinds:
        if not refusal(kind.settings, layout):
            rows.append(_filled(layout, [kind], missing))
    return max(rows, key=lambda row: len(row.pairs() & missing))


def _filled(layout: Layout, seeds: Sequence[Choice], missing: set[Pair]) -> Row:
    """`seeds` and as many other choices as go with them, first those with most missing pairs."""
    features = layout.features
    worth = {
        choice.name: sum((choice.name, feature) in missing for feature in features)
        for choice in CHOICES
    }
    others = sorted(CHOICES, key=lambda choice: worth[choice.name], reverse=True)
    row = Row((), layout)
    settings = row.settings
    for choice in [*seeds, *(each for each in others if worth[each.name])]:
        if choice in row.choices:
            continue
        together = joined(settings, choice.settings)
        if together is not None and not refusal(together, layout):
            row, settings = Row((*row.choices, choice), layout), together
    return row


if __name__ == "__main__":
    main()
