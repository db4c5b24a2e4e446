"""The page of an inspection: its tabs draw what was found, in a browser without a screen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from roots.errors import RootsError
from roots.inspection.inspect import InspectionOptions, inspect_text
from roots.inspection.lens import TunedLens
from roots.inspection.page.report import report_of, write_report
from roots.inspection.text import text_lines
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.browser import page_after
from tests.inspection.test_inspect import loaded

TEXT = "a <b> & </script> c"
# Opens every tab, and keeps what each has drawn.
OPEN_ALL = """
for (const button of document.querySelectorAll("[role=tab]")) {
  button.click();
  const drawn = document.createElement("div");
  drawn.className = "kept";
  drawn.dataset.tab = button.textContent;
  drawn.innerHTML = document.querySelector("[role=tabpanel]").innerHTML;
  drawn.dataset.inked = [...document.querySelectorAll("[role=tabpanel] canvas")].every(
    (canvas) => canvas.getContext("2d").getImageData(0, 0, 1, 1).data[3] > 0,
  );
  document.body.append(drawn);
}
"""
HOVER = """
const span = document.querySelector('[data-token="5"]');
span.dispatchEvent(new MouseEvent("mousemove", { clientX: 40, clientY: 40 }));
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    model = loaded(moe={"num_experts": 4})
    lens = TunedLens(torch.zeros(2, 32, 32), torch.zeros(2, 32))
    return inspect_text(model, ByteTokenizer(), TEXT, InspectionOptions(shown=12, lens=lens))


def parts_of(html: str) -> dict[str, str]:
    assert "data-error" not in html, re.findall('data-error="[^"]*"', html)
    pieces = html.split('<div class="kept" data-tab="')[1:]
    return {piece.partition('"')[0]: piece for piece in pieces}


def test_every_tab_draws_what_was_found(found: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(found, page)
    parts = parts_of(page_after(page, OPEN_ALL, tmp_path))
    assert list(parts) == [
        "Losses",
        "Lenses",
        "Attention",
        "Heads",
        "Residual stream",
        "Experts",
        "Embedding",
        "fp16",
    ]
    assert not any(">null<" in part or "undefined" in part for part in parts.values())
    assert parts["Losses"].count("data-token=") == len(TEXT)
    # Text is text, whatever it spells.
    assert "&lt;" in parts["Losses"]
    assert f"{found['losses']['mean']:.4g}" in parts["Losses"]
    assert parts["Lenses"].count('class="shade"') == 3 * 12
    assert "The first 12 of 19 tokens" in parts["Lenses"]
    assert "tuned lens" in parts["Lenses"]
    assert parts["Attention"].count("<canvas") == 2 * 4 + 1
    assert 'data-inked="true"' in parts["Attention"]
    assert parts["Heads"].count('class="shade"') == 4 * 2 * 4
    assert parts["Residual stream"].count("block ") == 4
    assert parts["Experts"].count("expert 3") == 2
    assert parts["fp16"].count("layers.1.mlp.experts") == 3
    assert "nothing would overflow" in parts["fp16"]


def test_hover_tells_what_was_expected(found: dict[str, Any], tmp_path: Path) -> None:
    """In a model without experts there is no tab for them."""
    plain = {**found, "experts": []}
    page = tmp_path / "report.html"
    write_report(plain, page)
    html = page_after(page, HOVER, tmp_path)
    assert html.count('role="tab"') == 7
    (tip,) = re.findall('<div class="tip"[^>]*>(.*?)</div>', html, re.DOTALL)
    assert "token 5" in tip
    (token, probability), *_ = found["losses"]["predictions"][4]
    assert f"{probability:.4f}" in tip
    assert len(tip.splitlines()) == 4 + 5, tip
    assert token in range(257)


def test_model_that_is_broken_is_told_and_drawn(tmp_path: Path) -> None:
    """Numbers that JSON has not are None, and every tab still opens."""
    model = loaded(moe={"num_experts": 4, "every": 2})
    with torch.no_grad():
        model.decoder.layers[1].attention.qkv.weight[0, 0] = torch.nan
    found = inspect_text(model, ByteTokenizer(), TEXT)
    assert found["losses"]["mean"] is None
    assert found["overflow"]["overflows"][0] == "layers.1.attention.qkv"
    (line,) = (line for line in text_lines({"checkpoint": "c", **found}) if "fp16" in line)
    assert line.startswith("fp16        would overflow at ")
    assert line.endswith(
        "first at layers.1.attention.qkv: infinite, and 65,504 is the largest number"
    )
    page = tmp_path / "report.html"
    write_report(found, page)
    parts = parts_of(page_after(page, OPEN_ALL, tmp_path))
    assert len(parts) == 8
    assert "not finite" in parts["Losses"]


def test_page_asks_for_nothing_from_elsewhere(found: dict[str, Any]) -> None:
    html = report_of(found)
    assert not re.search(r"https?:|@import|url\(|<link|src=", html)
    assert html.count("</script>") == html.count("<script")


def test_page_that_cannot_be_written_is_one_line(found: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RootsError, match="cannot be written") as error:
        write_report(found, tmp_path / "missing" / "report.html")
    assert len(error.value.lines) == 1
