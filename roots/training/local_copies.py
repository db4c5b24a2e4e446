"""Copies of each rank's own state in the memory, or on a disk, of its machine.

A start on machines that still live reads these, and not the shared file system. Each rank has
checkpoints of its own below `checkpoint.local_directory`, in the same format, of all that it needs
to go on; nobody else reads them. One counts only if every rank has it whole, on the layout of this
run, and it is newer than the newest shared checkpoint.

Copies belong to a course of the run: they lie under a name that is drawn at its first start and
kept beside the shared checkpoints, and those of steps that a start gives up are removed.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from roots.checkpoint import folders, manifest, retention
from roots.checkpoint.parts import file_name
from roots.checkpoint.staging import entries_of, staged_bytes
from roots.checkpoint.tensor_file import copy_entries
from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.errors import RootsError
from roots.files import free_bytes, write_atomically
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import anywhere, broadcast_object, largest
from roots.training.engine.step import Engine
from roots.training.resume_point import ResumePoint

_logger = get_logger(__name__)

NAME_FILE = "local_copies"
# The newest may be there on some ranks only: then the one before it counts.
_KEPT = 2
_NONE = -1


class LocalCopies:
    """The copies of this rank. Every method is called by all ranks at the same steps."""

    def __init__(
        self, config: RunConfig, mesh: Mesh, shared: Path, layout: manifest.Layout
    ) -> None:
        """`shared`: the folder of the shared checkpoints."""
        self._config = config
        self._mesh = mesh
        self._shared = shared
        self._layout = layout
        self._thread: threading.Thread | None = None
        self._off = config.checkpoint.local_every_steps == 0
        self._root: Path | None = None

    def open(self) -> None:
        """Find the place of this run's copies, and tidy it; call before anything else."""
        if self._off:
            return
        name = broadcast_object(self._mesh.world, self._name() if self._mesh.rank == 0 else "")
        base = Path(self._config.checkpoint.local_directory)
        self._root = base / f"roots-{name}" / f"rank_{self._mesh.rank:05d}"
        # What a rank was killed in takes as much memory as a whole one.
        folders.discard_unfinished(self._root)

    def newest(self, newer_than: int) -> Path | None:
        """This rank's copy of the newest step that all ranks have whole; None without one."""
        if self._root is None:
            return None
        whole = {folders.step_of(path): path for path in self._whole()}
        bound = max(whole, default=_NONE)
        while True:
            # What the rank that is furthest behind has: no later step is there on every rank.
            mine = max((step for step in whole if step <= bound), default=_NONE)
            bound = -largest(self._mesh.world, -mine)
            if bound <= newer_than:
                return None
            if not anywhere(self._mesh.world, bound not in whole):
                return whole[bound]
            bound -= 1

    def holds(self, folder: Path) -> bool:
        """Whether `folder` is one of these copies."""
        return self._root is not None and folder.parent == self._root

    def start(self, engine: Engine, point: ResumePoint) -> bool:
        """Copy this rank's state; what is left to do is done beside training.

        Nothing happens while the copy before is unfinished. What fails is a warning, and the last.
        Returns whether a copy was made.
        """
        if self._root is None or self._off or (self._thread and self._thread.is_alive()):
            return False
        folder = folders.partial_folder(self._root, point.step)
        try:
            needed, free = staged_bytes(engine.kept_pieces()), free_bytes(self._root)
            if needed > free:
                self._give_up(f"it needs {needed:,} bytes, and {free:,} are free")
                return False
            folders.discard(folder)
            (folder / manifest.WEIGHTS_FOLDER).mkdir(parents=True)
            names = []
            for number, group in enumerate(engine.kept_groups()):
                names.append(f"{manifest.WEIGHTS_FOLDER}/{file_name(self._mesh.rank, number)}")
                copy_entries(folder / names[-1], list(entries_of(group)))
        except OSError as error:
            folders.discard(folder)
            self._give_up(error.strerror or str(error))
            return False
        sealed = (folder, point, engine.state().to_json(), names)
        self._thread = threading.Thread(target=self._seal, args=sealed, daemon=True)
        self._thread.start()
        return True

    def give_up_after(self, step: int) -> None:
        """Remove copies of steps after `step`: the run takes another course from there."""
        if self._root is None:
            return
        for path in folders.finished_checkpoints(self._root):
            if folders.step_of(path) > step:
                folders.remove(path)

    def close(self, *, done: bool) -> None:
        """Wait for the copy in the making; remove all where the run is `done`."""
        if self._thread is not None:
            self._thread.join()
        if done and self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            with suppress(OSError):
                self._root.parent.rmdir()

    def _whole(self) -> list[Path]:
        """The copies of this rank that this run can go on from."""
        assert self._root is not None
        found = []
        for path in folders.finished_checkpoints(self._root):
            try:
                sealed = manifest.read_manifest(path)
                config = folders.read_config(path)
            except RootsError:
                continue
            fits = sealed.layout == self._layout and config.parallel == self._config.parallel
            if fits and not manifest.damage_of(path, sealed, sealed.files):
                found.append(path)
        return found

    @cached_property
    def _config_text(self) -> str:
        """The same in every copy."""
        return dump_config(self._config)

    def _seal(
        self, folder: Path, point: ResumePoint, state: dict[str, object], names: list[str]
    ) -> None:
        try:
            write_atomically(folder / manifest.CONFIG_NAME, self._config_text)
            files = manifest.describe_files(folder, [manifest.CONFIG_NAME, *names])
            manifest.write_manifest(folder, point.manifest(self._layout, files, state))
            assert self._root is not None
            final = self._root / folders.step_name(point.step)
            if final.exists():
                folders.remove(final)
            folders.publish_folder(folder)
            retention.apply(self._root, retention.Keep(last=_KEPT))
        except OSError as error:
            folders.discard(folder)
            self._give_up(error.strerror or str(error))

    def _give_up(self, reason: str) -> None:
        self._off = True
        _logger.warning(
            "no more local copies on rank %d, in %s: %s", self._mesh.rank, self._root, reason
        )

    def _name(self) -> str:
        path = self._shared / NAME_FILE
        if not path.is_file():
            self._shared.mkdir(parents=True, exist_ok=True)
            write_atomically(path, secrets.token_hex(8))
        return path.read_text(encoding="utf-8").strip()
