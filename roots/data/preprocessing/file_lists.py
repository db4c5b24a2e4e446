"""Which files a command reads: named ones, those of folders, and what of a folder is left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roots.data.preprocessing.formats import (
    KEYED,
    READABLE,
    format_of,
    is_text_file,
    pairs_problem,
    text_problem,
)
from roots.data.preprocessing.streams import UNREADABLE, opened
from roots.errors import RootsError, problem
from roots.log import get_logger

_FIRST_LINE = 1 << 20
_HEAD = 1 << 13


@dataclass
class FoundFiles:
    """`paths` to read, in order, and how many entries of folders are left out, by ending or why.

    `sizes` are those on disk, in bytes.
    """

    paths: list[Path] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def text_key(self, given: str | None) -> str:
        """The key or column of the texts; "text" where none is given.

        Raises RootsError for a given one where no file here has keys or columns.
        """
        if given is None:
            return "text"
        if any(format_of(path).kind in KEYED for path in self.paths):
            return given
        rule = "has no effect, because every file here is text without keys or columns"
        fix = "leave it out, or name files of JSON lines .jsonl"
        raise RootsError(problem("--text-key", given, rule, fix))

    def describe_left_out(self) -> str:
        """As `3 .csv, 1 hidden`; "" where nothing is left out."""
        ordered = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {what}" for what, count in ordered)


def find_files(paths: Sequence[str | Path]) -> FoundFiles:
    """List the files to read texts from: named ones, and folders recursively in order of names.

    Links are followed, to folders too. What a folder holds beside texts is counted, and told once.
    Raises RootsError with a line for every path that does not exist or holds no text as its name
    or its first bytes say, for a file named twice, and for a folder without a file of texts.
    """
    finder = _Finder()
    for path in map(Path, paths):
        if path.is_dir():
            finder.add_folder(path)
        else:
            finder.add_named(path, text_problem(path) or _content_problem(path))
    found = finder.done()
    if left_out := found.describe_left_out():
        get_logger("data").warning("of the folders is left out: %s", left_out)
    return found


def find_pair_files(paths: Sequence[str | Path]) -> FoundFiles:
    """Check that all paths are files of pairs. Raises RootsError with every one that is not."""
    finder = _Finder()
    for path in map(Path, paths):
        if path.is_dir():
            fix = "name its .tsv or .jsonl files"
            finder.lines.append(problem("FILES", str(path), "is a folder", fix))
        else:
            finder.add_named(path, pairs_problem(path))
    return finder.done()


class _Finder:
    """Collects files, each once, and the lines of all mistakes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._found = FoundFiles()
        self._met: dict[tuple[int, int], Path] = {}

    def done(self) -> FoundFiles:
        if self.lines:
            raise RootsError(*self.lines)
        return self._found

    def add_named(self, path: Path, mistake: str | None) -> None:
        if not path.exists():
            self._refuse(path, "no such file or folder", "check the path")
        elif not path.is_file():
            self._refuse(path, "is no regular file", "write what it gives to a file, and name that")
        elif mistake is not None:
            self.lines.append(mistake)
        elif (first := self._take(path)) is not None:
            fix = "name it once (weights in data.train repeat a dataset)"
            self._refuse(path, f"is the same file as {str(first)!r}", fix)

    def add_folder(self, folder: Path) -> None:
        before = len(self._found.paths), self._found.left_out.copy()
        try:
            self._walk(folder)
        except OSError as error:
            rule = f"cannot be read ({error.strerror})"
            self._refuse(Path(error.filename or folder), rule, "change its rights, or leave it out")
            return
        if len(self._found.paths) == before[0]:
            rule = f"holds no {READABLE} file"
            here = FoundFiles(left_out=self._found.left_out - before[1]).describe_left_out()
            fix = "name other files one by one: they are read as plain text"
            self._refuse(folder, rule + (f", but {here}" if here else ""), fix)

    def _walk(self, folder: Path) -> None:
        if self._met_before(folder) is not None:
            self._found.left_out["met twice"] += 1
            return
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = folder / entry.name
            if why := _left_out(path):
                self._found.left_out[why] += 1
            elif path.is_dir():
                self._walk(path)
            elif self._take(path) is not None:
                self._found.left_out["met twice"] += 1

    def _take(self, path: Path) -> Path | None:
        """Add a file; return the path by which it was added before, if it was."""
        if (first := self._met_before(path)) is not None:
            return first
        self._found.paths.append(path)
        self._found.sizes.append(path.stat().st_size)
        return None

    def _met_before(self, path: Path) -> Path | None:
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        first = self._met.get(key)
        self._met.setdefault(key, path)
        return first

    def _refuse(self, path: Path, rule: str, fix: str) -> None:
        self.lines.append(problem("FILES", str(path), rule, fix))


def _left_out(path: Path) -> str | None:
    """Why an entry of a folder is not read; None for a folder and a file that are."""
    if path.name.startswith("."):
        return "hidden"
    if not path.exists():
        return "broken link"
    if path.is_dir():
        return None
    if not path.is_file():
        return "no regular file"
    stem = path.name.removesuffix(".json").removesuffix(".canaries")
    if path.suffix == ".json" and path.with_name(f"{stem}.idx").exists():
        return "of a dataset"
    return None if is_text_file(path) else format_of(path).ending


def _content_problem(path: Path) -> str | None:
    """The line that says that the first bytes of a file are not the plain text its name means."""
    found = format_of(path)
    if found.kind != "text" or not path.is_file():
        return None
    try:
        with opened(path) as (stream, _):
            line = stream.readline(_FIRST_LINE)
            head = line[:_HEAD] if len(line) >= _HEAD else line + stream.read(_HEAD - len(line))
    except (RootsError, *UNREADABLE):
        return None  # reading it says why
    if b"\0" in head and not found.is_known:
        rule = "holds NUL bytes, which text in UTF-8 has none of"
        return problem("FILES", str(path), rule, "leave it out, or save it as UTF-8")
    if not _is_object(line):
        return None
    rule = "its first line is a JSON object, but its ending means plain text"
    fix = "name it .jsonl for the texts in it, or .txt to learn braces and keys too"
    if not found.is_known:
        return problem("FILES", str(path), rule, fix)
    text = "%s: its first line is a JSON object; braces and keys are learned, unless it is a .jsonl"
    get_logger("data").warning(text, path)
    return None


def _is_object(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
