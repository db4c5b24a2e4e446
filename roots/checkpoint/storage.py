"""Files by name at a place that need not be a disk: a path, or a URL of an object store.

Nothing here knows what a checkpoint is (stored.py does). What such places lack is a rename that is
whole or not at all: one file appears whole, several together do not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from roots.errors import RootsError, problem
from roots.files import is_url, publish

T = TypeVar("T")
# What fsspec takes for a pattern where it removes.
_PATTERN = frozenset("*?[")
_BLOCK_BYTES = 16 << 20
# Seconds to wait before each further try.
_WAITS = (1.0, 5.0, 25.0)
# Another try would not help.
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


class Storage(Protocol):
    """Files below one place, `where`, by names as `step_00000100/weights/rank_00000.safetensors`.

    Every method raises OSError, with FileNotFoundError for what is not there.
    """

    where: str

    def folders(self) -> list[str]:
        """Names of the folders right below; none where nothing lies there."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below `folder`, by its name in there; none where nothing lies."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def put(self, source: Path, name: str) -> None:
        """Write the file `source` as `name`, over what lies there."""

    def get(self, name: str, target: Path, num_bytes: int | None = None) -> None:
        """Write the file `name`, or its first bytes, to `target`, which is not flushed."""

    def move(self, name: str, to: str) -> None:
        """Give a folder another name; not at once in an object store, which copies it."""

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens if there is none."""


def join(where: str, *names: str) -> str:
    """The path or URL of a name below `where`; empty names stand for the place itself."""
    return "/".join((where.rstrip("/"), *filter(None, names)))


def storage_at(place: str | Path, subject: str = "checkpoint") -> Storage:
    """The storage at a path or URL, which tries again where a try may help.

    Raises RootsError, about `subject`, if a package that a URL needs is not installed.
    """
    if is_url(place):
        return Retrying(FsspecStorage(str(place), subject))
    return Retrying(LocalStorage(Path(place)))


class LocalStorage:
    """A folder of a local or shared file system."""

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._root = root

    def folders(self) -> list[str]:
        """See Storage."""
        with suppress(FileNotFoundError):
            return [path.name for path in self._root.iterdir() if path.is_dir()]
        return []

    def sizes(self, folder: str) -> dict[str, int]:
        """See Storage."""
        top = self._root / folder
        return {
            str(path.relative_to(top)): path.stat().st_size
            for path in top.rglob("*")
            if path.is_file()
        }

    def exists(self, name: str) -> bool:
        """See Storage."""
        return (self._root / name).is_file()

    def put(self, source: Path, name: str) -> None:
        """See Storage."""
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.partial")
        shutil.copyfile(source, temporary)
        publish(temporary, target)

    def get(self, name: str, target: Path, num_bytes: int | None = None) -> None:
        """See Storage."""
        if num_bytes is None:
            shutil.copyfile(self._root / name, target)
            return
        with (self._root / name).open("rb") as file:
            target.write_bytes(file.read(num_bytes))

    def move(self, name: str, to: str) -> None:
        """See Storage."""
        (self._root / name).rename(self._root / to)

    def remove(self, name: str) -> None:
        """See Storage."""
        path = self._root / name
        with suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


class FsspecStorage:
    """Whatever fsspec has a file system for: s3://, gs://, abfs://, sftp://, file://, memory://."""

    def __init__(self, url: str, subject: str) -> None:
        """Connects to nothing yet. Raises RootsError if a package is missing, about `subject`."""
        self.where = url.rstrip("/")
        self._files, root = _file_system(url, subject)
        self._root = str(root).rstrip("/")

    def folders(self) -> list[str]:
        """See Storage."""
        with _os_errors(self.where), suppress(FileNotFoundError):
            self._files.invalidate_cache()
            found = self._files.ls(self._root, detail=True)
            return [
                str(each["name"]).rstrip("/").rpartition("/")[2]
                for each in found
                if each["type"] == "directory"
            ]
        return []

    def sizes(self, folder: str) -> dict[str, int]:
        """See Storage."""
        top = self._path(folder)
        with _os_errors(self.where), suppress(FileNotFoundError):
            self._files.invalidate_cache()
            found = self._files.find(top, detail=True)
            return {path[len(top) :].lstrip("/"): int(of["size"]) for path, of in found.items()}
        return {}

    def exists(self, name: str) -> bool:
        """See Storage."""
        with _os_errors(join(self.where, name)):
            self._files.invalidate_cache()
            return bool(self._files.isfile(self._path(name)))

    def put(self, source: Path, name: str) -> None:
        """See Storage."""
        target = self._path(name)
        with _os_errors(join(self.where, name)):
            # Object stores have no folders to be made.
            if not self._files.async_impl:
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(source), target)

    def get(self, name: str, target: Path, num_bytes: int | None = None) -> None:
        """See Storage."""
        with _os_errors(join(self.where, name)):
            if num_bytes is None:
                self._files.get_file(self._path(name), str(target))
            else:
                target.write_bytes(self._files.cat_file(self._path(name), 0, num_bytes))

    def move(self, name: str, to: str) -> None:
        """See Storage."""
        with _os_errors(join(self.where, name)):
            self._files.mv(self._path(name), self._path(to), recursive=True)

    def remove(self, name: str) -> None:
        """See Storage."""
        with _os_errors(join(self.where, name)), suppress(FileNotFoundError):
            self._files.invalidate_cache()
            self._files.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return join(self._root, name)


class Retrying:
    """Another storage, each of whose operations is tried again some times, ever later."""

    def __init__(self, storage: Storage, waits: Sequence[float] = _WAITS) -> None:
        self.where = storage.where
        self._storage = storage
        self._waits = waits

    def folders(self) -> list[str]:
        """See Storage."""
        return self._tried(self._storage.folders)

    def sizes(self, folder: str) -> dict[str, int]:
        """See Storage."""
        return self._tried(lambda: self._storage.sizes(folder))

    def exists(self, name: str) -> bool:
        """See Storage."""
        return self._tried(lambda: self._storage.exists(name))

    def put(self, source: Path, name: str) -> None:
        """See Storage."""
        self._tried(lambda: self._storage.put(source, name))

    def get(self, name: str, target: Path, num_bytes: int | None = None) -> None:
        """See Storage."""
        self._tried(lambda: self._storage.get(name, target, num_bytes))

    def move(self, name: str, to: str) -> None:
        """See Storage."""
        self._storage.move(name, to)

    def remove(self, name: str) -> None:
        """See Storage."""
        self._tried(lambda: self._storage.remove(name))

    def _tried(self, action: Callable[[], T]) -> T:
        for seconds in self._waits:
            try:
                return action()
            except _FINAL:
                raise
            except OSError:
                time.sleep(seconds)
        return action()


def _file_system(url: str, subject: str) -> tuple[Any, Any]:
    """fsspec's file system of a URL, and the path of the URL in it."""
    if _PATTERN & set(url):
        rule = "has characters that stand for a pattern of names (* ? [)"
        raise RootsError(problem(subject, url, rule, "give a URL without them"))
    fix = "run `pip install .[objects]`, or install that package alone"
    try:
        # Not needed by whoever has no URL.
        from fsspec.core import url_to_fs
    except ImportError:
        rule = "is a URL, which needs the package fsspec"
        raise RootsError(problem(subject, url, rule, fix)) from None
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        rule = f"needs a package that is not installed ({error})"
        raise RootsError(problem(subject, url, rule, fix)) from None
    except ValueError as error:
        rule = f"is no URL that fsspec knows ({error})"
        fix = "give a path, or a URL such as s3://bucket/folder"
        raise RootsError(problem(subject, url, rule, fix)) from None
    return files, root


@contextmanager
def _os_errors(where: str) -> Iterator[None]:
    """Within it whatever a file system raises is an OSError: each package has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{where}: {type(error).__name__}: {error}") from error
