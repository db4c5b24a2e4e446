"""Chromium without a screen: what a page looks like to a reader, after its scripts have run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# In a container there is no sandbox of its own, and little shared memory.
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
SECONDS = 60


def browser() -> str:
    """The program. Skips the test where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip("opens pages in Chromium, which is not installed (Debian: apt install chromium)")


def page_after(page: Path, script: str, folder: Path) -> str:
    """The HTML of `page` after its own scripts and then `script` have run.

    What fails in any of them is written into the attribute data-error of the body.
    """
    watch = "addEventListener('error', (e) => (document.body.dataset.error = e.message));"
    text = page.read_text(encoding="utf-8")
    text = text.replace("<body>", f"<body><script>{watch}</script>", 1)
    copy = folder / "page.html"
    copy.write_text(
        text.replace("</body></html>", f"<script>{script}</script></body></html>"), encoding="utf-8"
    )
    return run_browser(copy, "--dump-dom", folder=folder)


def run_browser(page: Path, *options: str, folder: Path) -> str:
    """What Chromium prints of `page`, with a profile of its own in `folder`."""
    words = [browser(), *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout
