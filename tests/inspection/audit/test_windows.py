"""Runs of tokens and their occurrences, against counting by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from roots.data.indexed import IndexedDataset, IndexedWriter
from roots.inspection.audit import windows
from roots.inspection.audit.windows import hashed_runs, occurrences, run_hashes, sample_runs


def dataset(folder: Path, documents: list[list[int]], name: str = "data") -> IndexedDataset:
    with IndexedWriter(folder / name, 1000) as writer:
        for document in documents:
            writer.add(np.array(document, dtype=np.int64))
        writer.finish("test", end_of_document=0)
    return IndexedDataset(folder / name)


def random_documents(seed: int) -> list[list[int]]:
    draws = np.random.default_rng(seed)
    # Of so few tokens that runs of four occur again and again.
    return [draws.integers(0, 3, size=size).tolist() for size in draws.integers(0, 40, size=50)]


def counted(documents: list[list[int]], length: int) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(document[start : start + length])
        for document in documents
        for start in range(len(document) - length + 1)
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 13, 100])
def test_equal_runs_and_no_others_have_equal_hashes(length: int) -> None:
    tokens = np.random.default_rng(length).integers(0, 2, size=400)
    hashes = run_hashes(tokens, length)
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    assert len(hashes) == len(runs)
    by_run = dict(zip(runs, hashes))
    assert [by_run[run] for run in runs] == hashes.tolist()
    assert len(set(by_run.values())) == len(by_run)
    assert len(run_hashes(tokens[: length - 1], length)) == 0


@pytest.mark.parametrize("at_a_time", [1 << 22, 16])
def test_runs_lie_within_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(windows, "_TOKENS_AT_A_TIME", at_a_time)
    monkeypatch.setattr(windows, "_DOCUMENTS_AT_A_TIME", 7)
    documents = random_documents(1)
    indexed = dataset(tmp_path, documents)
    starts = np.concatenate([starts for starts, _ in hashed_runs(indexed, 4)])
    expected = []
    first = 0
    for document in documents:
        expected += range(first, first + max(0, len(document) - 3))
        first += len(document)
    assert starts.tolist() == expected


def test_every_run_is_found_with_all_its_occurrences(tmp_path: Path) -> None:
    documents = random_documents(2)
    indexed = dataset(tmp_path, documents)
    expected = counted(documents, 4)
    found = sample_runs(indexed, 4, count=10_000, seed=1)
    # No two of a magnitude overlap, so not all are there.
    for magnitude, runs in found.items():
        for run in runs:
            assert run.occurrences == expected[tuple(indexed.tokens[run.start : run.start + 4])]
            assert 2**magnitude <= run.occurrences < 2 ** (magnitude + 1)
        starts = sorted(run.start for run in runs)
        assert all(after - before >= 4 for before, after in zip(starts, starts[1:]))
    assert set(found) == {count.bit_length() - 1 for count in expected.values()}


def test_a_share_of_the_runs_keeps_their_counts(tmp_path: Path) -> None:
    documents = random_documents(3)
    indexed = dataset(tmp_path, documents)
    expected = counted(documents, 6)
    found = sample_runs(indexed, 6, count=10_000, seed=1, kept=indexed.num_tokens // 4)
    runs = [run for some in found.values() for run in some]
    assert 0 < len(runs) < len(expected) / 2
    for run in runs:
        assert run.occurrences == expected[tuple(indexed.tokens[run.start : run.start + 6])]
    other = sample_runs(indexed, 6, count=10_000, seed=2, kept=indexed.num_tokens // 4)
    assert other != found


def test_occurrences_in_another_dataset(tmp_path: Path) -> None:
    documents, others = random_documents(4), random_documents(5)
    indexed = dataset(tmp_path, documents)
    runs = [np.array(run) for run in counted(others, 5)]
    runs.append(runs[0])
    expected = counted(documents, 5)
    assert occurrences(indexed, runs) == [expected[tuple(run)] for run in runs]
    assert occurrences(indexed, []) == []


def test_too_short_documents_give_nothing(tmp_path: Path) -> None:
    assert sample_runs(dataset(tmp_path, [[1, 2, 3], [4]]), 4, count=5, seed=1) == {}
