"""Arrays cached on disk."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from roots.data.cache import cached_arrays, fingerprint
from roots.errors import RootsError

PURPOSE = {"arrays": "test", "seed": 1}


class Builder:
    """Counts how often it is asked to build."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": np.arange(5), "b": np.arange(6.0).reshape(3, 2)}


def test_built_once_and_mapped_afterwards(tmp_path):
    build = Builder()
    for _ in range(3):
        arrays = cached_arrays(tmp_path / "cache", PURPOSE, build)
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["b"].shape == (3, 2)
        assert isinstance(arrays["a"], np.memmap)
    assert build.calls == 1


def test_another_purpose_is_another_entry(tmp_path):
    build = Builder()
    for seed in (1, 2):
        cached_arrays(tmp_path, {"arrays": "test", "seed": seed}, build)
    assert build.calls == 2
    assert fingerprint({"seed": 1}) != fingerprint({"seed": 2})


def test_many_ranks_at_once_build_once(tmp_path):
    build = Builder()
    results = []
    barrier = threading.Barrier(6)

    def rank():
        barrier.wait()
        results.append(cached_arrays(tmp_path, PURPOSE, build)["a"].tolist())

    threads = [threading.Thread(target=rank) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[0, 1, 2, 3, 4]] * 6
    assert build.calls == 1


@pytest.mark.parametrize("damage", ["truncated array", "missing array", "other shape", "manifest"])
def test_damaged_entries_are_built_again(tmp_path, damage, caplog):
    build = Builder()
    cached_arrays(tmp_path, PURPOSE, build)
    name = fingerprint(PURPOSE)
    if damage == "truncated array":
        path = tmp_path / f"{name}.a.npy"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing array":
        (tmp_path / f"{name}.b.npy").unlink()
    elif damage == "other shape":
        np.save(tmp_path / f"{name}.a.npy", np.arange(4))
    else:
        (tmp_path / f"{name}.json").write_text("{")
    arrays = cached_arrays(tmp_path, PURPOSE, build)
    assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
    assert build.calls == 2


def test_a_build_that_fails_leaves_nothing_that_looks_whole(tmp_path):
    def fail():
        raise KeyError("broken")

    with pytest.raises(KeyError):
        cached_arrays(tmp_path, PURPOSE, fail)
    build = Builder()
    cached_arrays(tmp_path, PURPOSE, build)
    assert build.calls == 1


def test_manifest_says_what_it_is_for(tmp_path):
    cached_arrays(tmp_path, PURPOSE, Builder())
    manifest = json.loads((tmp_path / f"{fingerprint(PURPOSE)}.json").read_text())
    assert manifest == {
        "format": "roots-index",
        "version": 1,
        "purpose": PURPOSE,
        "arrays": {"a": {"dtype": "<i8", "shape": [5]}, "b": {"dtype": "<f8", "shape": [3, 2]}},
    }


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RootsError) as caught:
        cached_arrays(tmp_path / "file", PURPOSE, Builder())
    assert str(caught.value) == (
        f"index cache='{tmp_path}/file': cannot be written (File exists), and the sample index is "
        "kept there; set data.cache_directory to a folder of this machine that can be written"
    )


def test_disk_that_is_full(tmp_path, monkeypatch):
    def save(file, array, allow_pickle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roots.data.cache.np.save", save)
    with pytest.raises(RootsError) as caught:
        cached_arrays(tmp_path, PURPOSE, Builder())
    assert str(caught.value) == (
        f"index cache='{tmp_path}': cannot be written (No space left on device), and the sample "
        "index is kept there; free some disk space, or set data.cache_directory to another folder"
    )


def test_leftovers_of_killed_builders_are_removed_and_those_of_live_ones_not(tmp_path):
    name = fingerprint(PURPOSE)
    old, young = (tmp_path / f"{name}.a.{token}.partial" for token in ("11", "22"))
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    cached_arrays(tmp_path, PURPOSE, Builder())
    assert [path.name for path in tmp_path.glob("*.partial")] == [young.name]
