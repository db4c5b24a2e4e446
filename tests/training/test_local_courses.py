"""The mark of a run's copies: what it says of courses, and what is read back of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.training.local_courses import MARK_FILE, Mark, new_name

NAME = "0123456789abcdef"


def test_copy_counts_up_to_where_a_later_course_begins() -> None:
    mark = Mark(NAME).gone_on("first", 0).gone_on("second", 50).gone_on("third", 65)
    cases = {
        ("first", 50): True,
        ("first", 55): False,
        ("second", 65): True,
        ("second", 70): False,
        ("third", 70): True,
        ("unknown", 10): False,
    }
    assert {case: mark.leads_through(*case) for case in cases} == cases
    # Nothing is left of what began after the point that the run goes on from.
    assert mark.gone_on("fourth", 50).courses == (("first", 0), ("fourth", 50))


def test_mark_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Mark.read(tmp_path) is None
    mark = Mark(new_name()).at("/dev/shm").at("/scratch/a b").at("/dev/shm").gone_on("first", 0)
    mark.write(tmp_path)
    assert Mark.read(tmp_path) == mark
    names = [f"/dev/shm/roots-{mark.name}", f"/scratch/a b/roots-{mark.name}"]
    assert [str(folder) for folder in mark.folders()] == names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (NAME, Mark(NAME)),
        ("1234567890123456\n", Mark("1234567890123456")),
        ("", None),
        ("[1]", None),
        ('{"name": "../../x", "places": ["/"], "courses": []}', None),
        ('{"name": "0123456789abcdef", "places": []}', None),
    ],
)
def test_mark_of_an_older_run_keeps_its_name_and_no_other_is_taken(
    text: str, found: Mark | None, tmp_path: Path
) -> None:
    """The name becomes that of a folder that is removed."""
    (tmp_path / MARK_FILE).write_text(text, encoding="utf-8")
    assert Mark.read(tmp_path) == found
