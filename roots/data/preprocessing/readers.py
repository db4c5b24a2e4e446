"""Documents from files of text, JSON lines or values, and parquet (see formats.py).

Reading is cut in two so that it runs in parallel: `read_batches` streams raw pieces of about one
MiB in a fixed order (cheap, one process), `parse_batch` turns a piece into texts (worker
processes).

A text file longer than a batch is cut at ends of lines, always the same ones, and its pieces are
tokenized one by one. At a cut, white space may get other tokens than in the middle of a text (most
tokenizers see a run of blank lines as one), and a tokenizer that marks the start of a text does so
at the start of each piece.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roots.data.preprocessing.formats import Kind, format_of
from roots.data.preprocessing.json_values import BrokenValues, are_values, split_values
from roots.data.preprocessing.streams import (
    BATCH_BYTES,
    DEFAULT_LINE_LIMIT,
    UNREADABLE,
    LineTooLong,
    damaged,
    opened,
    read_line,
    unreadable,
)
from roots.errors import RootsError, problem

OnError = Literal["stop", "skip"]
Unit = Literal["line", "row", "value"]
_BATCH_BYTES = BATCH_BYTES
_BATCH_ITEMS = 1024


@dataclass(frozen=True)
class RawBatch:
    """Consecutive unparsed documents of one file.

    `items` are lines, values or rows, as `unit` says, or a piece of a text; `first` is the 1-based
    number of the first; `read_bytes` is how much of the file has been read when the batch is
    complete; `continues` says that it goes on with the document of the batch before it, `goes_on`
    that the next one does so with its own.
    """

    path: str
    kind: Kind
    items: Sequence[object]
    first: int
    read_bytes: int
    goes_on: bool = False
    continues: bool = False
    unit: Unit = "line"


@dataclass(frozen=True)
class Parsed:
    """One item of a batch: its text, or the line that says why it has none."""

    text: str
    error: str | None = None


def read_batches(
    path: Path, text_key: str = "text", line_limit: int = DEFAULT_LINE_LIMIT
) -> Iterator[RawBatch]:
    """Stream a file in raw batches, holding one batch in memory at a time. No line is cut.

    line_limit: bytes of the longest line or value that is read; a longer one becomes an item that
    parse_batch tells. Raises RootsError where the file cannot be read or decompressed, and for a
    parquet file without a column `text_key`.
    """
    kind = format_of(path).kind
    if kind == "parquet":
        yield from _parquet_batches(path, text_key, line_limit)
    else:
        yield from read_lines(path, kind, line_limit)


def read_lines(path: Path, kind: Kind, line_limit: int = DEFAULT_LINE_LIMIT) -> Iterator[RawBatch]:
    """Stream a file that consists of lines or JSON values, which mean what `kind` says.

    Raises RootsError where the file cannot be read or decompressed.
    """
    try:
        with opened(path) as (stream, read_bytes):
            if kind == "text":
                yield from _text_batches(path, stream, read_bytes, line_limit)
                return
            is_split = False
            if kind == "json":
                (is_split, stream), kind = are_values(stream), "jsonl"
            if is_split:
                values = split_values(stream, line_limit)
                yield from _item_batches(path, values, read_bytes, kind, "value")
            else:
                lines = iter(lambda: read_line(stream, line_limit), b"")
                yield from _item_batches(path, lines, read_bytes, kind, "line")
    except BrokenValues as error:
        raise damaged(path, f"is not a whole JSON file ({error})") from None
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def parse_batch(batch: RawBatch, text_key: str = "text") -> Iterator[Parsed]:
    """Turn the items of a batch into texts, or into lines that name file, line and mistake."""
    for number, item in enumerate(batch.items, batch.first):
        if batch.kind == "jsonl" and isinstance(item, bytes) and not item.strip():
            continue
        try:
            if isinstance(item, LineTooLong):
                yield Parsed("", item.problem(f"{batch.path} {batch.unit} {number}"))
            elif batch.kind == "text":
                yield Parsed(_decode(item, number))
            elif batch.kind == "parquet":
                yield Parsed(_text_of_row(item))
            else:
                yield Parsed(texts_of_line(item, [text_key])[0])
        except (ValueError, RecursionError) as error:
            rule = f"must hold a text under {text_key!r}"
            unit = f" {batch.unit} {number}"
            if batch.kind == "text":
                rule, unit = "must be UTF-8 text", f" from line {number} on" if number > 1 else ""
            fix = "repair it, or continue without it by --on-error skip"
            yield Parsed("", problem(f"{batch.path}{unit}", None, f"{rule}: {error}", fix))


def read_texts(
    files: Sequence[Path],
    text_key: str,
    on_error: OnError,
    report: Callable[[str], None],
    line_limit: int = DEFAULT_LINE_LIMIT,
) -> Iterator[str]:
    """Yield every text of every file in order; broken items stop, or go to `report`.

    A long text file comes in its pieces; one that is broken ends it.
    """
    for path in files:
        for batch in read_batches(path, text_key, line_limit):
            broken = False
            for parsed in parse_batch(batch, text_key):
                if parsed.error is None:
                    yield parsed.text
                elif on_error == "stop":
                    raise RootsError(parsed.error)
                else:
                    report(parsed.error)
                    broken = True
            if broken and batch.goes_on:
                break


def _decode(item: object, first_line: int) -> str:
    assert isinstance(item, bytes)
    # Only at the start of a file is U+FEFF a mark of the encoding and no character.
    return item.decode("utf-8-sig" if first_line == 1 else "utf-8")


def _text_of_row(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError(f"the value is no string but {type(item).__name__}")
    return item


def texts_of_line(line: object, keys: Sequence[str]) -> list[str]:
    """Return the texts of a JSON object under `keys`. Raises ValueError that says what is wrong."""
    assert isinstance(line, bytes)
    try:
        content = json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (column {error.colno})") from None
    if not isinstance(content, dict):
        raise ValueError(f"the line is no object but {type(content).__name__}")
    texts = []
    for key in keys:
        if key not in content:
            raise ValueError(f"the object has only the keys {sorted(content)}")
        text = content[key]
        if not isinstance(text, str):
            raise ValueError(f"the value is no string but {type(text).__name__}")
        if not text.isascii():
            text.encode()  # JSON can spell half of a surrogate pair, which no tokenizer accepts
        texts.append(text)
    return texts


def _text_batches(
    path: Path, stream: io.BufferedReader, read_bytes: Callable[[], int], line_limit: int
) -> Iterator[RawBatch]:
    first, goes_on = 1, True
    while goes_on:
        piece = stream.read(_BATCH_BYTES)
        rest = read_line(stream, line_limit)
        size = len(piece) - piece.rfind(b"\n") - 1
        size += rest.size if isinstance(rest, LineTooLong) else len(rest)
        if size > line_limit or isinstance(rest, LineTooLong):
            rest = LineTooLong(size, line_limit)
            number = first + piece.count(b"\n")
            yield RawBatch(str(path), "text", [rest], number, read_bytes(), False, first > 1)
            return
        piece += rest
        goes_on = bool(stream.peek(1))
        yield RawBatch(str(path), "text", [piece], first, read_bytes(), goes_on, first > 1)
        first += piece.count(b"\n")


def _item_batches(
    path: Path,
    items: Iterable[bytes | LineTooLong],
    read_bytes: Callable[[], int],
    kind: Kind,
    unit: Unit,
) -> Iterator[RawBatch]:
    batch: list[bytes | LineTooLong] = []
    size, first = 0, 1
    for number, item in enumerate(items, 1):
        batch.append(item)
        size += 0 if isinstance(item, LineTooLong) else len(item)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ITEMS:
            yield RawBatch(str(path), kind, batch, first, read_bytes(), unit=unit)
            batch, size, first = [], 0, number + 1
    if batch:
        yield RawBatch(str(path), kind, batch, first, read_bytes(), unit=unit)


def _bounded(text: object, limit: int) -> object:
    is_long = isinstance(text, str) and len(text) > limit
    return LineTooLong(len(str(text)), limit) if is_long else text


def _parquet_batches(path: Path, text_key: str, line_limit: int) -> Iterator[RawBatch]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        rule = "reading parquet needs pyarrow"
        raise RootsError(problem(str(path), None, rule, "run `pip install pyarrow`")) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_key not in columns:
                rule = f"has only the columns {sorted(columns)}"
                fix = "name the one with the text by --text-key"
                raise RootsError(problem(f"{path} --text-key", text_key, rule, fix))
            rows, total = 0, max(file.metadata.num_rows, 1)
            size = path.stat().st_size
            for group in file.iter_batches(batch_size=_BATCH_ITEMS, columns=[text_key]):
                texts = [_bounded(text, line_limit) for text in group.column(0).to_pylist()]
                first, rows = rows + 1, rows + len(texts)
                read = size * rows // total
                yield RawBatch(str(path), "parquet", texts, first, read, unit="row")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise damaged(path, f"is not a whole parquet file ({detail})") from None
