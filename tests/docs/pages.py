"""The pages of the site as what can be run: sessions, files, and what is shown without being run.

A fenced block of the language `console` is a session: `$ command`, continued by a backslash, then
what it prints. A block with `title="NAME"` is a file. HTML comments in front of a block, invisible
on the page, say how it is to be taken:

    <!-- varies -->             numbers in the output are of this machine and moment
    <!-- exits 2 -->            the exit code of the block's last command, where it is not 0
    <!-- not run: REASON -->    shown, and checked for names of commands, options and files alone
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.helpers.sources import ROOT

PAGES = ROOT / "docs" / "pages"
# What a shell would run has to be a session, or to say why it is none.
OF_SHELLS = ("console", "bash", "sh", "shell")

_FENCE = re.compile(r"^(\s*)(```+)\s*([\w+-]*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_MARK = re.compile(r"^\s*<!--\s*(.*?)\s*-->\s*$")


@dataclass
class Command:
    """One command of a session. `output` holds the lines below it, `line` counts from 0."""

    text: str
    line: int
    output: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """A fenced block: its lines without their indentation, and where they stand in the page."""

    language: str
    title: str | None
    marks: tuple[str, ...]
    indent: str
    first_line: int
    lines: tuple[str, ...]

    @property
    def varies(self) -> bool:
        """Whether numbers of the output may be any."""
        return "varies" in self.marks

    @property
    def exit_code(self) -> int:
        """What the last command ends with."""
        codes = [int(mark.split()[1]) for mark in self.marks if mark.startswith("exits ")]
        return codes[0] if codes else 0

    @property
    def not_run(self) -> str | None:
        """Why the block is shown without being run."""
        reasons = [mark for mark in self.marks if mark.startswith("not run: ")]
        return reasons[0].removeprefix("not run: ") if reasons else None

    @property
    def commands(self) -> list[Command]:
        """The commands of a session, or of a block of a shell that has no prompts."""
        found: list[Command] = []
        continues = False
        for number, line in enumerate(self.lines, start=self.first_line):
            if continues:
                found[-1].text += "\n" + line
            elif line.startswith("$ "):
                found.append(Command(line[2:], number))
            elif found and self.language == "console":
                found[-1].output.append(line)
            elif self.language != "console" and line.strip() and not line.startswith("#"):
                found.append(Command(line, number))
            continues = bool(found) and not found[-1].output and line.endswith("\\")
        return found


@dataclass(frozen=True)
class Page:
    """A page with its blocks. `continues` is the page in whose folder it goes on."""

    path: Path
    continues: str | None
    checkout: bool
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """The path below docs/pages."""
        return self.path.relative_to(PAGES).as_posix()

    @property
    def runs(self) -> bool:
        """Whether anything on it is to be run."""
        return any(block.language == "console" and not block.not_run for block in self.blocks)


def all_pages() -> list[Page]:
    """Every page that is written by hand, sorted."""
    return [read_page(path) for path in sorted(PAGES.rglob("*.md"))]


def read_page(path: Path) -> Page:
    """Take a page apart."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head: dict[str, object] = {}
    if lines and lines[0] == "---":
        end = lines.index("---", 1)
        head = yaml.safe_load("\n".join(lines[1:end])) or {}
    continues = head.get("continues")
    checkout = bool(head.get("checkout", False))
    return Page(path, None if continues is None else str(continues), checkout, _blocks(lines))


def _blocks(lines: list[str]) -> tuple[Block, ...]:
    blocks, marks, number = list[Block](), list[str](), 0
    while number < len(lines):
        fence, mark = _FENCE.match(lines[number]), _MARK.match(lines[number])
        if fence is not None:
            indent, ticks, language, rest = fence.groups()
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == ticks)
            inside = tuple(line.removeprefix(indent) for line in lines[number + 1 : end])
            title = _TITLE.search(rest)
            name = title.group(1) if title else None
            blocks.append(Block(language, name, tuple(marks), indent, number + 1, inside))
            number, marks = end, []
        elif mark is not None:
            marks.append(mark.group(1))
        elif lines[number].strip():
            marks = []
        number += 1
    return tuple(blocks)
