"""The page in a browser without a screen: types, streams, hovers, opens each tab."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs roots-pretrain[serve]")
pytest.importorskip("uvicorn", reason="needs roots-pretrain[serve]")

from roots.serving import app
from roots.serving.page.playground import playground
from tests.helpers.browser import OPTIONS, SECONDS, browser
from tests.helpers.serving import served, small_model

# Does what a reader does, and keeps what each tab has drawn.
READER = """
addEventListener("error", (e) => (document.body.dataset.error = e.message));
const one = (selector) => document.querySelector(selector);
const until = (holds) =>
  new Promise((done) => {
    const look = () => (holds() ? done() : setTimeout(look, 20));
    look();
  });
(async () => {
  one("[name=prompt]").value = "hello <b>";
  one("[name=tokens]").value = "12";
  one("[name=seed]").value = "3";
  one("[name=temperature]").value = "0.5";
  one("[name=write]").click();
  await until(() => /written|error/.test(one("[role=status]").textContent));
  document.body.dataset.status = one("[role=status]").textContent;
  const span = one("[data-token='9']");
  span.dispatchEvent(new MouseEvent("mousemove", { clientX: 40, clientY: 40 }));
  document.body.dataset.tip = one(".tip").textContent;
  one("[name=look]").click();
  await until(() => one("[role=tab]") !== null);
  const names = [];
  for (const button of document.querySelectorAll("[role=tab]")) {
    button.click();
    if (one("[role=tabpanel]").textContent.length > 20) names.push(button.textContent);
  }
  document.body.dataset.tabs = names.join(",");
})();
"""


def test_page_streams_hovers_and_opens_every_tab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = browser()

    def read(name: str, context: int, *, needs_key: bool) -> str:
        page = playground(name, context, needs_key=needs_key)
        return page.replace("</body></html>", f"<script>{READER}</script></body></html>")

    monkeypatch.setattr(app, "playground", read)
    with served(small_model(tmp_path / "step_00000001")) as server:
        words = [program, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"]
        words += ["--virtual-time-budget=60000", "--dump-dom", f"{server.address}/"]
        html = subprocess.run(
            words, capture_output=True, text=True, timeout=SECONDS, check=True
        ).stdout
    data = dict(re.findall(r'data-(error|status|tip|tabs)="([^"]*)"', html))
    assert "error" not in data
    assert data["status"].startswith("12 tokens written, ")
    assert data["tip"].startswith("token 9: ")
    assert "expected here" in data["tip"]
    assert len(data["tip"].splitlines()) >= 4 + 5
    tabs = ["Losses", "Lenses", "Attention", "Heads", "Residual stream", "Embedding", "fp16"]
    assert data["tabs"].split(",") == tabs
    # Text is text, whatever it spells.
    assert "&lt;" in html


def test_page_asks_for_nothing_from_elsewhere() -> None:
    html = playground("mine <&>", 64, needs_key=True)
    assert not re.search(r"https?:|@import|url\(|<link|src=", html)
    assert html.count("</script>") == html.count("<script")
    assert "<h1>mine &lt;&amp;&gt;</h1>" in html
