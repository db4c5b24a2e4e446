"""The site builds without a warning, asks the network for nothing, and has every reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate.commands import commands, shown_parameters
from docs.generate.config import config_page, section_paths
from roots.config.fields import section_at
from roots.config.section import is_section
from tests.helpers.sources import ROOT

pytest.importorskip("material", reason="the site is built with the extra `docs`")
pytest.importorskip("mkdocstrings", reason="the site is built with the extra `docs`")

# What a page loads as it opens; links for people to follow may lead anywhere.
_LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//|<link[^>]+//fonts")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = ["mkdocs", "build", "--strict", "--config-file", "docs/mkdocs.yml"]
    result = subprocess.run(
        [sys.executable, "-m", *words, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder


def _page(site: Path, name: str) -> str:
    return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")


def test_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 8
    loaded = [page.name for page in pages if _LOADED.search(page.read_text(encoding="utf-8"))]
    assert not loaded, f"a reader without a network misses parts of {loaded}"


def test_every_field_of_a_config_is_there(site: Path) -> None:
    text = _page(site, "config")
    for path in section_paths():
        section = section_at(path)
        assert section is not None
        for name, field in section.model_fields.items():
            if not is_section(field.annotation):
                assert f'id="{".".join([*path, name])}"' in text


def test_fields_are_shown_with_all_that_they_take() -> None:
    """And with the default of a file that leaves them out."""
    rows = {line.split("`")[1]: line for line in config_page().splitlines() if "<span" in line}
    assert "| integer `> 0` or `null` | `null` | number of tokens" in rows["vocab_size"]
    takes = "string or `null` or [section](#datatrain) or list of string or [section](#datatrain)"
    assert f"| {takes} | `[]` |" in rows["train"]
    assert "0.3 PREFIX 0.7 PREFIX" in rows["train"]
    assert "| list of number or string |" in rows["split"]


def test_every_command_and_option_is_there(site: Path) -> None:
    text = _page(site, "commands")
    names = dict(commands())
    assert {"roots train", "roots config show", "roots tokenizer train"} <= set(names)
    sections = text.split("<h2")
    for name, command in names.items():
        part = next((each for each in sections if f">{name}<" in each.partition("</h2>")[0]), "")
        assert part, f"{name} has no section"
        for parameter in shown_parameters(command):
            if parameter.param_type_name == "option":
                assert f"<code>{parameter.opts[0]}</code>" in part, (name, parameter.opts)


def test_every_public_name_is_there(site: Path) -> None:
    import roots

    text = _page(site, "api")
    for name, home in roots.HOMES.items():
        assert f'id="{home}.{name}"' in text, f"{name} is not described"
    for method in ("generate", "search", "evaluate"):
        assert f'id="roots.api.Model.{method}"' in text


def test_public_names_are_all_of_them() -> None:
    import roots

    assert sorted(roots.HOMES) == sorted(roots.__all__)
