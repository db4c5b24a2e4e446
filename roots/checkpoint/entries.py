"""The checkpoints that lie in a folder or at a URL, and what is known without reading weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from roots.checkpoint import folders
from roots.checkpoint.locating import checkpoints_at
from roots.checkpoint.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    DamagedError,
    Manifest,
    damage_of,
    read_manifest,
)
from roots.checkpoint.stored import StoredCheckpoints, unreachable
from roots.errors import RootsError, problem
from roots.files import is_url


@dataclass(frozen=True)
class Entry:
    """A checkpoint.

    where: path or URL; manifest: None if it cannot be read; damage: a line for each file that is
    missing or has another length, while nobody has looked at contents; aside: whether it was set
    aside, so that no run goes on from it; file_time: of the manifest's file, which a copy changes.
    """

    where: str
    manifest: Manifest | None
    damage: tuple[str, ...]
    aside: bool = False
    file_time: datetime | None = None

    @property
    def saved(self) -> datetime | None:
        """When it was saved, as its manifest says; None if that does not."""
        seconds = None if self.manifest is None else self.manifest.saved
        return None if seconds is None else datetime.fromtimestamp(seconds).astimezone()

    @property
    def name(self) -> str:
        """The last part of its path or URL."""
        return self.where.rpartition("/")[2]

    @property
    def state(self) -> str:
        """`complete` if every file is there in its length, `damaged`, or `set aside`."""
        if self.aside:
            return "set aside"
        return "damaged" if self.damage else "complete"

    @property
    def bytes(self) -> int | None:
        """Of all files together, as they were written."""
        return None if self.manifest is None else self.manifest.total_bytes

    def record(self) -> dict[str, Any]:
        """All of it for JSON."""
        found = self.manifest
        return {
            "path": self.where,
            "step": None if found is None else found.step,
            "saved": _iso(self.saved),
            "file_time": _iso(self.file_time),
            "bytes": self.bytes,
            "layout": None if found is None else asdict(found.layout),
            "precision": None if found is None else found.layout.precision,
            "evaluation": None if found is None else found.evaluation,
            "resumable": found is not None and found.has_training_state,
            "state": self.state,
            "damage": list(self.damage),
        }


def root_of(given: str) -> Path:
    """The folder of checkpoints meant by itself or by a run's folder.

    Raises RootsError if it is one checkpoint, holds none, or is a URL.
    """
    if is_url(given):
        rule, fix = "is a URL, and what lies there follows its run", "give the folder of the run"
        raise RootsError(problem("checkpoint", given, rule, fix))
    found = folders.resolve_checkpoint(given)
    if found == Path(given):
        fix = "give the folder of the run, to choose among its checkpoints"
        raise RootsError(problem("checkpoint", given, "is one checkpoint", fix))
    return found.parent


def checkpoints_of(given: str) -> list[Path]:
    """The checkpoint `given`, or all of a run, oldest first. Raises RootsError if there is none."""
    for root in (Path(given), Path(given) / folders.CHECKPOINTS_FOLDER):
        if found := folders.saved_checkpoints(root):
            return found
    return [folders.resolve_checkpoint(given)]


def entries_of(given: str) -> list[Entry]:
    """As `checkpoints_of`, and those set aside after all others; or those at a URL."""
    if is_url(given):
        stored, names = checkpoints_at(given, lost=True)
        return [stored_entry(stored, name) for name in names]
    paths = checkpoints_of(given)
    aside = [] if paths == [Path(given)] else folders.kept_aside(paths[0].parent)
    return [*_entries(paths), *_entries(aside, aside=True)]


def _entries(paths: Iterable[Path], *, aside: bool = False) -> Iterator[Entry]:
    for path in paths:
        entry = entry_of(path, aside=aside)
        if is_there(path):
            yield entry


def is_there(path: Path) -> bool:
    """Whether a checkpoint is there still: a run that trains removes old ones meanwhile.

    They lose their name first, so what was seen of one that is there is not of half a removal.
    """
    return path.is_dir()


def entry_of(path: Path, *, aside: bool = False) -> Entry:
    """What is known of a checkpoint."""
    written = None
    try:
        with suppress(FileNotFoundError):
            changed = (path / MANIFEST_NAME).stat().st_mtime
            written = datetime.fromtimestamp(changed).astimezone()
        found = read_manifest(path)
    except RootsError as error:
        return Entry(str(path), None, error.lines, aside, written)
    damage = damage_of(path, found, sorted(found.files), contents=False)
    return Entry(str(path), found, tuple(damage), aside, written)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def stored_entry(stored: StoredCheckpoints, name: str) -> Entry:
    """What is known of a checkpoint at a URL. Raises RootsError if that cannot be read."""
    where = stored.where(name)
    try:
        found = stored.manifest(name)
        return Entry(where, found, tuple(stored.damage(name, found)))
    except DamagedError as error:
        return Entry(where, None, error.lines)
    except OSError as error:
        raise unreachable("checkpoint", where, error) from None


@contextmanager
def opened_entry(given: str) -> Iterator[tuple[Path, Entry]]:
    """The checkpoint `given`, or the newest of a run: a folder with its config, and what is known.

    At a URL the folder lasts for the block, and has of the weights their names and shapes alone.
    Raises RootsError if there is none, or it cannot be read.
    """
    if not is_url(given):
        folder = folders.resolve_checkpoint(given)
        yield folder, entry_of(folder)
        return
    stored, names = checkpoints_at(given)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            stored.fetch(names[-1], folder, lambda _: [CONFIG_NAME])
            stored.fetch_headers(names[-1], folder)
        except OSError as error:
            raise unreachable("checkpoint", given, error) from None
        yield folder, stored_entry(stored, names[-1])
