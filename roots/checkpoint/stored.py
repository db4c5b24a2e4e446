"""Finished checkpoints at a storage: put and fetched by files, whole or absent without a rename.

The manifest is written last and removed first, so what has none is no checkpoint, as on a disk.
Beside one that is being written or removed lies a file of its name and `.partial`, from before the
first change until after the last: without both, a checkpoint has lost its manifest, and is damaged.
What is fetched is compared with it file by file; its names cannot lead out of the checkpoint.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from roots.checkpoint import folders
from roots.checkpoint.manifest import (
    MANIFEST_NAME,
    DamagedError,
    Manifest,
    damaged_file,
    difference,
    no_manifest,
    parse_manifest,
    read_manifest,
)
from roots.checkpoint.storage import Storage, join
from roots.errors import RootsError, problem
from roots.files import publish, removed_on_error, write_atomically
from roots.log import Report, silent

T = TypeVar("T")
_TRANSFERS = 4
_HEADER_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 1 << 30


class StoredCheckpoints:
    """The checkpoints right below a storage, by name; the name "" is the storage itself.

    Every method raises OSError where the storage cannot be reached.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def where(self, name: str) -> str:
        """The path or URL of one."""
        return join(self.storage.where, name)

    def names(self) -> list[str]:
        """Names of the finished ones, oldest first."""
        return [name for name in self._steps() if self.is_finished(name)]

    def lost(self) -> list[str]:
        """Names of those that have lost their manifest, oldest first; nothing is to load them."""
        return [name for name in self._steps() if self._has_lost_manifest(name)]

    def _steps(self) -> list[str]:
        steps = filter(folders.is_step_name, self.storage.folders())
        return sorted(steps, key=folders.step_named)

    def _has_lost_manifest(self, name: str) -> bool:
        # Looked at before and after: a copy may end meanwhile, or a removal begin.
        if self._is_changing(name) or self.is_finished(name) or self._is_changing(name):
            return False
        return bool(self.storage.sizes(name))

    def _is_changing(self, name: str) -> bool:
        return self.storage.exists(f"{name}{folders.PARTIAL_SUFFIX}")

    def is_finished(self, name: str) -> bool:
        """Whether there is a finished checkpoint of that name."""
        return self.storage.exists(_file(name, MANIFEST_NAME))

    def manifest(self, name: str) -> Manifest:
        """The manifest of one. Raises DamagedError and RootsError as for one on a disk."""
        return parse_manifest(self.manifest_text(name), self.where(name))

    def manifest_text(self, name: str) -> bytes:
        """The manifest of one as it was written. Raises DamagedError if there is none."""
        with TemporaryDirectory() as folder:
            target = Path(folder) / MANIFEST_NAME
            try:
                self.storage.get(_file(name, MANIFEST_NAME), target)
            except FileNotFoundError:
                raise DamagedError(no_manifest(self.where(name))) from None
            return target.read_bytes()

    def put(self, folder: Path) -> None:
        """Copy the finished checkpoint `folder`, over what lies there under its name."""
        name, found = folder.name, read_manifest(folder)
        with self._changing(name):
            self._remove(name)
            _all(lambda file: self.storage.put(folder / file, _file(name, file)), found.files)
            if lines := self.damage(name, found):
                raise OSError(lines[0])
            self.storage.put(folder / MANIFEST_NAME, _file(name, MANIFEST_NAME))

    def fetch(
        self, name: str, folder: Path, wanted: Callable[[Manifest], Iterable[str]]
    ) -> Manifest:
        """Bring files of one into `folder`, those that are not there already, the manifest last.

        Raises RootsError with a line for each file that is not the one that was saved; nothing is
        left of it then.
        """
        text = self.manifest_text(name)
        found = parse_manifest(text, self.where(name))
        folder.mkdir(parents=True, exist_ok=True)
        parts = _all(lambda file: self._fetch_file(name, file, folder, found), wanted(found))
        if lines := [line for line in parts if line is not None]:
            raise DamagedError(*lines)
        write_atomically(folder / MANIFEST_NAME, text.decode("utf-8"))
        return found

    def _fetch_file(self, name: str, file: str, folder: Path, found: Manifest) -> str | None:
        target = folder / file
        if difference(target, found.files[file], contents=False) is None:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
        with removed_on_error(temporary):
            rule = self._get(name, file, temporary, found)
            if rule is None:
                publish(temporary, target)
                return None
        temporary.unlink(missing_ok=True)
        return damaged_file(join(self.where(name), file), rule)

    def _get(self, name: str, file: str, target: Path, found: Manifest) -> str | None:
        """Copy one file; return what is wrong with it."""
        try:
            self.storage.get(_file(name, file), target)
        except FileNotFoundError:
            return "is missing"
        return difference(target, found.files[file])

    def fetch_headers(self, name: str, folder: Path) -> None:
        """Bring of each file of weights into `folder` what tells names and shapes, and no weights.

        The files have their length there, and holes.
        """
        found = self.manifest(name)
        for file in found.weights:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            self.storage.get(_file(name, file), target, _HEADER_LENGTH_BYTES)
            length = int.from_bytes(target.read_bytes(), "little")
            if length > _MOST_HEADER_BYTES:
                rule = f"begins with a header of {length} bytes"
                raise DamagedError(damaged_file(join(self.where(name), file), rule))
            self.storage.get(_file(name, file), target, _HEADER_LENGTH_BYTES + length)
            os.truncate(target, found.files[file].bytes)

    def damage(self, name: str, found: Manifest) -> list[str]:
        """A line for each file of one that is missing or has another length; none is read."""
        sizes = self.storage.sizes(name)
        lines = []
        for file, record in sorted(found.files.items()):
            size = sizes.get(file)
            if size is None:
                lines.append(damaged_file(join(self.where(name), file), "is missing"))
            elif size != record.bytes:
                rule = f"has {size} bytes where the manifest says {record.bytes}"
                lines.append(damaged_file(join(self.where(name), file), rule))
        return lines

    def all_damage(self, name: str, found: Manifest, report: Report = silent) -> list[str]:
        """As `damage`, reading every byte through a temporary file; reports bytes."""
        lines, done = [], 0
        with TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            for file, record in sorted(found.files.items()):
                rule = self._get(name, file, target, found)
                target.unlink(missing_ok=True)
                if rule is not None:
                    lines.append(damaged_file(join(self.where(name), file), rule))
                done += record.bytes
                report(done, found.total_bytes)
        return lines

    def remove(self, name: str) -> None:
        """Remove one, or what is left of it."""
        with self._changing(name):
            self._remove(name)

    def _remove(self, name: str) -> None:
        self.storage.remove(_file(name, MANIFEST_NAME))
        self.storage.remove(name)

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Within it, and after an error for good, what lies there is known to be no whole one."""
        mark = f"{name}{folders.PARTIAL_SUFFIX}"
        with TemporaryDirectory() as folder:
            text = Path(folder) / "mark"
            text.write_text(f"{name} is being copied here, or removed\n", encoding="utf-8")
            self.storage.put(text, mark)
        yield
        self.storage.remove(mark)

    def set_aside(self, name: str) -> str:
        """Rename one that nothing is to go on from any more; return its new name."""
        taken = set(self.storage.folders())
        number, target = 0, f"{folders.SUPERSEDED}_{name}"
        while target in taken:
            number += 1
            target = f"{folders.SUPERSEDED}_{name}_{number}"
        with self._changing(name):
            self.storage.move(name, target)
        return target


def unreachable(subject: str, where: str, error: OSError) -> RootsError:
    """The one line on a storage that cannot be read."""
    fix = "check the URL, the network and the credentials, then start again"
    return RootsError(problem(subject, where, f"cannot be read ({_reason(error)})", fix))


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _file(name: str, file: str) -> str:
    return f"{name}/{file}" if name else file


def _all(transfer: Callable[[str], T], files: Iterable[str]) -> list[T]:
    """Call `transfer` for each file, some at a time."""
    with ThreadPoolExecutor(_TRANSFERS) as transfers:
        return list(transfers.map(transfer, files))
