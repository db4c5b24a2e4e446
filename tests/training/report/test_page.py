"""The page and its pictures: whole, self-contained, and what the run has."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from roots.data.record import DataRecord
from roots.errors import RootsError
from roots.training.report.page import write_page
from roots.training.report.pictures import pictures_of, write_pictures
from roots.training.report.read import Report, read_report
from tests.helpers.ledgers import killed_and_resumed, with_records

ALL = [
    "loss",
    "throughput",
    "memory",
    "loss_scale",
    "gradient_norm",
    "step_seconds",
    "goodput",
]
VOID = {"meta", "link", "br", "img"}


class Elements(HTMLParser):
    """Every element of a page, and whether all of them are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Of a run that goes on with other data after 10 steps."""
    folder = tmp_path / "a<b>&c"
    folder.mkdir()
    return read_report(with_records(killed_and_resumed(folder, DataRecord(1, 80))).folder)


def test_page_holds_all_that_it_shows(report: Report, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="the extra `plots` is missing")
    pictures = list(pictures_of(report))
    assert [picture.name for picture in pictures] == ALL
    out = tmp_path / "out" / "deep"
    drawn = write_pictures(pictures, out)
    path = write_page(report, pictures, drawn, out)
    assert sorted(each.name for each in out.iterdir()) == sorted(
        ["report.html", *(f"{name}.png" for name in ALL)]
    )
    for name in ALL:
        assert image.imread(out / f"{name}.png").shape[:2] == (600, 1000)
    text = path.read_text(encoding="utf-8")
    page = Elements()
    page.feed(text)
    assert page.open == []
    tags = [tag for tag, _ in page.found]
    assert (tags.count("svg"), tags.count("figcaption")) == (len(ALL), len(ALL))
    # Nothing is fetched: no element that loads, no address but the names of XML's spaces.
    assert not {"script", "link", "img", "iframe"} & {*tags}
    addresses = set(re.findall(r"(?:https?:)?//[\w./-]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    words = " ".join(page.words)
    for part in (
        "Run a<b>&c",
        "24.2%",
        "work that was done again",
        "died",
        "every 7 steps",
        "phase 1 from step 11: 0 datasets",
    ):
        assert part in words
    # In the picture of losses.
    assert "phase 1" in [each.strip() for each in page.words]
    # Fits a phone, and a dark one: the ink is the page's.
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert all("width" not in attributes for tag, attributes in page.found if tag == "svg")


def test_a_page_that_cannot_be_written_is_one_line(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RootsError) as caught:
        write_page(report, [], {}, tmp_path / "file")
    (line,) = caught.value.lines
    assert line.startswith(f"{tmp_path}/file/report.html: cannot be written (File exists); ")
