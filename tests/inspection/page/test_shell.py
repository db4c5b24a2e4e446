"""The frame of a page: whole by itself, and no text of its data ends an element."""

from __future__ import annotations

import json
import re

import pytest

from roots.inspection.page.shell import asset, html_page, json_block
from tests.helpers.sources import ROOT


def test_page_holds_its_styles_and_scripts_and_asks_for_nothing() -> None:
    scripts = ("drawing.js", "inspection.js")
    page = html_page(
        "A & B",
        ["<p>words</p>"],
        styles=[asset("inspection.css")],
        scripts=[*map(asset, scripts)],
    )
    assert "<title>A &amp; B</title>" in page
    for name in ("page.css", "inspection.css", *scripts):
        assert asset(name) in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|src=", page)


def test_wheel_has_all_files_of_a_page() -> None:
    patterns = [
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "py.typed" in line
    ]
    folder = ROOT / "roots" / "inspection" / "page"
    endings = {path.suffix for path in folder.iterdir() if path.is_file()} - {".py"}
    for ending in endings:
        assert f"inspection/page/*{ending}" in patterns[0]


def test_scripts_and_styles_are_plain_text_of_modest_size() -> None:
    for name in ("page.css", "inspection.css", "drawing.js", "inspection.js"):
        assert asset(name).isascii()
        assert len(asset(name).splitlines()) <= 400


@pytest.mark.parametrize("text", ["</script><b>", "<!--", "\u2028 \x00 \ud800"])
def test_data_come_back_whatever_they_hold(text: str) -> None:
    block = json_block("found", {"text": text})
    inside = block.removeprefix('<script type="application/json" id="found">')
    inside = inside.removesuffix("</script>")
    assert "<" not in inside
    assert json.loads(inside) == {"text": text}


def test_numbers_that_json_lacks_are_a_bug() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_block("found", {"loss": float("nan")})
