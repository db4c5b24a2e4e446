"""Every command on every page of the site runs and prints what the page says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate.commands import commands
from tests.docs.fork_server import serving
from tests.docs.pages import OF_SHELLS, PAGES, Block, Page, all_pages
from tests.docs.sessions import Sessions
from tests.helpers.sources import ROOT

ALL = all_pages()
# Blocks that are shown without being run: each costs trust, so there are few.
MOST_NOT_RUN = 24
# What stands before a program's name.
_BEFORE = ("&&", "|", ";", "-m", "exec")
_OURS = re.compile(r"(launch|docker|configs|tests|csrc)/[\w./-]+\.\w+")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """One place for all pages, shared by the test processes of a run."""
    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):
        folder = folder.parent
    with serving() as programs:
        yield Sessions(folder / "pages", programs)


@pytest.mark.parametrize(
    "page", [page for page in ALL if page.runs], ids=lambda page: page.name.removesuffix(".md")
)
def test_page_runs(sessions: Sessions, page: Page) -> None:
    found = sessions.run(page)
    assert not found, "\n\n".join(map(str, found))


@pytest.mark.parametrize("path", sorted(PAGES.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(sessions: Sessions, path: Path) -> None:
    """Its cells, one after the other as a program, in the folder that the laptop page leaves."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code
    assert not any(cell.get("outputs") for cell in cells)
    program = Block("python", "notebook.py", (), "", 0, tuple(code.splitlines()))
    command = "$ MPLBACKEND=agg python notebook.py > printed.txt 2>&1 || cat printed.txt"
    session = Block("console", None, (), "", 0, (command,))
    found = sessions.run(Page(path, "laptop.md", False, (program, session)))
    assert not found, "\n\n".join(map(str, found))


def _not_run() -> list[tuple[Page, Block]]:
    return [(page, block) for page in ALL for block in page.blocks if block.not_run]


def test_few_blocks_are_shown_without_being_run() -> None:
    shown = [f"{page.name}:{block.first_line}: {block.not_run}" for page, block in _not_run()]
    assert len(shown) <= MOST_NOT_RUN, "\n".join(shown)


def test_every_block_of_a_shell_is_a_session_or_says_why_not() -> None:
    silent = [
        f"{page.name}:{block.first_line}"
        for page in ALL
        for block in page.blocks
        if block.language in OF_SHELLS
        and not (block.title or block.not_run)
        and (block.language != "console" or not block.commands)
    ]
    assert not silent, f"neither run nor marked: {silent}"


def test_marks_are_known() -> None:
    known = re.compile(r"varies|exits \d+|not run: .+")
    marks = [mark for page in ALL for block in page.blocks for mark in block.marks]
    assert [mark for mark in marks if not known.fullmatch(mark)] == []


@pytest.mark.parametrize("page, block", _not_run(), ids=lambda value: getattr(value, "name", None))
def test_what_is_not_run_names_what_exists(page: Page, block: Block) -> None:
    for command in block.commands:
        check = subprocess.run(["bash", "-n", "-c", command.text], capture_output=True, text=True)
        assert check.returncode == 0, check.stderr
        for path in _OURS.finditer(command.text):
            assert (ROOT / path.group()).exists(), f"{page.name}: {path.group()} does not exist"
        _check_options(page, shlex.split(command.text, comments=True))


def _check_options(page: Page, words: list[str]) -> None:
    """Options of `roots` in `words` are options of that command."""
    known = dict(commands())
    before = ["&&", *words]
    starts = [n for n, word in enumerate(words) if word == "roots" and before[n] in _BEFORE]
    for start in starts:
        name = " ".join(words[start : start + 3])
        name = next((each for each in (name, name.rpartition(" ")[0]) if each in known), "")
        assert name, f"{page.name}: `{' '.join(words[start : start + 3])}` is no command"
        options = {each for option in known[name].params for each in option.opts}
        given = {word.partition("=")[0] for word in words[start:] if word.startswith("--")}
        assert given <= options, f"{page.name}: {name} has no {given - options}"


def test_pages_that_continue_others_name_pages() -> None:
    for page in ALL:
        assert page.continues is None or Path(PAGES, page.continues).is_file(), page.name
