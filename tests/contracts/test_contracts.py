"""Every contract holds in the installed versions."""

from __future__ import annotations

import pytest

from tests.contracts.catalogue import CONTRACTS
from tests.contracts.contract import Contract, numbers
from tests.contracts.observe import RANKS, observe
from tests.helpers.sources import ROOT


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", RANKS)
def test_contracts_hold(ranks: int) -> None:
    """All that so many ranks can see, in one start of them; each that fails is named in words."""
    found = observe(ranks)
    assert set(found) == {each.name for each in CONTRACTS if each.ranks == ranks}
    failed = [
        f"{each.name}: {found[each.name]['seen']} instead of {found[each.name]['expected']}; "
        f"{each.statement} See {', '.join(each.relied_on)}"
        for each in CONTRACTS
        if each.ranks == ranks and not found[each.name]["holds"]
    ]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("each", CONTRACTS, ids=lambda each: each.name)
def test_contract_names_the_files_that_rely_on_it(each: Contract) -> None:
    assert each.statement.endswith("."), "the docstring says what is relied on"
    assert each.relied_on
    missing = [file for file in each.relied_on if not (ROOT / file).is_file()]
    assert not missing


def test_versions_choose_what_is_expected() -> None:
    since = {"": 1, "0.19.3": 2, "0.19.10": 3}
    made = Contract("name", "", "deepspeed", since, (), 1, lambda place: 0)
    expected = {"0.19.0": 1, "0.19.3": 2, "0.19.9": 2, "0.19.10+cpu": 3, "0.20.0a1": 3}
    assert {version: made.expected(version) for version in expected} == expected
    assert numbers("2.13.0+cpu") == (2, 13, 0)
