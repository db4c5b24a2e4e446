"""Files that appear whole or not at all."""

from __future__ import annotations

from roots.data.atomic import publish


def test_publish_replaces_the_former_file(tmp_path):
    (tmp_path / "final").write_text("old")
    (tmp_path / "temporary").write_text("new")
    publish(tmp_path / "temporary", tmp_path / "final")
    assert (tmp_path / "final").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_content_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr("roots.data.atomic.os.fsync", lambda descriptor: events.append("sync"))
    monkeypatch.setattr("roots.data.atomic.os.replace", lambda a, b: events.append("rename"))
    (tmp_path / "temporary").write_text("new")
    publish(tmp_path / "temporary", tmp_path / "final")
    assert events == ["sync", "rename", "sync"]
