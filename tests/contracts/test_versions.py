"""The recorded table of versions: page and results say the same, and it is of today's contracts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.contracts.catalogue import CONTRACTS
from tests.contracts.contract import numbers
from tests.contracts.page import PAGE, faults, page_of, pairs
from tests.contracts.versions import RESULTS, entered, pinned
from tests.helpers.sources import ROOT


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text(encoding="utf-8")))


def test_page_is_made_from_the_results(record: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page_of(record, page) == page, "run `python -m tests.contracts.versions`"


def test_results_are_of_these_contracts(record: dict[str, Any]) -> None:
    """Words and expectations: what was seen is judged anew where they change, without a run."""
    assert record["contracts"] == {each.name: each.words() for each in CONTRACTS}


def test_bounds_are_what_was_shown(record: dict[str, Any]) -> None:
    """The oldest that pyproject.toml admits, and the pinned versions, are good in the table."""
    shown = {(each["torch"], each["deepspeed"]) for each in record["pairs"]}
    good = {pair for pair in shown if not list(faults(record, *pair))}
    assert (pinned("torch"), pinned("deepspeed")) in good
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for index, package in enumerate(("torch", "deepspeed")):
        (least,) = re.findall(rf'^    "{package}>=([\d.]+)",$', project, re.M)
        oldest = min((pair[index] for pair in good), key=numbers)
        assert numbers(oldest)[: len(numbers(least))] == numbers(least), package


def test_a_pair_is_entered_once_and_in_order() -> None:
    words = {"statement": "It is.", "of": "deepspeed", "since": {"": 1}, "relied_on": ["setup.py"]}
    record: dict[str, Any] = {"contracts": {"one": words}, "pairs": []}
    found = {
        "versions": {"torch": "2.13.0+cpu", "deepspeed": "0.19.10"},
        "contracts": {"one": {"seen": 2, "expected": 1, "holds": False}},
        "roots": {"trains": "holds", "resumes": "AssertionError"},
    }
    entered(record, "2.13.0", "0.19.10", {"failed": "no such version"})
    assert list(faults(record, "2.13.0", "0.19.10")) == ["no such version"]
    entered(record, "2.13.0", "0.19.9", found)
    entered(record, "2.13.0", "0.19.10", found)
    assert [each["deepspeed"] for each in record["pairs"]] == ["0.19.9", "0.19.10"]
    lines = ["one: 2 instead of 1", "resumes: AssertionError"]
    assert list(faults(record, "2.13.0", "0.19.10")) == lines
    assert "0/1, ROOTS 1/2" in pairs(record)
