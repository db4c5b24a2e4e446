"""Copies of a run's checkpoints at another place, made beside training, and fetched from there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from roots.checkpoint import folders, retention
from roots.checkpoint.manifest import MANIFEST_NAME, DamagedError
from roots.checkpoint.stored import StoredCheckpoints, unreachable
from roots.config.training import BY_LOSS
from roots.errors import RootsError, problem
from roots.log import get_logger

_logger = get_logger(__name__)
# At the end of a run the other ranks wait in a collective, whose time is half an hour; after an
# error they have left, and the watchdog waits for nobody for long.
_LAST_WAIT_SECONDS = 1200.0
_WAIT_AFTER_ERROR_SECONDS = 20.0


class Mirror:
    """Holds what a run keeps of its checkpoints at `stored` as well; on global rank 0 alone.

    A context: the copy in the making is waited for at its end. What fails is a warning, one for
    each save, and is tried again after the next save, or when a run goes on.
    """

    def __init__(self, root: Path, stored: StoredCheckpoints, keep: retention.Keep) -> None:
        """`root`: RUN/checkpoints."""
        self.stored = stored
        self._root = root
        self._keep = keep
        self._known: dict[str, bytes] = {}  # manifests that are known to be there
        self._held: Path | None = None
        self._woken = threading.Event()
        self._awaited = False  # since the last try
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> tuple[Path, ...]:
        """What is being copied, and must not be removed meanwhile."""
        held = self._held
        return () if held is None else (held,)

    def wake(self) -> None:
        """Begin to follow the run: it has a new checkpoint, or goes on from one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="roots-mirror", daemon=True)
            self._thread.start()
        self._awaited = True
        self._woken.set()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the copies of what was saved; a bug, or the keyboard, does not wait."""
        if self._thread is None or not (kind is None or issubclass(kind, RootsError)):
            return
        self._closing = True
        self._woken.set()
        self._thread.join(_LAST_WAIT_SECONDS if kind is None else _WAIT_AFTER_ERROR_SECONDS)
        if self._thread.is_alive():
            where = self.stored.storage.where
            _logger.warning("not all checkpoints are at %s yet; the next start goes on", where)
            return
        retention.apply(self._root, self._keep)

    def follow(self) -> None:
        """Copy what the run keeps and is not there, the newest first; then remove what it would.

        What is there of later steps, or of the same with other content, is of a course that the run
        has left: it is set aside. Raises OSError and RootsError.
        """
        surplus = retention.surplus(self._root, self._keep)
        saved = folders.finished_checkpoints(self._root)
        if not saved:
            return
        for name in self._left_behind(saved):
            aside = self.stored.set_aside(name)
            _logger.warning("kept a checkpoint of another course at %s", self.stored.where(aside))
        there = set(self.stored.names())
        for path in reversed(saved):
            if path not in surplus and path.name not in there:
                self._copy(path)
        self._remove_surplus()

    def fetch_newest(self) -> tuple[Path | None, list[str]]:
        """Fetch the newest good checkpoint into RUN/checkpoints, as a partial folder; None without.

        Returns also the lines on those that are damaged. Raises RootsError if the place cannot be
        read.
        """
        lines: list[str] = []
        try:
            names = {*self.stored.names(), *self.stored.lost()}
            for name in sorted(names, key=folders.step_named, reverse=True):
                partial = folders.partial_folder(self._root, folders.step_named(name))
                try:
                    self.stored.fetch(name, partial, lambda found: found.resumed_files)
                except DamagedError as error:
                    folders.discard(partial)
                    lines += error.lines
                    continue
                _logger.info("fetched %s", self.stored.where(name))
                return partial, lines
        except OSError as error:
            raise unreachable("checkpoint.mirror", self.stored.storage.where, error) from None
        return None, lines

    def _run(self) -> None:
        told = ""
        while True:
            self._woken.wait()
            self._woken.clear()
            closing, awaited, self._awaited = self._closing, self._awaited, False
            try:
                self.follow()
            except (OSError, RootsError) as error:
                rule = f"not all checkpoints are copied there ({_reason(error)})"
                fix = "tried again after the next save, or when the run goes on"
                line = problem("checkpoint.mirror", self.stored.storage.where, rule, fix)
                # The last try of a run, after which nothing is new, says nothing new either.
                if awaited or line != told:
                    _logger.warning("%s", line)
                told = line
            if closing:
                return

    def _left_behind(self, saved: list[Path]) -> Iterator[str]:
        """Names there of later steps than the newest here, or with another manifest than here."""
        here = {path.name: path for path in saved}
        for name in self.stored.names():
            if name not in here:
                if folders.step_named(name) > folders.step_of(saved[-1]):
                    yield name
                continue
            try:
                text = (here[name] / MANIFEST_NAME).read_bytes()
            except FileNotFoundError:
                # The run has removed it meanwhile.
                continue
            if self._known.get(name) != text:
                if self.stored.manifest_text(name) != text:
                    yield name
                    continue
                self._known[name] = text

    def _copy(self, path: Path) -> None:
        self._held = path
        try:
            text = (path / MANIFEST_NAME).read_bytes()
            self.stored.put(path)
        except (FileNotFoundError, DamagedError):
            if (path / MANIFEST_NAME).exists():
                raise
            # The run has removed it meanwhile.
            self.stored.remove(path.name)
            return
        finally:
            self._held = None
        self._known[path.name] = text
        _logger.info("copied %s to %s", path.name, self.stored.storage.where)

    def _remove_surplus(self) -> None:
        """Remove there what the run's rule does not keep, unless the newest there is torn."""
        names = {folders.step_named(name): name for name in self.stored.names()}
        by = self._judged_by(names)
        losses = {step: self._cost(name, by) for step, name in names.items()}
        kept = retention.steps_to_keep(losses, self._keep)
        doomed = [name for step, name in names.items() if step not in kept]
        if not doomed:
            return
        newest = names[max(names)]
        if lines := self.stored.damage(newest, self.stored.manifest(newest)):
            raise RootsError(*lines[:1])
        for name in doomed:
            self.stored.remove(name)
            self._known.pop(name, None)

    def _judged_by(self, names: Mapping[int, str]) -> str:
        """What decides which are the best, as the newest one says."""
        if not self._keep.best or not names:
            return BY_LOSS
        try:
            return self.stored.manifest(names[max(names)]).best[0]
        except DamagedError:
            return BY_LOSS

    def _cost(self, name: str, by: str) -> float | None:
        """How bad one is by that, where it decides."""
        if not self._keep.best:
            return None
        try:
            return self.stored.manifest(name).cost(by)
        except DamagedError:
            return None


def _reason(error: OSError | RootsError) -> str:
    """Why a copy failed, in one line."""
    if isinstance(error, RootsError):
        return error.lines[0]
    if error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
