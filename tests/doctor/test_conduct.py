"""All hosts are asked in step; one that fails holds up nobody for long, and is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from roots.doctor import conduct
from roots.doctor.conduct import examine, words_of
from roots.doctor.judge import judge
from roots.doctor.survey import Survey
from roots.doctor.text import text_lines
from roots.launching.gather import Way
from tests.doctor.agent_in_place import DEVICE
from tests.launching.own_network import own_interface

AGENT = Path(__file__).with_name("agent_in_place.py")


@pytest.fixture(autouse=True)
def interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that are all this machine may have a name that stands for its loopback."""
    monkeypatch.setenv("ROOTS_INTERFACE", own_interface()[0])


def measured(folder: Path, names: str, **changes: dict[str, Any]) -> tuple[Survey, list[str]]:
    """What comes of hosts of these names, and the lines told meanwhile."""

    def way(name: str) -> Way:
        def reach(words: Sequence[str]) -> list[str]:
            if conduct.MODULE in words:
                return [sys.executable, str(AGENT), name, str(folder)]
            return ["false"] if changes.get(name) == {"facts": "none"} else list(words)

        return Way(name, reach)

    for name, change in changes.items():
        (folder / f"{name}.json").write_text(json.dumps(change), encoding="ascii")
    lines: list[str] = []
    survey = examine([way(name) for name in names], dict.fromkeys(names, 1), folder, lines.append)
    return survey, lines


def asked(folder: Path, name: str) -> list[str]:
    """What the host was asked, in order."""
    lines = (folder / f"{name}.asked").read_text(encoding="ascii").splitlines()
    questions = [json.loads(line) for line in lines]
    return [each.get("work", {}).get("name", each["do"]) for each in questions]


def test_hosts_that_are_well_are_measured_once(tmp_path: Path) -> None:
    survey, lines = measured(tmp_path, "abc")
    assert judge(survey) == []
    assert {name: rates.disk for name, rates in survey.rates.items()} == dict.fromkeys("abc", 2e9)
    assert [pair.hosts for pair in survey.pairs] == [("b", "c"), ("a", "c"), ("a", "b")]
    assert {pair.rate for pair in survey.pairs} == {4e9}
    assert (survey.rounds, survey.all_rounds, survey.reduce) == (3, 3, 3e9)
    assert lines[0] == "3 of 3 hosts answer"
    words = asked(tmp_path, "b")
    assert words[:4] == ["counters", "start", "disk", "matmul"]
    assert words[4:-2] == ["ports", "pair", "pair"]
    assert words[-2:] == ["reduce", "counters"]


def test_rate_that_is_low_once_is_measured_again(tmp_path: Path) -> None:
    survey, lines = measured(tmp_path, "abc", b={"disk": [{"rate": 1e6}]})
    assert "measuring once more what is slow: disk" in lines
    assert judge(survey) == []
    words = asked(tmp_path, "b")
    assert [words.count(each) for each in ("start", "disk", "matmul", "reduce")] == [1, 2, 1, 1]


def test_rate_that_stays_low_is_told(tmp_path: Path) -> None:
    survey, _ = measured(tmp_path, "abc", b={"disk": {"rate": 1e6}})
    (finding,) = judge(survey)
    assert (finding.hosts, finding.part, finding.value) == (("b",), "disk", "1 MB/s")


def test_host_without_the_folder_is_told_alone(tmp_path: Path) -> None:
    survey, _ = measured(tmp_path, "abc", b={"disk": {"rate": None, "no_folder": True}})
    (finding,) = judge(survey)
    assert (finding.hosts, finding.part, finding.value) == (("b",), "--disk", str(tmp_path))


def test_host_that_ends_at_the_second_time_is_told(tmp_path: Path) -> None:
    changes = {"matmul": [{"devices": [{**DEVICE, "matmul": 1e9}]}, "die"]}
    survey, lines = measured(tmp_path, "abc", b=changes)
    assert "measuring once more what is slow: matmul" in lines
    (finding,) = judge(survey)
    assert finding.rule == "stopped to answer while it was measured (it was cut off)"


def test_pair_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    error = {"devices": [{"error": "Connection refused"}]}
    survey, _ = measured(tmp_path, "abc", b={"pair": error, "reduce": error})
    (finding,) = judge(survey)
    assert finding.hosts == ("b",)
    assert finding.rule == "no other host works with it (Connection refused)"
    assert survey.reduce_error == "Connection refused"


def test_device_that_cannot_start_is_told(tmp_path: Path) -> None:
    error = {"devices": [{"error": "no torch"}]}
    survey, _ = measured(tmp_path, "abc", b={"start": error, "matmul": error})
    (finding,) = judge(survey)
    assert (finding.hosts, finding.rule) == (("b",), "fails (no torch)")
    assert [pair.hosts for pair in survey.pairs] == [("a", "c")]


def test_host_that_dies_or_hangs_is_told_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "_DISK_SECONDS", 1.0)
    changes: dict[str, Any] = {"b": {"disk": "die"}, "d": {"disk": "hang"}, "e": {"facts": "none"}}
    survey, lines = measured(tmp_path, "abcde", **changes)
    assert lines[0] == "4 of 5 hosts answer"
    rules = {finding.hosts: finding.rule for finding in judge(survey)}
    assert rules == {
        ("e",): "does not tell about itself (ended with code 1 and said nothing)",
        ("b",): "stopped to answer while it was measured (it was cut off)",
        ("d",): "stopped to answer while it was measured (did not answer in 1 s)",
    }
    assert [pair.hosts for pair in survey.pairs] == [("a", "c")]
    assert survey.rates["c"].disk == 2e9


def test_nothing_is_measured_where_no_host_answers(tmp_path: Path) -> None:
    survey, lines = measured(tmp_path, "a", a={"facts": "none"})
    assert lines == ["0 of 1 host answers"]
    (finding,) = judge(survey)
    assert finding.hosts == ("a",)
    assert text_lines(survey) == []


def test_one_round_is_one(tmp_path: Path) -> None:
    _, lines = measured(tmp_path, "ab")
    assert "measuring pairs of hosts, 1 round" in lines


def test_rounds_end_when_there_is_no_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "_ROUNDS_SECONDS", 0.0)
    survey, _ = measured(tmp_path, "abcd")
    assert (survey.rounds, survey.all_rounds) == (1, 3)
    assert [pair.hosts for pair in survey.pairs] == [("a", "d"), ("b", "c")]
    assert judge(survey) == []


def test_agents_get_the_users_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTS_INTERFACE", "eth7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("SECRET", "x")
    words = words_of(Path("/scratch"))
    assert words[:3] == ["env", "-C", "/"]
    assert {"GLOO_SOCKET_IFNAME=eth1", "NCCL_SOCKET_IFNAME=eth7", "NCCL_DEBUG=INFO"} <= set(words)
    assert not any("SECRET" in word for word in words)
    assert words[-4:] == ["-m", "roots.doctor.agent", "--folder", "/scratch"]
