"""Ranks meet where the user says, else where the host of rank 0 can be met."""

from __future__ import annotations

from dataclasses import replace

import pytest

from roots.errors import RootsError
from roots.launching.gather import Way
from roots.launching.host_facts import facts_here
from roots.launching.meeting import meeting
from tests.launching.test_checks import GOOD

NOBODY = Way("a", lambda _: ["bash", "-c", "echo gone >&2"], lambda _: "start it")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_host_of_rank_0_decides_what_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meeting(NOBODY, GOOD) == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "23456"}
    monkeypatch.setenv("MASTER_ADDR", "fast")
    assert meeting(NOBODY, GOOD) == {"MASTER_ADDR": "fast", "MASTER_PORT": "23456"}
    # Nobody is asked then.
    monkeypatch.setenv("MASTER_PORT", "7000")
    assert meeting(NOBODY) == {"MASTER_ADDR": "fast", "MASTER_PORT": "7000"}


def test_what_cannot_be_met_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fix = "set MASTER_ADDR to an address that all hosts reach"
    lines = {
        f"host a: `hostname -I` names no address there; {fix}": replace(GOOD, addresses=()),
        "host a: of a hundred ports none is free there; set MASTER_PORT to one that is": replace(
            GOOD, free_port=0
        ),
        "host a: does not tell about itself (gone); start it": None,
    }
    for line, facts in lines.items():
        with pytest.raises(RootsError) as caught:
            meeting(NOBODY, facts)
        assert caught.value.lines == (line,)
    monkeypatch.setenv("MASTER_PORT", "70000")
    with pytest.raises(RootsError) as caught:
        meeting(NOBODY, GOOD)
    assert caught.value.lines == (
        "MASTER_PORT='70000': must be a port, 1 to 65535; unset it to have a free one found",
    )


def test_a_host_tells_a_port_below_those_of_connections() -> None:
    assert 20_000 <= facts_here().free_port < 30_000
