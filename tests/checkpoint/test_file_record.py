"""Lengths and digests of files: today's, and those of before, as they stand in JSON."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from roots.checkpoint.file_record import DIGESTS, FileRecord, describe_file, digest_of

CONTENT = b"weights" * 100_000
RECORDS = {
    "sha256": FileRecord(len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),
    "blake2b": FileRecord(
        len(CONTENT), hashlib.blake2b(CONTENT, digest_size=16).hexdigest(), "blake2b"
    ),
}


@pytest.mark.parametrize("kind", DIGESTS)
def test_file_is_described_by_every_digest(tmp_path: Path, kind: str) -> None:
    """Longer than a block of reading."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert describe_file(path, kind) == RECORDS[kind]
    assert digest_of(CONTENT, kind) == RECORDS[kind].digest


@pytest.mark.parametrize("kind", DIGESTS)
def test_record_names_its_digest(kind: str) -> None:
    record = RECORDS[kind]
    assert record.to_json() == {"bytes": len(CONTENT), kind: record.digest}
    assert FileRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "tree",
    [
        {"bytes": 1},
        {"sha256": "00"},
        {"bytes": 1, "md5": "00"},
        {"bytes": 1, "sha256": "00", "blake2b": "00"},
        {"bytes": "1", "sha256": "00"},
        {"bytes": True, "sha256": "00"},
        {"bytes": 1, "sha256": 0},
    ],
)
def test_other_trees_are_no_records(tree: dict[str, object]) -> None:
    with pytest.raises((TypeError, KeyError, ValueError)):
        FileRecord.from_json(tree)
