"""`roots doctor` tells what is out of line, in its exit code too, and whom to go without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from roots.cli.main import main
from roots.doctor import conduct
from roots.doctor.survey import Survey
from roots.launching.gather import Way
from tests.doctor.surveys import survey_of, with_device, with_rates

WELL = survey_of("abc")


class Examined:
    """What `examine` was given, and what it gives."""

    def __init__(self) -> None:
        self.survey = WELL
        self.given: tuple[Any, ...] = ()

    def __call__(
        self, ways: Sequence[Way], ranks: Mapping[str, int], folder: Path, tell: conduct.Tell
    ) -> Survey:
        self.given = ([way.reach(["x"]) for way in ways], ranks, folder)
        tell("looking")
        return self.survey


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examined:
    """Nothing is measured; the hosts are those of a file `hosts` in the current folder."""
    found = Examined()
    monkeypatch.setattr(conduct, "examine", found)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    Path("hosts").write_text("a slots=1\nb slots=2\nc slots=3\n", encoding="utf-8")
    return found


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_hosts_that_are_well(
    examined: Examined, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--hostfile", "hosts", "--ssh-port", "2222", "--exclude-to", "out") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("host  devices")
    wrote = "roots doctor: wrote out: 0 hosts to go without"
    assert said.err.splitlines() == ["roots doctor: looking", wrote]
    assert Path("out").read_text(encoding="utf-8") == ""
    ways, ranks, folder = examined.given
    assert [words[:3] for words in ways] == [["ssh", "-p", "2222"]] * 3
    assert [words[-2:] for words in ways] == [[name, "x"] for name in "abc"]
    assert ranks == {"a": 1, "b": 2, "c": 3}
    assert folder == tmp_path


def test_host_that_is_out_of_line(examined: Examined, capsys: pytest.CaptureFixture[str]) -> None:
    examined.survey = with_rates(WELL, "b", disk=1e6)
    assert call("--hostfile", "hosts", "--exclude-to", "out") == 2
    assert Path("out").read_text(encoding="utf-8") == "b\n"
    assert capsys.readouterr().err.splitlines()[1:] == [
        "roots doctor: wrote out: 1 host to go without",
        "roots doctor: start runs without b: --exclude b",
        "roots: error: host b: disk='1 MB/s': is 0% of the median of its peers; "
        "see what else writes there, and the disk's own health (`smartctl -a`)",
    ]
    # That file is a filter.
    call("--hostfile", "hosts", "--exclude", "./out")
    assert list(examined.given[1]) == ["a", "c"]


def test_host_that_computes_wrongly_has_a_code_of_its_own(examined: Examined) -> None:
    examined.survey = with_device(WELL, "b", 0, differs=True)
    assert call("--hostfile", "hosts") == 8


def test_json_has_all_of_it(examined: Examined, capsys: pytest.CaptureFixture[str]) -> None:
    examined.survey = with_rates(WELL, "b", disk=1e6)
    assert call("--hostfile", "hosts", "--json") == 2
    tree = json.loads(capsys.readouterr().out)
    assert tree.pop("exclude") == ["b"]
    (finding,) = tree.pop("findings")
    assert (finding["hosts"], finding["part"]) == (["b"], "disk")
    assert finding["line"].startswith("host b: disk='1 MB/s': ")
    assert Survey.from_json(tree) == examined.survey


def test_without_a_file_it_is_this_machine(examined: Examined) -> None:
    Path("scratch").mkdir()
    assert call("--disk", "scratch") == 0
    ways, ranks, folder = examined.given
    assert (ways, ranks, folder.name) == ([["x"]], {"this machine": 0}, "scratch")


def test_inside_a_job_it_is_its_nodes(
    examined: Examined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n1; echo n2\n", encoding="ascii")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert call() == 0
    assert [words[0] for words in examined.given[0]] == ["srun", "srun"]
    assert examined.given[1] == {"n1": 0, "n2": 0}


@pytest.mark.parametrize(
    "words, line",
    [
        (["--exclude", "a"], "--exclude='a': is for hosts of a file; drop it, or give --hostfile"),
        (
            ["--hostfile", "hosts", "--exclude", "./no"],
            "--exclude='./no': No such file or directory; name a file with a host a line, "
            "as `roots doctor --exclude-to` writes it",
        ),
        (
            ["--hostfile", "hosts", "--exclude-to", "no/out"],
            "--exclude-to='no/out': No such file or directory; "
            "name a file that you may write, in a folder that is there",
        ),
        (
            ["--disk", "/no/scratch"],
            "--disk='/no/scratch': no such folder on this machine; "
            "mount it, or name a folder that is there on every host",
        ),
        (["--hostfile", "none"], "hostfile='none': No such file or directory; name the file"),
    ],
)
def test_mistakes(
    examined: Examined, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert call(*words) == 2
    assert line in capsys.readouterr().err
