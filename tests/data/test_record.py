"""What a manifest says of the data is read back, and what is no such record is damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.checkpoint import manifest
from roots.data.record import DataRecord, SideRecord, SourceRecord
from tests.helpers.manifests import edit_manifest

SIDE = SideRecord(3, 1200, "d")
RECORD = DataRecord(
    2, 64, "tokenizer", (SourceRecord("p", 0.5, (SIDE,)), SourceRecord("q", 1.0, (SIDE, SIDE)))
)


def written(folder: Path, record: DataRecord | None) -> Path:
    layout = manifest.Layout(1, 1, 1, 1, "fp32")
    manifest.write_manifest(folder, manifest.Manifest(3, 24, layout, {}, data=record))
    return folder


@pytest.mark.parametrize("record", [RECORD, DataRecord(), None])
def test_is_read_back(record: DataRecord | None, tmp_path: Path) -> None:
    assert manifest.read_manifest(written(tmp_path, record)).data == record


def test_a_manifest_from_before_has_none(tmp_path: Path) -> None:
    edit_manifest(written(tmp_path, RECORD), lambda tree: tree.pop("data"))
    assert manifest.read_manifest(tmp_path).data is None


@pytest.mark.parametrize(
    "values",
    [
        {"phase": True},
        {"phase": -1},
        {"first_sample": 1.5},
        {"first_sample": "0"},
        {"tokenizer": 3},
        {"sources": None},
        {"sources": [{"prefix": "p", "weight": 1.0}]},
        {"sources": [{"prefix": "p", "weight": 1.0, "sides": []}]},
        {"sources": [{"prefix": 1, "weight": 1.0, "sides": [vars(SIDE)]}]},
        {"sources": [{"prefix": "p", "weight": "x", "sides": [vars(SIDE)]}]},
        {"sources": [{"prefix": "p", "weight": 1.0, "sides": [{**vars(SIDE), "digest": 1}]}]},
        {"sources": [{"prefix": "p", "weight": 1.0, "sides": [{**vars(SIDE), "tokens": -1}]}]},
    ],
)
def test_what_is_no_record_is_damage(values: dict[str, Any], tmp_path: Path) -> None:
    edit_manifest(written(tmp_path, RECORD), lambda tree: tree["data"].update(values))
    with pytest.raises(manifest.DamagedError):
        manifest.read_manifest(tmp_path)


def test_says_its_size() -> None:
    text, pairs = RECORD.sources
    assert text.describe() == "1,200 tokens in 3 documents"
    assert pairs.describe() == "2,400 tokens in 3 pairs"
