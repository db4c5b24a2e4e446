"""Files that appear whole or not at all (temporary name, fsync, rename), and where they may lie."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from roots.errors import RootsError, code_of, cure_of, problem

_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


def is_url(place: str | Path) -> bool:
    """Whether `place` is no path, but a URL with a scheme, as s3://bucket/runs."""
    return isinstance(place, str) and _URL.fullmatch(place) is not None


def local_path(place: str) -> Path | None:
    """The path that `place` means, or a URL of file://; None for one of anything else."""
    if not is_url(place):
        return Path(place)
    scheme, _, path = place.partition("://")
    return Path(path).expanduser() if scheme.lower() in ("file", "local") else None


def publish(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final` once its content is on disk, and make the rename durable."""
    sync_file(temporary)
    os.replace(temporary, final)
    sync_folder(final.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: a reader sees the old or the new one, never a part of it."""
    # A pid is not enough of a name: processes of other machines may have the same.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    with removed_on_error(temporary):
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise _named(error, path) from None
        publish(temporary, path)


def _named(error: OSError, path: Path) -> OSError:
    """`error` with a file's name, which those of writing to an open file lack."""
    return error if error.filename else OSError(error.errno, error.strerror, str(path))


def remove_partials(path: Path) -> None:
    """Remove what processes that were killed in `write_atomically` left beside `path`.

    For the one process that may write there.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.partial"):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def removed_on_error(temporary: Path) -> Iterator[None]:
    """Leave no half-written temporary file behind."""
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_whole(file: FileIO, line: bytes, end: int) -> int:
    """Append `line` to a file opened for that without a buffer, and return its new end.

    `end`: that of the line before; what an append that failed has left behind it goes first.
    Raises OSError where there is no room or writing fails; no part of `line` stays behind then.
    """
    size = os.fstat(file.fileno()).st_size
    end = min(end, size)
    try:
        if size > end:
            file.truncate(end)
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise
    return end + len(line)


def cannot_write(path: Path, error: OSError, needed: int | None = None) -> RootsError:
    """The one line on a file or folder that could not be written, with the bytes it needs."""
    rule = f"cannot be written ({error.strerror or error})"
    if needed is not None:
        rule += f": it needs {needed:,} bytes, and {free_bytes(path):,} are free there"
    fix = f"{cure_of(error)}, then start again"
    return RootsError(problem(str(path), None, rule, fix), exit_code=code_of(error))


def free_bytes(path: Path) -> int:
    """What the disk of `path`, or of the nearest folder above that exists, has room for."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


class DirectFile:
    """A new file that takes large blocks past the system's cache, where its file system can.

    A copy into that cache costs the processor more than all else that a checkpoint is written by,
    and pushes out what others read. Elsewhere it is written through the cache as any file.
    """

    # Of memory, lengths and places in the file, where the cache is left out.
    ALIGNMENT = 4096

    def __init__(self, path: Path) -> None:
        """Raises OSError where it cannot be made."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
        self.direct_flag = getattr(os, "O_DIRECT", 0)
        self._path = path
        self._length = self._written = 0
        try:
            self._descriptor = os.open(path, flags | self.direct_flag, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.direct_flag:
                raise
            self.direct_flag = 0
            self._descriptor = os.open(path, flags, 0o666)

    def write(self, block: memoryview, length: int) -> None:
        """Append the first `length` bytes of `block`.

        The block is as long as ALIGNMENT asks for, and lies so; only the last is not full.
        """
        padded = min(len(block), -(-length // self.ALIGNMENT) * self.ALIGNMENT)
        rest = block[: padded if self.direct_flag else length]
        self._length += length
        while rest:
            rest = rest[self._write_some(rest) :]

    def _write_some(self, content: memoryview) -> int:
        try:
            count = os.write(self._descriptor, content)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.direct_flag:
                raise
            self._use_cache()
            return 0
        if not self.direct_flag:
            begin_writeback(self._descriptor, self._written, count)
        self._written += count
        return count

    def _use_cache(self) -> None:
        """Go on as any file: this one's system wants another alignment, or takes back its word."""
        import fcntl

        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~self.direct_flag)
        self.direct_flag = 0

    def close(self, *, durable: bool) -> None:
        """End the file; if `durable`, wait until it is on the disk. Raises OSError."""
        try:
            if durable:
                if self._written > self._length:
                    os.ftruncate(self._descriptor, self._length)
                os.fsync(self._descriptor)
        except OSError as error:
            raise _named(error, self._path) from None
        finally:
            os.close(self._descriptor)


def begin_writeback(descriptor: int, start: int, length: int) -> None:
    """Let the kernel bring bytes that were just written to the disk, without waiting for them.

    A later flush then has less to do. Linux alone can; what cannot be advised is flushed later.
    """
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:
        with contextlib.suppress(OSError):
            # To drop pages from its cache Linux writes them first; those being written stay.
            advise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def sync_file(path: Path) -> None:
    """Wait until the content of `path` is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise _named(error, path) from None
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
