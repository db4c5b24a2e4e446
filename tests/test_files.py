"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from mmap import mmap
from pathlib import Path

import pytest

from roots import files
from roots.files import DirectFile, publish, write_atomically


def test_publish_replaces_the_former_file(tmp_path):
    (tmp_path / "final").write_text("old")
    (tmp_path / "temporary").write_text("new")
    publish(tmp_path / "temporary", tmp_path / "final")
    assert (tmp_path / "final").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_content_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr("roots.files.os.fsync", lambda descriptor: events.append("sync"))
    monkeypatch.setattr("roots.files.os.replace", lambda a, b: events.append("rename"))
    (tmp_path / "temporary").write_text("new")
    publish(tmp_path / "temporary", tmp_path / "final")
    assert events == ["sync", "rename", "sync"]


def test_failed_write_leaves_the_former_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_partials_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    from roots.files import remove_partials

    left = tmp_path / "config.yaml.0123abcd.partial"
    others = [tmp_path / name for name in ("config.yaml", "config.yaml.mine.partial", "a.partial")]
    for path in (left, *others):
        path.write_text("")
    remove_partials(tmp_path / "config.yaml")
    assert sorted(tmp_path.iterdir()) == sorted(others)


PAGES = 3 * DirectFile.ALIGNMENT
CONTENT = bytes(range(256)) * (PAGES // 256)


def written(path: Path, *lengths: int) -> bytes:
    """What a file of so many bytes of CONTENT holds, a block for each length."""
    file = DirectFile(path)
    for length in lengths:
        block = memoryview(mmap(-1, PAGES))
        block[:length] = CONTENT[:length]
        file.write(block, length)
    file.close(durable=True)
    return path.read_bytes()


def test_file_past_the_cache_has_its_own_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pages are written, and none of them through the cache where the disk has the way."""
    probe = DirectFile(tmp_path / "probe")
    probe.close(durable=False)
    sizes: list[int] = []
    write = os.write

    def counted(descriptor: int, content: memoryview) -> int:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT == probe.direct_flag
        sizes.append(len(content))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", counted)
    assert written(tmp_path / "x", PAGES, 5000) == CONTENT + CONTENT[:5000]
    assert sizes == [PAGES, 2 * DirectFile.ALIGNMENT if probe.direct_flag else 5000]
    assert written(tmp_path / "none") == b""


@pytest.mark.parametrize("place", ["open", "write"])
def test_file_system_that_has_no_such_way_is_written_as_ever(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it says so when the file is made or later, in the midst of it."""
    real = {"open": os.open, "write": os.write}
    flushed: list[int] = []

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real["open"](path, flags, mode)

    def wrote(descriptor: int, content: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT and os.fstat(descriptor).st_size:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real["write"](descriptor, content)

    monkeypatch.setattr(os, place, {"open": opened, "write": wrote}[place])
    monkeypatch.setattr(files, "begin_writeback", lambda _, start, length: flushed.append(length))
    assert written(tmp_path / "x", PAGES, 5000) == CONTENT + CONTENT[:5000]
    # From the refusal on, and then as much as there is.
    assert flushed in ([PAGES, 5000], [2 * DirectFile.ALIGNMENT])


def test_other_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "nowhere" / "x")
