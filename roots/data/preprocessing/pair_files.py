"""Pairs of texts from .tsv files and JSON lines or values, for translation and questions.

A .tsv file has one pair a line, its columns separated by tabs and quoted by nothing, so that a
quotation mark is text; columns are named by the first line, or, where they are asked for by numbers
from 1, by their order, and the first line is a pair like the others. Every line has as many columns
as the first: tabs or ends of lines inside quotes, as in files that tables were exported to, are
told and not cut at, and so is a field whose quotes are doubled. JSON has one object a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roots.data.preprocessing.file_lists import find_pair_files
from roots.data.preprocessing.formats import format_of
from roots.data.preprocessing.readers import OnError, RawBatch, read_lines, texts_of_line
from roots.data.preprocessing.streams import DEFAULT_LINE_LIMIT, LineTooLong
from roots.errors import RootsError, problem

_UNQUOTED = (
    "quotes are text here, so write a table with quoted fields as .jsonl: "
    "pandas.read_csv(F, sep=TAB).to_json('a.jsonl', orient='records', lines=True)"
)
_FIX = "repair it, or continue without it by --on-error skip"
_FIX_WITHOUT_OPTIONS = "repair it, or leave it out of the file"


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
    """Consecutive unparsed lines of one file, and which columns of a .tsv hold the pair.

    `num_columns` is that of the first line of a .tsv.
    """

    lines: RawBatch
    names: tuple[str, str]
    places: tuple[int, int]
    num_columns: int = 2


@dataclass(frozen=True)
class ParsedPair:
    """One line: its two texts, or the line of the error that says why it has none."""

    source: str
    target: str
    error: str | None = None


def read_pair_batches(
    path: Path, columns: PairColumns, line_limit: int = DEFAULT_LINE_LIMIT
) -> Iterator[PairBatch]:
    """Stream the lines of a file, holding about one MiB at a time.

    Raises RootsError where it cannot be read, and for a .tsv file without one of the columns.
    """
    kind = format_of(path).kind
    if kind != "tsv":
        for lines in read_lines(path, kind, line_limit):
            yield PairBatch(lines, columns.names, (0, 1))
        return
    places: tuple[int, int] | None = None
    num_columns = 0
    for lines in read_lines(path, kind, line_limit):
        if places is None:
            header = _header(path, lines.items[0])
            num_columns = len(header)
            if columns.are_numbers:
                places = _places_by_number(path, num_columns, columns)
            else:
                places = _places_in_header(path, header, columns)
                lines = replace(lines, items=lines.items[1:], first=2)
        yield PairBatch(lines, columns.names, places, num_columns)


def _header(path: Path, line: object) -> list[str]:
    """The fields of the first line. Raises RootsError where they are not UTF-8."""
    where = f"{path} line 1"
    if isinstance(line, LineTooLong):
        # No --on-error passes over a header, and not every command has --line-limit.
        raise RootsError(line.problem(where, has_options=False))
    assert isinstance(line, bytes)
    try:
        return _fields(line, 1)
    except ValueError as error:
        rule = f"must be a header in UTF-8: {error}"
        raise RootsError(problem(where, None, rule, "save it as UTF-8")) from None


def parse_pairs(batch: PairBatch, *, has_options: bool = True) -> Iterator[ParsedPair]:
    """Turn lines into pairs, or into lines that name file, line and mistake. Blank lines pass.

    has_options: whether the command has --line-limit and --on-error, which the mistakes then name
    """
    fix = _FIX if has_options else _FIX_WITHOUT_OPTIONS
    for number, line in enumerate(batch.lines.items, batch.lines.first):
        where = f"{batch.lines.path} {batch.lines.unit} {number}"
        if isinstance(line, LineTooLong):
            yield ParsedPair("", "", line.problem(where, has_options=has_options))
            continue
        assert isinstance(line, bytes)
        if not line.strip():
            continue
        try:
            if batch.lines.kind == "jsonl":
                texts = texts_of_line(line, batch.names)
            else:
                texts = _texts_of_columns(_fields(line, number), batch)
            empty = [name for name, text in zip(batch.names, texts) if not text.strip()]
            if empty:
                raise ValueError(f"the field {empty[0]!r} is empty")
            yield ParsedPair(*texts)
        except (ValueError, RecursionError) as error:
            rule = f"must hold a pair under {batch.names[0]!r} and {batch.names[1]!r}: {error}"
            yield ParsedPair("", "", problem(where, None, rule, fix))


def read_pairs(path: str | Path, columns: PairColumns | None = None) -> list[tuple[str, str]]:
    """Read a whole file. Raises RootsError for the first line without a pair, and without any."""
    pairs = []
    files = find_pair_files([path]).paths
    for pair in _pairs_of(files, columns or PairColumns(), has_options=False):
        if pair.error is not None:
            raise RootsError(pair.error)
        pairs.append((pair.source, pair.target))
    if not pairs:
        raise RootsError(problem("pairs", str(path), "holds no pairs", "name a file with pairs"))
    return pairs


def read_pair_texts(
    files: Sequence[Path],
    columns: PairColumns,
    on_error: OnError,
    report: Callable[[str], None],
    line_limit: int = DEFAULT_LINE_LIMIT,
) -> Iterator[str]:
    """Yield both texts of every pair, one after the other; broken lines stop, or go to `report`."""
    for pair in _pairs_of(files, columns, line_limit):
        if pair.error is None:
            yield from (pair.source, pair.target)
        elif on_error == "stop":
            raise RootsError(pair.error)
        else:
            report(pair.error)


def _pairs_of(
    files: Sequence[Path],
    columns: PairColumns,
    line_limit: int = DEFAULT_LINE_LIMIT,
    *,
    has_options: bool = True,
) -> Iterator[ParsedPair]:
    for path in files:
        for batch in read_pair_batches(path, columns, line_limit):
            yield from parse_pairs(batch, has_options=has_options)


def _places_in_header(path: Path, header: list[str], columns: PairColumns) -> tuple[int, int]:
    for option, name in (("--source-key", columns.source), ("--target-key", columns.target)):
        if name not in header:
            rule = f"the first line of {path} names only the columns {header}"
            fix = f"name one of them by {option}, or give a number from 1 if there is no such line"
            raise RootsError(problem(f"{option}", name, rule, fix))
        if header.count(name) > 1:
            rule = f"the first line of {path} names more than one column so: {header}"
            raise RootsError(problem(option, name, rule, "rename all but one of them"))
    return header.index(columns.source), header.index(columns.target)


def _places_by_number(path: Path, num_columns: int, columns: PairColumns) -> tuple[int, int]:
    for option, name in (("--source-key", columns.source), ("--target-key", columns.target)):
        if int(name) > num_columns:
            rule = f"the first line of {path} has {num_columns} columns"
            raise RootsError(problem(option, name, rule, "give a number of one of them, from 1"))
    return int(columns.source) - 1, int(columns.target) - 1


def _texts_of_columns(fields: list[str], batch: PairBatch) -> list[str]:
    if len(fields) != batch.num_columns:
        quoted = any(field.startswith('"') or field.endswith('"') for field in fields)
        hint = f" ({_UNQUOTED})" if quoted else ""
        rule = f"the line has {len(fields)} columns, and the first line {batch.num_columns}"
        raise ValueError(rule + hint)
    texts = [fields[place] for place in batch.places]
    for name, text in zip(batch.names, texts):
        if _is_quoted(text):
            raise ValueError(f"the field {name!r} is quoted, and its quotes doubled ({_UNQUOTED})")
    return texts


def _is_quoted(text: str) -> bool:
    """Whether quotes around a field and doubled ones in it show that a table was exported."""
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return False
    inner = text[1:-1]
    return '""' in inner and '"' not in inner.replace('""', "")


def _fields(line: object, number: int) -> list[str]:
    assert isinstance(line, bytes)
    # Only at the start of a file is U+FEFF a mark of the encoding and no character.
    return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")
