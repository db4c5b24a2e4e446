"""Files that appear whole or not at all."""

from __future__ import annotations

import pytest

from roots.files import publish, write_atomically


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
