"""`roots report`: text with page and pictures, JSON alone, and mistakes in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from roots.cli.main import main
from tests.helpers.ledgers import killed_and_resumed, with_records


def call_report(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["report", *map(str, arguments)])
    return int(caught.value.code or 0)


def test_text_names_the_files_that_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is missing")
    killed_and_resumed(tmp_path)
    assert call_report(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "goodput   24.2%" in lines
    assert lines[-2:] == [f"page      {tmp_path}/report/report.html", "pictures  goodput.png"]
    names = [path.name for path in (tmp_path / "report").iterdir()]
    assert sorted(names) == ["goodput.png", "report.html"]


def test_json_writes_files_only_where_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_records(killed_and_resumed(tmp_path))
    before = sorted(tmp_path.iterdir())
    assert call_report(tmp_path, "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["goodput"], tree["files"]) == (25 / 103.5, [])
    assert sorted(tmp_path.iterdir()) == before


def test_text_is_there_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    killed_and_resumed(tmp_path)
    assert call_report(tmp_path) == 2
    told = capsys.readouterr()
    assert "goodput   24.2%" in told.out
    assert told.err == (
        "roots: error: plot: pictures need matplotlib, which cannot be imported here; "
        "pip install .[plots]\n"
    )


def test_a_folder_without_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_report(tmp_path) == 2
    assert capsys.readouterr().err == (
        f"roots: error: {tmp_path}: holds neither ledger.jsonl nor metrics.jsonl, so no run has "
        "trained there; name the folder of a run\n"
    )
