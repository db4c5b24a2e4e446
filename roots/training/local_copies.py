"""Copies of each rank's own state in the memory, or on a disk, of its machine.

A start on machines that still live reads these, and not the shared file system. Each rank has
checkpoints of its own below `checkpoint.local_directory`, in the same format, of all that it needs
to go on; nobody else reads them. One counts only if every rank has it whole, on the layout of this
run, of the course that the run is on (local_courses.py), and it is newer than the newest shared
checkpoint.

Copies that a start passes by, of another layout or not whole, stay until it has saved or copied
something itself.
"""

from __future__ import annotations

import os
import shutil
import threading
from functools import cached_property
from pathlib import Path

from roots.checkpoint import folders, manifest, retention
from roots.checkpoint.parts import file_name
from roots.checkpoint.staging import entries_of, staged_bytes
from roots.checkpoint.tensor_file import copy_entries
from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.errors import RootsError, problem
from roots.files import free_bytes, write_atomically
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, barrier, broadcast_object
from roots.parallel.shared_errors import together
from roots.training.engine.step import Engine
from roots.training.local_courses import MARK_FILE, Mark, new_name
from roots.training.resume_point import ResumePoint

_logger = get_logger(__name__)

_COURSE_NAME = "course"
_OTHER_LAYOUT = "another layout"
_NOT_WHOLE = "is not there"
# The newest may be there on some ranks only: then the one before it counts.
_KEPT = 2


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
        self._mark: Mark | None = None
        self._course, self._begin, self._rewinds = "", 0, 0
        self._marked = self._patient = self._told = False

    def open(self) -> None:
        """Find the place of this run's copies, and tidy it; call before anything else.

        Raises RootsError if checkpoint.local_directory cannot be used.
        """
        world = self._mesh.world
        mark = together(world, self._opened_mark)
        self._mark, self._course = broadcast_object(world, (mark, new_name()))
        if self._off or self._mark is None:
            return
        together(world, self._make_root)
        assert self._root is not None
        # What a rank was killed in takes as much memory as a whole one.
        folders.discard_unfinished(self._root)
        self._tell_left(all_gather_object(world, self._remove_left(self._root)))

    def newest(self, newer_than: int) -> Path | None:
        """This rank's copy of the newest step that all ranks have whole; None without one.

        Of those after `newer_than` that are passed by, rank 0 tells why.
        """
        if self._root is None:
            return None
        mine = {folders.step_of(path): path for path in folders.saved_checkpoints(self._root)}
        wrong = {step: self._wrong(path) for step, path in mine.items() if step > newer_than}
        ranks = all_gather_object(self._mesh.world, wrong)
        good = [step for step in wrong if all(each.get(step, _NOT_WHOLE) == "" for each in ranks)]
        newest = max(good, default=newer_than)
        passed = sorted({step for each in ranks for step in each if step > newest})
        self._patient = bool(passed)
        if passed and self._mesh.rank == 0:
            self._tell_passed(passed, ranks)
        return mine[newest] if good else None

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

    def go_on_from(self, step: int, *, other_course: bool) -> None:
        """The run goes on after `step`; `other_course`: not as it had, known on rank 0."""
        self._begin = step
        asked = self._config.checkpoint.resume != "auto"
        self._patient = self._patient and not other_course and not asked

    def after_step(self) -> None:
        """This start has made a step: with no copies to wait for it is on its course."""
        if not self._patient:
            self._leave_mark()

    def went_on(self) -> None:
        """This start has saved or copied something: what it has given up goes."""
        self._leave_mark()
        for folder in self._read_by_nobody():
            shutil.rmtree(folder, ignore_errors=True)
        if self._root is None:
            return
        for path in folders.saved_checkpoints(self._root):
            if folders.step_of(path) > self._begin and _course_of(path) != self._course:
                folders.remove(path)

    def go_back(self, step: int) -> None:
        """The run has gone back to `step`, and takes another course from there."""
        if self._thread is not None:
            self._thread.join()
        self._rewinds += 1
        self._course = f"{self._course.partition('.')[0]}.{self._rewinds}"
        self._begin, self._marked = step, False
        self.went_on()

    def close(self, *, done: bool) -> None:
        """Wait for the copy in the making; remove all of every start where the run is `done`."""
        if self._thread is not None:
            self._thread.join()
        if not done or self._mark is None:
            return
        # Until then another rank of this machine may still write.
        barrier(self._mesh.world)
        for folder in self._mark.folders():
            shutil.rmtree(folder, ignore_errors=True)

    def _read_by_nobody(self) -> list[Path]:
        """What starts in other places, or of more ranks, may have left on this machine."""
        places = [] if self._mark is None else self._mark.folders()
        if self._root is None:
            return places
        own = self._root.parent
        more = [
            each
            for each in own.glob(f"rank_{'[0-9]' * 5}")
            if _rank_of(each) >= self._mesh.world.size
        ]
        # One place may have two names.
        return [*more, *(each for each in places if each.resolve() != own.resolve())]

    def _opened_mark(self) -> Mark | None:
        """The run's mark with the place of this start; on rank 0."""
        if self._mesh.rank != 0:
            return None
        before = Mark.read(self._shared)
        if self._off:
            return before
        mark = (before or Mark(new_name())).at(self._place)
        if mark != before:
            self._shared.mkdir(parents=True, exist_ok=True)
            mark.write(self._shared)
        return mark

    @property
    def _place(self) -> str:
        return os.path.abspath(self._config.checkpoint.local_directory)

    def _make_root(self) -> None:
        assert self._mark is not None
        root = Path(self._place) / f"roots-{self._mark.name}" / f"rank_{self._mesh.rank:05d}"
        reason = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not os.access(root, os.W_OK | os.X_OK):
                reason = "it cannot be written"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason is not None:
            value = self._config.checkpoint.local_directory
            rule = f"must be a folder that every rank can write, or make, on its machine ({reason})"
            fix = "name one, or set checkpoint.local_every_steps=0 to go without local copies"
            raise RootsError(problem("checkpoint.local_directory", value, rule, fix))
        self._root = root

    def _remove_left(self, root: Path) -> list[int]:
        """Remove this rank's copies of a course that was given up; return their steps."""
        assert self._mark is not None
        left = []
        for path in folders.finished_checkpoints(root):
            step, course = folders.step_of(path), _course_of(path)
            # One without a name is damaged, and told of as such.
            if course is not None and not self._mark.leads_through(course, step):
                folders.remove(path)
                left.append(step)
        return left

    def _tell_left(self, ranks: list[list[int]]) -> None:
        left = sorted({step for each in ranks for step in each})
        if left and self._mesh.rank == 0:
            reason = "the run has since left the course that they are of"
            _logger.warning("removed the local copies of %s: %s", _steps(left), reason)

    def _tell_passed(self, steps: list[int], ranks: list[dict[int, str]]) -> None:
        """One line for those of another layout, and one for each step that is not whole."""
        foreign = [step for step in steps if any(each.get(step) == _OTHER_LAYOUT for each in ranks)]
        if foreign:
            words = f"of another layout than {self._layout.describe()}, and not used"
            rest = "they stay until this start has saved or copied"
            _logger.warning("newer local copies of %s are %s; %s", _steps(foreign), words, rest)
        for step in (each for each in steps if each not in foreign):
            reasons = {rank: each.get(step, _NOT_WHOLE) for rank, each in enumerate(ranks)}
            rank, reason = next((rank, reason) for rank, reason in reasons.items() if reason)
            words = f"that of rank {rank} {reason}"
            if others := sum(map(bool, reasons.values())) - 1:
                words += f" (and those of {others} more ranks are not good)"
            _logger.warning("the newer local copy of step %d is not used: %s", step, words)

    def _wrong(self, path: Path) -> str:
        """Why this run cannot go on from `path`; empty if it can."""
        try:
            sealed = manifest.read_manifest(path)
            config = folders.read_config(path)
        except RootsError as error:
            return f"is damaged: {error.lines[0]}"
        if sealed.layout != self._layout or config.parallel != self._config.parallel:
            return _OTHER_LAYOUT
        damage = manifest.damage_of(path, sealed, sealed.files)
        if not damage and _COURSE_NAME not in sealed.files:
            damage = [manifest.damaged_file(str(path / _COURSE_NAME), "is missing")]
        return f"is damaged: {damage[0]}" if damage else ""

    def _leave_mark(self) -> None:
        """Let the starts to come know the course of this one; rank 0 does."""
        if self._marked or self._mark is None:
            return
        self._mark = self._mark.gone_on(self._course, self._begin)
        try:
            if self._mesh.rank == 0:
                self._mark.write(self._shared)
            self._marked = True
        except OSError as error:
            # It is tried again after the next step.
            if not self._told:
                words = "without it the next start does not know local copies from now on"
                reason = error.strerror or error
                _logger.warning("%s: %s; %s", self._shared / MARK_FILE, reason, words)
            self._told = True

    @cached_property
    def _config_text(self) -> str:
        """The same in every copy."""
        return dump_config(self._config)

    def _seal(
        self, folder: Path, point: ResumePoint, state: dict[str, object], names: list[str]
    ) -> None:
        try:
            write_atomically(folder / manifest.CONFIG_NAME, self._config_text)
            write_atomically(folder / _COURSE_NAME, self._course)
            names = [manifest.CONFIG_NAME, _COURSE_NAME, *names]
            files = manifest.describe_files(folder, names)
            manifest.write_manifest(folder, point.manifest(self._layout, files, state))
            assert self._root is not None
            final = self._root / folders.step_name(point.step)
            if final.exists():
                folders.remove(final)
            folders.publish_folder(folder)
            self.went_on()
            retention.apply(self._root, retention.Keep(last=_KEPT))
        except OSError as error:
            folders.discard(folder)
            self._give_up(error.strerror or str(error))

    def _give_up(self, reason: str) -> None:
        self._off = True
        _logger.warning(
            "no more local copies on rank %d, in %s: %s", self._mesh.rank, self._root, reason
        )


def _rank_of(folder: Path) -> int:
    return int(folder.name.removeprefix("rank_"))


def _course_of(path: Path) -> str | None:
    """The course that a copy is of; None if it does not say."""
    try:
        return (path / _COURSE_NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _steps(steps: list[int]) -> str:
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"
