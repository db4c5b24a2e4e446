"""Places for copies of checkpoints, of each kind: a path, fsspec's local files and its memory."""

from __future__ import annotations

from pathlib import Path

from roots.checkpoint.storage import Storage

KINDS = ("path", "file", "memory")


def place_of(kind: str, tmp_path: Path) -> str:
    """An empty place of its own."""
    path = tmp_path / "place"
    return {"path": str(path), "file": f"file://{path}", "memory": f"memory:/{path}"}[kind]


class Watched:
    """Another storage, that notes what is done there, and fails when it is told to.

    fails: the number of the `put` that fails, from 1 on, and every one after it.
    """

    def __init__(self, storage: Storage) -> None:
        self.where = storage.where
        self.done: list[tuple[str, str]] = []
        self.fails: int | None = None
        self._storage = storage

    def folders(self) -> list[str]:
        return self._storage.folders()

    def sizes(self, folder: str) -> dict[str, int]:
        return self._storage.sizes(folder)

    def exists(self, name: str) -> bool:
        return self._storage.exists(name)

    def put(self, source: Path, name: str) -> None:
        self.done.append(("put", name))
        if self.fails is not None and len(self.names("put")) >= self.fails:
            raise ConnectionError(f"{self.where}: no route")
        self._storage.put(source, name)

    def get(self, name: str, target: Path, num_bytes: int | None = None) -> None:
        self.done.append(("get", name))
        self._storage.get(name, target, num_bytes)

    def move(self, name: str, to: str) -> None:
        self.done.append(("move", name))
        self._storage.move(name, to)

    def remove(self, name: str) -> None:
        self.done.append(("remove", name))
        self._storage.remove(name)

    def names(self, operation: str) -> list[str]:
        """What the operation was done with, in order."""
        return [name for done, name in self.done if done == operation]
