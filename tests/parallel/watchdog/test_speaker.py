"""Ranks that have lost rank 0 agree by a file on who speaks, whatever a start before left there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from roots.parallel.watchdog.speaker import FILE, Speaker


def speakers(folder: Path, since: float, *ranks: int) -> list[Speaker]:
    return [Speaker(folder, rank, f"host{rank}", since) for rank in ranks]


def test_first_to_take_the_word_has_it_and_knows_who_is_there(tmp_path: Path) -> None:
    second, fifth, late = speakers(tmp_path / "stacks", time.time(), 2, 5, 7)
    for each in (fifth, second, second):
        each.note()
    assert fifth.here() == {5: "host5", 2: "host2"}
    assert not late.is_taken()
    assert fifth.take_the_word()
    assert late.is_taken()
    assert not second.take_the_word()
    assert not fifth.take_the_word()
    assert not late.take_the_word()


def test_notes_of_starts_before_do_not_count(tmp_path: Path) -> None:
    (before,) = speakers(tmp_path, time.time(), 1)
    before.note()
    assert before.take_the_word()
    (now,) = speakers(tmp_path, time.time() + 1.0, 2)
    assert now.here() == {}
    assert now.take_the_word()
    # The file does not grow from start to start.
    assert len((tmp_path / FILE).read_text("utf-8").splitlines()) == 1


def test_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (speaker,) = speakers(tmp_path / "file", 0.0, 1)
    with pytest.raises(OSError):  # noqa: PT011  # whichever the system gives
        speaker.take_the_word()
