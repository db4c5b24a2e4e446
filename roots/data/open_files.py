"""Files that stay open for a whole run, and what becomes of them meanwhile.

A file can be cut short, or its disk can fail, long after it was opened and found whole. Reading a
mapped page that is no longer there ends the process by SIGBUS, without a word. So tokens, which are
most of what is read, are read by system calls, which say what is wrong (and take no longer than
slices of a mapping); the small index files stay mapped, and their sizes are asked for before each
sample.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roots.errors import RootsError, problem

_FIX = "put a whole copy there and start again"
_RIGHTS = "give its reader the rights to it and its folder, and start again"


class UnreadableFile(RootsError):
    """A file cannot be read: from the first, or after it was opened."""

    def __init__(self, path: str | Path, rule: str, fix: str = _FIX) -> None:
        super().__init__(problem(str(path), None, rule, fix))
        self._path = path
        self._rule = rule
        self._fix = fix

    def at(self, place: str) -> RootsError:
        """The same, with what was to be read: "sample 7"."""
        return RootsError(problem(f"{self._path}, {place}", None, self._rule, self._fix))

    @classmethod
    def because_of(cls, path: str | Path, error: OSError) -> UnreadableFile:
        """Of a file that the system does not read."""
        fix = _RIGHTS if isinstance(error, PermissionError) else _FIX
        return cls(error.filename or path, f"cannot be read ({error.strerror})", fix)


class TokenFile:
    """The tokens of a file, read as they are asked for: `len()` and slices, as an array has them.

    The file stays the one that was opened, whatever has its name later.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.dtype = dtype
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._length = os.fstat(self._descriptor).st_size // dtype.itemsize

    def __len__(self) -> int:
        """Return the number of tokens when the file was opened."""
        return self._length

    def __getitem__(self, span: slice) -> NDArray[np.integer[Any]]:
        """Read consecutive tokens. Raises UnreadableFile where the file does not have them now."""
        begin, end, step = span.indices(self._length)
        assert step == 1, "tokens are read one after the other"
        first, size = begin * self.dtype.itemsize, max(0, end - begin) * self.dtype.itemsize
        parts = []
        while size > 0:
            part = self._read(size, first)
            parts.append(part)
            first, size = first + len(part), size - len(part)
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        return np.frombuffer(whole, dtype=self.dtype)

    def _read(self, size: int, first: int) -> bytes:
        try:
            part = os.pread(self._descriptor, size, first)
        except OSError as error:
            raise UnreadableFile.because_of(self.path, error) from None
        if not part:
            expected = self._length * self.dtype.itemsize
            raise _cut_short(self.path, os.fstat(self._descriptor).st_size, expected)
        return part


def check_mapped(*arrays: NDArray[Any]) -> None:
    """Raise UnreadableFile if a file was cut short behind an array that is mapped from it."""
    for array in arrays:
        if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap):
            continue
        expected = int(array.offset) + array.nbytes
        try:
            size = array.base.size()
        except OSError as error:
            raise UnreadableFile.because_of(str(array.filename), error) from None
        if size < expected:
            raise _cut_short(str(array.filename), size, expected)


def _cut_short(path: str | Path, size: int, expected: int) -> UnreadableFile:
    return UnreadableFile(path, f"has {size:,} bytes left of the {expected:,} it had when opened")
