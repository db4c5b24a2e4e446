"""Pairs of texts from .tsv and .jsonl files (also .gz and .zst), for translation and questions.

A .tsv file has one pair a line, its columns separated by tabs and quoted by nothing; columns are
named by the first line, or, where they are asked for by numbers from 1, by their order, and the
first line is a pair like the others. A .jsonl file has one object a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roots.data.preprocessing.readers import OnError, RawBatch, read_lines, texts_of_line
from roots.errors import RootsError, problem

_KINDS = {".tsv": "tsv", ".jsonl": "jsonl"}
_COMPRESSIONS = (".gz", ".zst")
_FIX = "repair it, or continue without it by --on-error skip"


@dataclass(frozen=True)
class PairColumns:
    """Where the two texts of a pair stand: keys, names of columns, or numbers of columns from 1."""

    source: str = "source"
    target: str = "target"

    @property
    def names(self) -> tuple[str, str]:
        """Both, the source first."""
        return self.source, self.target

    @property
    def are_numbers(self) -> bool:
        """Whether the file has no line that names its columns."""
        return all(name.isdigit() and int(name) > 0 for name in self.names)


@dataclass(frozen=True)
class PairBatch:
    """Consecutive unparsed lines of one file, and which columns of a .tsv hold the pair."""

    lines: RawBatch
    names: tuple[str, str]
    places: tuple[int, int]


@dataclass(frozen=True)
class ParsedPair:
    """One line: its two texts, or the line of the error that says why it has none."""

    source: str
    target: str
    error: str | None = None


def find_pair_files(paths: Sequence[str | Path]) -> list[Path]:
    """Check that all paths are files of pairs. Raises RootsError with every one that is not."""
    lines = []
    for path in map(Path, paths):
        if path.is_dir():
            rule = "is a folder"
            lines.append(problem("FILES", str(path), rule, "name its .tsv or .jsonl files"))
        elif not path.is_file():
            lines.append(problem("FILES", str(path), "no such file", "check the path"))
        elif _kind(path) is None:
            rule = "pairs are read from .tsv and .jsonl files, also .gz and .zst"
            lines.append(problem("FILES", str(path), rule, "convert it, or change its ending"))
    if lines:
        raise RootsError(*lines)
    return [Path(path) for path in paths]


def read_pair_batches(path: Path, columns: PairColumns) -> Iterator[PairBatch]:
    """Stream the lines of a file, holding about one MiB at a time.

    Raises RootsError where it cannot be read, and for a .tsv file without one of the columns.
    """
    if _kind(path) == "jsonl":
        for lines in read_lines(path, "jsonl"):
            yield PairBatch(lines, columns.names, (0, 1))
        return
    places: tuple[int, int] | None = None
    if columns.are_numbers:
        places = (int(columns.source) - 1, int(columns.target) - 1)
    for lines in read_lines(path, "tsv"):
        if places is None:
            places = _places_in_header(path, _header(path, lines.items[0]), columns)
            lines = replace(lines, items=lines.items[1:], first=2)
        yield PairBatch(lines, columns.names, places)


def _header(path: Path, line: object) -> list[str]:
    """The names of the columns. Raises RootsError where they are not UTF-8."""
    assert isinstance(line, bytes)
    try:
        return _fields(line, 1)
    except ValueError as error:
        rule = f"must be a header in UTF-8: {error}"
        raise RootsError(problem(f"{path} line 1", None, rule, "save it as UTF-8")) from None


def parse_pairs(batch: PairBatch) -> Iterator[ParsedPair]:
    """Turn lines into pairs, or into lines that name file, line and mistake. Blank lines pass."""
    for number, line in enumerate(batch.lines.items, batch.lines.first):
        assert isinstance(line, bytes)
        if not line.strip():
            continue
        try:
            if batch.lines.kind == "jsonl":
                texts = texts_of_line(line, batch.names)
            else:
                texts = _texts_of_columns(_fields(line, number), batch.places)
            empty = [name for name, text in zip(batch.names, texts) if not text.strip()]
            if empty:
                raise ValueError(f"the field {empty[0]!r} is empty")
            yield ParsedPair(*texts)
        except (ValueError, RecursionError) as error:
            where = f"{batch.lines.path} line {number}"
            rule = f"must hold a pair under {batch.names[0]!r} and {batch.names[1]!r}: {error}"
            yield ParsedPair("", "", problem(where, None, rule, _FIX))


def read_pairs(path: str | Path, columns: PairColumns | None = None) -> list[tuple[str, str]]:
    """Read a whole file. Raises RootsError for the first line without a pair, and without any."""
    pairs = []
    for pair in _pairs_of(find_pair_files([path]), columns or PairColumns()):
        if pair.error is not None:
            raise RootsError(pair.error)
        pairs.append((pair.source, pair.target))
    if not pairs:
        raise RootsError(problem("pairs", str(path), "holds no pairs", "name a file with pairs"))
    return pairs


def read_pair_texts(
    files: Sequence[Path], columns: PairColumns, on_error: OnError, report: Callable[[str], None]
) -> Iterator[str]:
    """Yield both texts of every pair, one after the other; broken lines stop, or go to `report`."""
    for pair in _pairs_of(files, columns):
        if pair.error is None:
            yield from (pair.source, pair.target)
        elif on_error == "stop":
            raise RootsError(pair.error)
        else:
            report(pair.error)


def _pairs_of(files: Sequence[Path], columns: PairColumns) -> Iterator[ParsedPair]:
    for path in files:
        for batch in read_pair_batches(path, columns):
            yield from parse_pairs(batch)


def _places_in_header(path: Path, header: list[str], columns: PairColumns) -> tuple[int, int]:
    for option, name in (("--source-key", columns.source), ("--target-key", columns.target)):
        if name not in header:
            rule = f"the first line of {path} names only the columns {header}"
            fix = f"name one of them by {option}, or give a number from 1 if there is no such line"
            raise RootsError(problem(f"{option}", name, rule, fix))
    return header.index(columns.source), header.index(columns.target)


def _texts_of_columns(fields: list[str], places: tuple[int, int]) -> list[str]:
    if max(places) >= len(fields):
        raise ValueError(f"the line has {len(fields)} columns")
    return [fields[place] for place in places]


def _fields(line: object, number: int) -> list[str]:
    assert isinstance(line, bytes)
    # Only at the start of a file is U+FEFF a mark of the encoding and no character.
    return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")


def _kind(path: Path) -> str | None:
    plain = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return _KINDS.get(plain.suffix)
