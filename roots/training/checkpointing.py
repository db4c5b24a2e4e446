"""The checkpoints of a run: which one it goes on from, taking it over, and saving new ones."""

from __future__ import annotations

import os
from pathlib import Path

from roots.checkpoint import folders, manifest
from roots.checkpoint.mirror import Mirror
from roots.checkpoint.store import TensorStore
from roots.config.run import RunConfig
from roots.device import release_free_memory
from roots.errors import RootsError, problem
from roots.files import remove_partials
from roots.lock import Ownership
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import broadcast_object
from roots.parallel.shared_errors import together
from roots.training.anomalies.guard import history_of_new_phase
from roots.training.course import changed_fields, leaves_the_course, rate_change
from roots.training.data_order import going_on
from roots.training.engine.checkpoint_state import EngineState
from roots.training.engine.deepspeed_json import effective_zero_stage
from roots.training.engine.step import Engine
from roots.training.local_copies import LocalCopies
from roots.training.resume_point import ResumePoint
from roots.training.resuming import Candidates
from roots.training.saving import Saved, Saver

_logger = get_logger(__name__)
_NONE = -1  # before every step


class Checkpointer:
    """Saves to and resumes from RUN/checkpoints. Every method is called by all ranks."""

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh,
        ownership: Ownership | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.config = config
        self.mesh = mesh
        self._ownership = ownership
        self.root = config.run_directory / folders.CHECKPOINTS_FOLDER
        self.layout = manifest.Layout(
            tensor=mesh.tensor.size,
            pipeline=mesh.pipeline.size,
            # What counts is over how many ranks ZeRO has partitioned the state.
            data=mesh.replica.size,
            zero_stage=effective_zero_stage(config),
            precision=config.training.precision,
            **_stages(config),
            expert=mesh.expert.size,
        )
        self._candidates = Candidates(config, mesh, self.root, self.layout, mirror)
        self.saver = Saver(config, mesh, self.root, self.layout)
        self.saver.mirror = mirror
        self.local = LocalCopies(config, mesh, self.root, self.layout)

    def find(self) -> Path | None:
        """The checkpoint to resume from, checked whole; None for a fresh start.

        Raises RootsError if it is damaged, of another model or layout, or if a fresh start is
        asked for where checkpoints of this run lie.
        """
        together(self.mesh.world, self._tidy)
        self.local.open()
        try:
            found = self._candidates.find()
        except RootsError as error:
            # Raised on all ranks alike. Copies in memory may be whole where no disk is.
            copy = self._newer_copy(None)
            if copy is None:
                raise
            for line in error.lines:
                _logger.warning("%s", line)
            return copy
        together(self.mesh.world, lambda: self._check_room(found))
        return self._newer_copy(found) or found

    def _newer_copy(self, found: Path | None) -> Path | None:
        """A copy on every rank's machine of a step after `found`, if this run may go on from it."""
        if self.config.checkpoint.resume != "auto":
            return None
        copy = self.local.newest(_NONE if found is None else manifest.read_manifest(found).step)
        if copy is not None:
            together(self.mesh.world, lambda: self._candidates.judge(copy))
        return copy

    def where_from(self, found: Path | None) -> ResumePoint:
        """Where a run that goes on from `found` reads its data, and which: what rank 0 has found.

        `load` knows the rest. Raises RootsError with every dataset that cannot be opened.
        """

        def look() -> ResumePoint | None:
            if self.mesh.rank != 0:
                return None
            data = self._candidates.data
            if found is None:
                return ResumePoint(0, 0, data=data)
            sealed = manifest.read_manifest(found)
            data = going_on(data, sealed)
            return ResumePoint(sealed.step, sealed.consumed_samples, data=data)

        world = self.mesh.world
        point: ResumePoint = broadcast_object(world, together(world, look))
        return point

    def find_weights(self) -> Path | None:
        """The checkpoint whose weights a fresh run starts from, checked whole; None without one.

        Raises RootsError if it is damaged or of another model.
        """
        return self._candidates.find_weights()

    def start(self, engine: Engine, point: ResumePoint, *, beside: bool = True) -> None:
        """Begin to save `point`, with no save in flight; see saving.py.

        Raises RootsError with exit code NOT_SAVED, on all ranks, where the disk does not take it.
        """
        together(self.mesh.world, lambda: self._make_room(point.step))
        self.saver.start(engine, point, beside=beside)

    def finish(self) -> Saved | None:
        """Wait for the save in flight on all ranks and seal it; None if there is none.

        Raises RootsError if it has failed: with exit code NOT_SAVED where the disk did not take
        it, with DIVERGED if weights or optimizer state are not finite.
        """
        if not self.saver.in_flight:
            return None
        self.saver.wait()
        saved = self.saver.conclude()
        self.local.went_on()
        return saved

    def save(self, engine: Engine, point: ResumePoint) -> Path:
        """Save `point` and wait until the checkpoint is whole; return its folder.

        Raises RootsError as `start` and `finish` do.
        """
        self.finish()
        self.start(engine, point, beside=False)
        saved = self.finish()
        assert saved is not None
        self.saver.settle()
        return saved.path

    def load(self, engine: Engine, folder: Path) -> ResumePoint:
        """Restore `engine` from `folder`, which `find` has returned.

        Checkpoints of this run that are newer than `folder` belong to a course that is given up:
        they are set aside, so that nothing resumes from them again.
        """
        found = manifest.read_manifest(folder)
        if found.in_deepspeed_files:
            engine.load_deepspeed_files(folder.parent, folder.name)
        else:
            # What building the engine has left over is not to lie beside what is read.
            release_free_memory()
            engine.restore(*together(self.mesh.world, lambda: _stored(folder, found)))
        own = self.local.holds(folder) or folder.parent.resolve() == self.root.resolve()
        aside = together(self.mesh.world, lambda: self._set_aside(found.step if own else -1))
        if self.saver.mirror is not None:
            self.saver.mirror.wake()
        _logger.info("resumed from %s at step %d", folder, found.step)
        before = folders.read_config(folder)
        changed = self._tell_changes(before, found)
        self.local.go_on_from(found.step, other_course=aside or changed)
        same_phase = before.data.phase == self.config.data.phase
        return ResumePoint(
            found.step,
            found.consumed_samples,
            new_course=aside or changed,
            evaluation=found.evaluation,
            best=found.best,
            history=found.history if same_phase else history_of_new_phase(found.history),
        )

    def _tell_changes(self, before: RunConfig, found: manifest.Manifest) -> bool:
        """Log what is not as in the checkpoint; return whether the steps to come are others."""
        if found.layout != self.layout:
            words = found.layout.describe(), self.layout.describe()
            _logger.info("saved on %s, going on with %s", *words)
        changed = changed_fields(before, self.config)
        rate = rate_change(before, self.config, found.step)
        for line in (*changed.values(), *([] if rate is None else [rate])):
            _logger.info("%s", line)
        if "data.phase" in changed:
            phase, consumed = self.config.data.phase, found.consumed_samples
            _logger.info("phase %d of the data begins after %s samples", phase, f"{consumed:,}")
        return leaves_the_course(changed, rate)

    def _set_aside(self, step: int) -> bool:
        """Whether there were newer ones; on rank 0."""
        if self.mesh.rank != 0:
            return False
        paths = folders.set_aside_after(self.root, step)
        for path in paths:
            _logger.warning("kept a newer checkpoint of this run as %s", path)
        return bool(paths)

    def _tidy(self) -> None:
        """Give back at once the space of saves that did not end."""
        if self.mesh.rank == 0:
            self.root.mkdir(parents=True, exist_ok=True)
            remove_partials(self.root / folders.LATEST_NAME)
            for path in folders.discard_unfinished(self.root):
                _logger.warning("removed %s, a save that did not end", path)

    def _check_room(self, found: Path | None) -> None:
        if self.mesh.rank == 0:
            own = found is not None and found.parent.resolve() == self.root.resolve()
            step = manifest.read_manifest(found).step if found is not None and own else -1
            folders.check_room(self.root, step)

    def _make_room(self, step: int) -> None:
        if self.mesh.rank != 0:
            return
        if self._ownership is not None:
            self._ownership.check()
        try:
            self.saver.settle()
            self.root.mkdir(parents=True, exist_ok=True)
            # A place that cannot be written says so here, and not of all that is left in it.
            os.utime(self.root)
            self._tidy()
            folders.set_aside_after(self.root, step - 1)
            moved = folders.clear_place(self.root, step)
        except OSError as error:
            raise folders.not_written(folders.partial_folder(self.root, step), error) from None
        if moved is not None:
            _logger.warning("renamed what lay in the way of a checkpoint to %s", moved)


def _stages(config: RunConfig) -> dict[str, str]:
    """What decides which layers a rank holds; nothing where it holds all."""
    parallel = config.parallel
    if parallel.pipeline == 1:
        return {}
    partition = parallel.pipeline_partition
    named = partition if isinstance(partition, str) else str(list(partition))
    return {"schedule": parallel.pipeline_schedule, "partition": named}


def _stored(folder: Path, found: manifest.Manifest) -> tuple[TensorStore, EngineState]:
    """What `folder` holds of an engine."""
    assert found.state is not None
    try:
        state = EngineState.from_json(found.state)
    except (KeyError, TypeError, ValueError) as error:
        rule = f"holds no state of an optimizer ({type(error).__name__}: {error})"
        fix = "use another checkpoint of the run"
        line = problem("manifest", str(folder / manifest.MANIFEST_NAME), rule, fix)
        raise RootsError(line) from None
    names = [*found.weights, *found.optimizer]
    return TensorStore(folder, [folder / name for name in names]), state
