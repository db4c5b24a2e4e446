"""The rows of the table have every pair of axes, and every field with every feature of a layout."""

from __future__ import annotations

import pytest

from tests.parallel import covering, fields
from tests.parallel.combinations import AXES, FEATURES, layout_of
from tests.parallel.covering import (
    all_pairs,
    legal_layouts,
    read_refused,
    read_rows,
    refusal,
    simplest,
)
from tests.parallel.fields import BASE, CHOICES, EXEMPT, fields_of_schema, unlisted_fields

GENERATE = "run `python -m tests.parallel.generate`"


def test_every_field_of_the_schema_is_listed() -> None:
    assert unlisted_fields() == []
    chosen = {choice.field for choice in CHOICES}
    assert chosen | EXEMPT.keys() == set(fields_of_schema())
    assert not chosen & EXEMPT.keys()


def test_new_field_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    known = tuple(choice for choice in CHOICES if choice.field != "model.window")
    monkeypatch.setattr(fields, "CHOICES", known)
    (line,) = unlisted_fields()
    assert line.startswith("model.window: add a value off its default to CHOICES of")
    assert "`python -m tests.parallel.generate`" in line


def test_choices_have_names_of_their_own_and_are_legal_without_parallelism() -> None:
    assert len({choice.name for choice in CHOICES}) == len(CHOICES)
    alone = layout_of()
    assert {c.name: refusal(c.settings, alone) for c in CHOICES if refusal(c.settings, alone)} == {}


def test_choices_are_off_the_base() -> None:
    config = covering.config_of(covering.NOWHERE, {}, layout_of())
    for choice in CHOICES:
        value = config
        for part in choice.field.split("."):
            value = getattr(value, part)
        assert choice.value != value or choice.when, choice.name
        assert choice.field not in choice.needs or choice.needs[choice.field] == choice.value
    assert BASE.keys() <= {*fields_of_schema()}


def test_rows_and_rules_together_account_for_every_pair() -> None:
    """Each choice meets each feature in a row, or a rule of the config says why it cannot."""
    met = set().union(*(row.pairs() for row in read_rows()))
    refused = read_refused()
    assert all_pairs() - met == refused.keys(), GENERATE
    said = {
        (choice.name, feature): [refusal(choice.settings, each) for each in simplest(feature)]
        for choice in CHOICES
        for feature in FEATURES
        if (choice.name, feature) in refused
    }
    assert {pair: lines[0] for pair, lines in said.items() if all(lines)} == refused, GENERATE


def test_rows_are_legal() -> None:
    assert [r.name for r in read_rows() if refusal(r.settings, r.layout)] == [], GENERATE


def test_rows_have_every_pair_of_axes_that_any_layout_has() -> None:
    rows, legal = read_rows(), legal_layouts()
    assert len(legal) >= 1000
    having = set().union(*(row.layout.choices(2) for row in rows))
    assert having == set().union(*(layout.choices(2) for layout in legal)), GENERATE
    assert {feature for layout in legal for feature in layout.features} == FEATURES.keys()
    used = {(axis, layout[axis]) for layout in legal for axis in AXES}
    assert used == {(axis, value) for axis, values in AXES.items() for value in values}
