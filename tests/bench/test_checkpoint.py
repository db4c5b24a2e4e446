"""The benchmark of checkpoints runs and tells every figure; whether targets are met is its own."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.checkpoint import main


def test_rows_have_figures_targets_and_what_they_come_from(tmp_path: Path) -> None:
    place, result = tmp_path / "place", tmp_path / "result.json"
    place.mkdir()
    words = ["--parameters", "1M", "--rounds", "1", "--only", "planning,saving"]
    code = main([*words, "--folder", str(place), "--json", str(result)])
    report = json.loads(result.read_text(encoding="utf-8"))
    rows = report["rows"]
    assert code == int(not all(row["met"] for row in rows))
    assert all(row["figure"] > 0 for row in rows)
    targets = [row["target"] for row in rows]
    assert targets == ["<= 1.25", "<= 1.0", "<= 0.1", ">= 0.7"]
    assert report["command"].startswith("python -m tests.bench.checkpoint --parameters 1M")
    assert {"cores", "load_average", "torch"} <= report["machine"].keys()
    layouts = rows[0]["layouts"]
    assert [each["ranks"] for each in layouts] == [8, 64, 512]
    # The model grows with the ranks: each of them plans as much, whatever their number.
    counts = [each["entries"] for each in layouts]
    assert max(counts) < 1.1 * min(counts)
    assert not list(place.iterdir())
