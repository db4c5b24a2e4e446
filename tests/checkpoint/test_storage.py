"""Files by name at a path, at fsspec's local files and in its memory; further tries; packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from roots.checkpoint.storage import FsspecStorage, Retrying, join, storage_at
from roots.errors import RootsError
from roots.files import is_url
from tests.helpers.places import KINDS, place_of

FIX = "run `pip install .[objects]`, or install that package alone"


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_back_as_they_were_put(kind: str, tmp_path: Path) -> None:
    storage = storage_at(place_of(kind, tmp_path))
    assert storage.folders() == []
    assert storage.sizes("a") == {}
    assert not storage.exists("a/x")
    source, target = tmp_path / "source", tmp_path / "target"
    for name, content in {"a/x": b"one", "a/deep/y": b"twotwo", "b/x": b""}.items():
        source.write_bytes(content)
        storage.put(source, name)
    assert sorted(storage.folders()) == ["a", "b"]
    assert storage.sizes("a") == {"x": 3, "deep/y": 6}
    assert storage.exists("a/x")
    assert not storage.exists("a")
    assert not storage.exists("a/y")
    storage.get("a/deep/y", target)
    assert target.read_bytes() == b"twotwo"
    storage.get("a/deep/y", target, 4)
    assert target.read_bytes() == b"twot"
    source.write_bytes(b"new")
    storage.put(source, "a/x")
    storage.get("a/x", target)
    assert target.read_bytes() == b"new"
    storage.move("a", "c")
    assert sorted(storage.folders()) == ["b", "c"]
    storage.remove("c/x")
    assert storage.sizes("c") == {"deep/y": 6}
    for _ in range(2):
        storage.remove("c")
        storage.remove("b/x")
    assert storage.sizes("c") == storage.sizes("b") == {}
    with pytest.raises(FileNotFoundError):
        storage.get("a/x", target)


def test_urls_are_told_from_paths() -> None:
    assert all(map(is_url, ("s3://bucket/runs", "file:///a", "memory://x")))
    assert not any(
        map(is_url, ("runs/mine", "/a", "a:b", "s3:/bucket", Path("s3://bucket"), "://"))
    )
    assert join("s3://b/", "", "step", "f") == "s3://b/step/f"


class Flaky:
    """A storage whose first answers are errors."""

    where = "somewhere"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def exists(self, name: str) -> bool:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return True


def test_what_fails_is_tried_again_some_times() -> None:
    flaky = Flaky(OSError("a"), ConnectionError("b"), TimeoutError("c"))
    assert Retrying(flaky, (0.0, 0.0, 0.0)).exists("x")
    assert flaky.calls == 4
    flaky = Flaky(*(OSError(str(number)) for number in range(9)))
    with pytest.raises(OSError, match="3"):
        Retrying(flaky, (0.0, 0.0, 0.0)).exists("x")
    assert flaky.calls == 4


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x")])
def test_what_cannot_change_is_not_tried_again(error: OSError) -> None:
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        Retrying(flaky, (0.0,)).exists("x")
    assert flaky.calls == 1


def test_errors_of_other_packages_are_errors_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FsspecStorage("memory://errors", "checkpoint")

    def fail(*_: object, **__: object) -> None:
        raise ValueError("AccessDenied")

    monkeypatch.setattr(storage._files, "isfile", fail)
    with pytest.raises(OSError, match="memory://errors/x: ValueError: AccessDenied"):
        storage.exists("x")


def lines_of(action: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        action()
    return caught.value.lines


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (line,) = lines_of(lambda: storage_at("s3://bucket/runs", "checkpoint.mirror"))
    assert line.startswith(
        "checkpoint.mirror='s3://bucket/runs': needs a package that is not installed (Install s3fs"
    )
    assert line.endswith(f"); {FIX}")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert lines_of(lambda: storage_at("s3://bucket/runs")) == (
        f"checkpoint='s3://bucket/runs': is a URL, which needs the package fsspec; {FIX}",
    )


def test_urls_of_no_use_are_refused() -> None:
    assert lines_of(lambda: storage_at("nosuch://bucket/runs")) == (
        "checkpoint='nosuch://bucket/runs': is no URL that fsspec knows (Protocol not known: "
        "nosuch); give a path, or a URL such as s3://bucket/folder",
    )
    # It would remove what is like it.
    assert lines_of(lambda: storage_at("memory://runs/a*")) == (
        "checkpoint='memory://runs/a*': has characters that stand for a pattern of names (* ? [); "
        "give a URL without them",
    )
