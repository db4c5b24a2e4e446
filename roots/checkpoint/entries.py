"""The checkpoints that lie in a run's folder, and what is known of each without reading weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from roots.checkpoint import folders
from roots.checkpoint.manifest import MANIFEST_NAME, Manifest, damage_of, read_manifest
from roots.errors import RootsError, problem


@dataclass(frozen=True)
class Entry:
    """A checkpoint.

    saved: when its manifest was written; manifest: None if that cannot be read; damage: a line for
    each file that is missing or has another length, while nobody has looked at contents; aside:
    whether it was set aside, so that no run goes on from it.
    """

    path: Path
    saved: datetime
    manifest: Manifest | None
    damage: tuple[str, ...]
    aside: bool = False

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
            "path": str(self.path),
            "step": None if found is None else found.step,
            "saved": self.saved.isoformat(timespec="seconds"),
            "bytes": self.bytes,
            "layout": None if found is None else asdict(found.layout),
            "precision": None if found is None else found.layout.precision,
            "evaluation": None if found is None else found.evaluation,
            "resumable": found is not None and found.has_training_state,
            "state": self.state,
            "damage": list(self.damage),
        }


def root_of(given: Path) -> Path:
    """The folder of checkpoints meant by itself or by a run's folder.

    Raises RootsError if it is one checkpoint, or holds none.
    """
    found = folders.resolve_checkpoint(given)
    if found == given:
        fix = "give the folder of the run, to choose among its checkpoints"
        raise RootsError(problem("checkpoint", str(given), "is one checkpoint", fix))
    return found.parent


def checkpoints_of(given: Path) -> list[Path]:
    """The checkpoint `given`, or all of a run, oldest first. Raises RootsError if there is none."""
    found = folders.resolve_checkpoint(given)
    return [given] if found == given else folders.finished_checkpoints(found.parent)


def entries_of(given: Path) -> list[Entry]:
    """As `checkpoints_of`, and those set aside after all others."""
    paths = checkpoints_of(given)
    aside = [] if paths == [given] else folders.kept_aside(paths[0].parent)
    return [*_entries(paths), *_entries(aside, aside=True)]


def _entries(paths: Iterable[Path], *, aside: bool = False) -> Iterator[Entry]:
    for path in paths:
        with suppress(FileNotFoundError):
            entry = entry_of(path, aside=aside)
            if is_there(path):
                yield entry


def is_there(path: Path) -> bool:
    """Whether a checkpoint has its manifest still: a run that trains removes old ones meanwhile.

    The manifest goes first, so what was seen of one that is there is not of half a removal.
    """
    return (path / MANIFEST_NAME).is_file()


def entry_of(path: Path, *, aside: bool = False) -> Entry:
    """What is known of a checkpoint."""
    saved = datetime.fromtimestamp((path / MANIFEST_NAME).stat().st_mtime).astimezone()
    try:
        found = read_manifest(path)
    except RootsError as error:
        return Entry(path, saved, None, error.lines, aside)
    damage = damage_of(path, found, sorted(found.files), contents=False)
    return Entry(path, saved, found, tuple(damage), aside)
