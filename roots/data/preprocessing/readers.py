"""Documents from text files: .txt, .jsonl (also .gz and .zst) and .parquet; files or folders.

Reading is cut in two so that it runs in parallel: `read_batches` streams raw pieces of about one
MiB in a fixed order (cheap, one process), `parse_batch` turns a piece into texts (worker
processes). Any other file that is named explicitly is one document, like .txt.

A text file longer than a batch is cut at ends of lines, always the same ones, and its pieces are
tokenized one by one. At a cut, white space may get other tokens than in the middle of a text (most
tokenizers see a run of blank lines as one), and a tokenizer that marks the start of a text does so
at the start of each piece.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from roots.errors import RootsError, problem

Kind = Literal["text", "jsonl", "parquet", "tsv"]
OnError = Literal["stop", "skip"]
_KINDS: dict[str, Kind] = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
_COMPRESSIONS = (".gz", ".zst")
_BATCH_BYTES = 1 << 20
_BATCH_ITEMS = 1024
_COMPRESSED_PIECE = 1 << 16


@dataclass(frozen=True)
class RawBatch:
    """Consecutive unparsed documents of one file.

    `items` are lines, rows or a piece of a text; `first` is the 1-based number of the first line
    or row; `read_bytes` is how much of the file has been read when the batch is complete;
    `continues` says that it goes on with the document of the batch before it, `goes_on` that the
    next one does so with its own.
    """

    path: str
    kind: Kind
    items: list[bytes] | list[object]
    first: int
    read_bytes: int
    goes_on: bool = False
    continues: bool = False


@dataclass(frozen=True)
class Parsed:
    """One item of a batch: its text, or the line that says why it has none."""

    text: str
    error: str | None = None


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the files to read: named files as they are, folders recursively in order of names.

    Raises RootsError for a path that does not exist and a folder without a known kind of file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = [item for item in sorted(path.rglob("*")) if _belongs(item, path)]
            if not found:
                rule = "holds no .txt, .jsonl or .parquet file"
                fix = "name other files one by one: they are read as plain text"
                raise RootsError(problem("FILES", str(path), rule, fix))
            files.extend(found)
        elif path.is_file():
            files.append(path)
        else:
            rule = "no such file or folder"
            raise RootsError(problem("FILES", str(path), rule, "check the path"))
    return files


def read_batches(path: Path, text_key: str = "text") -> Iterator[RawBatch]:
    """Stream a file in raw batches, holding one batch in memory at a time. No line is cut.

    Raises RootsError where the file cannot be read or decompressed, and for a parquet file
    without a column `text_key`.
    """
    kind = _kind(path)
    if kind == "parquet":
        yield from _parquet_batches(path, text_key)
    else:
        yield from read_lines(path, kind)


def read_lines(path: Path, kind: Kind) -> Iterator[RawBatch]:
    """Stream a file that consists of lines, which mean what `kind` says.

    Raises RootsError where the file cannot be read or decompressed.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(open(path, "rb"))
            stream = stack.enter_context(_decompressed(path, raw))
            if kind == "text":
                yield from _text_batches(path, stream, raw.tell)
            else:
                yield from _line_batches(path, stream, raw.tell, kind)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(path, f"is not a whole compressed file ({error})") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror or error})") from None


def parse_batch(batch: RawBatch, text_key: str = "text") -> Iterator[Parsed]:
    """Turn the items of a batch into texts, or into lines that name file, line and mistake."""
    for number, item in enumerate(batch.items, batch.first):
        if batch.kind == "jsonl" and isinstance(item, bytes) and not item.strip():
            continue
        try:
            if batch.kind == "text":
                yield Parsed(_decode(item, number))
            elif batch.kind == "parquet":
                yield Parsed(_text_of_row(item))
            else:
                yield Parsed(texts_of_line(item, [text_key])[0])
        except (ValueError, RecursionError) as error:
            rule = f"must hold a text under {text_key!r}"
            unit = f" {'row' if batch.kind == 'parquet' else 'line'} {number}"
            if batch.kind == "text":
                rule, unit = "must be UTF-8 text", f" from line {number} on" if number > 1 else ""
            fix = "repair it, or continue without it by --on-error skip"
            yield Parsed("", problem(f"{batch.path}{unit}", None, f"{rule}: {error}", fix))


def read_texts(
    files: Sequence[Path],
    text_key: str,
    on_error: OnError,
    report: Callable[[str], None],
) -> Iterator[str]:
    """Yield every text of every file in order; broken items stop, or go to `report`.

    A long text file comes in its pieces; one that is broken ends it.
    """
    for path in files:
        for batch in read_batches(path, text_key):
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
    path: Path, stream: io.BufferedReader, read_bytes: Callable[[], int]
) -> Iterator[RawBatch]:
    first, goes_on = 1, True
    while goes_on:
        piece = stream.read(_BATCH_BYTES) + stream.readline()
        goes_on = bool(stream.peek(1))
        yield RawBatch(str(path), "text", [piece], first, read_bytes(), goes_on, first > 1)
        first += piece.count(b"\n")


def _line_batches(
    path: Path, stream: IO[bytes], read_bytes: Callable[[], int], kind: Kind
) -> Iterator[RawBatch]:
    items: list[bytes] = []
    size, first = 0, 1
    for number, line in enumerate(stream, 1):
        items.append(line)
        size += len(line)
        if size >= _BATCH_BYTES or len(items) >= _BATCH_ITEMS:
            yield RawBatch(str(path), kind, items, first, read_bytes())
            items, size, first = [], 0, number + 1
    if items:
        yield RawBatch(str(path), kind, items, first, read_bytes())


def _parquet_batches(path: Path, text_key: str) -> Iterator[RawBatch]:
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
                texts = group.column(0).to_pylist()
                first, rows = rows + 1, rows + len(texts)
                yield RawBatch(str(path), "parquet", texts, first, size * rows // total)
    except pyarrow.ArrowException as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise _unreadable(path, f"is not a whole parquet file ({detail})") from None


def _decompressed(path: Path, raw: io.BufferedReader) -> io.BufferedReader:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BATCH_BYTES)
    if path.suffix == ".zst":
        return _zstandard(path, raw)
    return raw


def _zstandard(path: Path, raw: io.BufferedReader) -> io.BufferedReader:
    try:
        import zstandard
    except ModuleNotFoundError:
        rule = "reading .zst needs zstandard"
        raise RootsError(problem(str(path), None, rule, "run `pip install zstandard`")) from None

    def chunks() -> Iterator[bytes]:
        # zstandard's own stream reader takes a file that ends inside a frame for a whole one.
        decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        frame, inside = decompressor.decompressobj(), False
        try:
            while piece := raw.read(_COMPRESSED_PIECE):
                while piece:
                    yield frame.decompress(piece)
                    piece, inside = frame.unused_data, not frame.eof
                    if frame.eof:
                        frame = decompressor.decompressobj()
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        if inside:
            raise EOFError("it ends inside a frame")

    return io.BufferedReader(_Chunks(chunks()), _BATCH_BYTES)


class _Chunks(io.RawIOBase):
    """A file whose content is made piece by piece."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return True: it can be read and nothing else."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the current piece goes; 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _kind(path: Path) -> Kind:
    plain = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return _KINDS.get(plain.suffix, "text")


def _belongs(item: Path, folder: Path) -> bool:
    """Whether a file of a folder is read: a known kind, and no hidden part in its path."""
    plain = item.with_suffix("") if item.suffix in _COMPRESSIONS else item
    hidden = any(part.startswith(".") for part in item.relative_to(folder).parts)
    return plain.suffix in _KINDS and not hidden and item.is_file()


def _unreadable(path: Path, rule: str) -> RootsError:
    return RootsError(problem(str(path), None, rule, "copy it again, or leave it out"))
