"""The bytes of a file, decompressed as its name says, and its lines within a bound."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roots.data.preprocessing.formats import format_of
from roots.errors import RootsError, problem

BATCH_BYTES = 1 << 20
MEBI = 1 << 20
DEFAULT_LINE_LIMIT = 128 * MEBI
# What reading a damaged or unreadable file raises.
UNREADABLE = (EOFError, zlib.error, lzma.LZMAError, OSError)
_COMPRESSED_PIECE = 1 << 16


@dataclass(frozen=True)
class LineTooLong:
    """Stands for a line or JSON value of `size` bytes, beyond the `limit`."""

    size: int
    limit: int

    def problem(self, where: str, *, has_options: bool = True) -> str:
        """The line of the error, of a command with --line-limit and --on-error or without them."""
        option = "--line-limit, " if has_options else ""
        rule = (
            f"is too long: it has {self.size / MEBI:,.1f} MiB, and a line or value is held whole "
            f"up to {option}{self.limit / MEBI:,.0f} MiB"
        )
        fix = "cut it, or leave it out of the file"
        if has_options:
            fix = "cut it, raise --line-limit, or continue without it by --on-error skip"
        return problem(where, None, rule, fix)


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedReader, Callable[[], int]]]:
    """Give the content of `path`, and what says how many bytes on disk have been read of it.

    Raises RootsError where a library is missing; reading raises one of UNREADABLE.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        stream = stack.enter_context(_decompressed(path, raw))
        yield stream, raw.tell


def unreadable(path: Path, error: Exception) -> RootsError:
    """The error of a file whose reading raised one of UNREADABLE."""
    # bz2 raises plain OSError, without a number, for what is no bzip2.
    is_compressed = format_of(path).compression is not None
    if isinstance(error, OSError) and (error.errno is not None or not is_compressed):
        return damaged(path, f"cannot be read ({error.strerror or error})")
    return damaged(path, f"is not a whole compressed file ({error})")


def damaged(path: Path, rule: str) -> RootsError:
    """The error of a file that is not what its name says."""
    return RootsError(problem(str(path), None, rule, "copy it again, or leave it out"))


def read_line(stream: io.BufferedReader, limit: int) -> bytes | LineTooLong:
    """Read one line with its end, b"" at the end of the file.

    A line of over `limit` bytes is passed over, in bounded memory, and gives the error instead.
    """
    line = stream.readline(limit + 1)
    if len(line) <= limit or line.endswith(b"\n"):
        return line
    size = len(line)
    while piece := stream.readline(BATCH_BYTES):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return LineTooLong(size, limit)


def put_back(head: bytes, stream: io.BufferedReader) -> io.BufferedReader:
    """The stream as it was before `head` was read from it."""
    pieces = itertools.chain([head], iter(lambda: stream.read(_COMPRESSED_PIECE), b""))
    return io.BufferedReader(_Chunks(pieces), BATCH_BYTES)


def _decompressed(path: Path, raw: io.BufferedReader) -> io.BufferedReader:
    compression = format_of(path).compression
    if compression is None:
        return raw
    if not raw.peek(1):
        raise EOFError("it is empty")
    if compression == "zst":
        return _zstandard(path, raw)
    kinds: dict[str, Any] = {"gz": gzip.GzipFile, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}
    # GzipFile's first unnamed parameter is a name.
    named = {"fileobj": raw} if compression == "gz" else {"filename": raw}
    return io.BufferedReader(kinds[compression](**named), BATCH_BYTES)


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

    return io.BufferedReader(_Chunks(chunks()), BATCH_BYTES)


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
