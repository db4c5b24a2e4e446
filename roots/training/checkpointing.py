"""Saving and loading a run: the engine's state, the weights by global name, the manifest last."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from roots.checkpoint import folders, manifest, retention, weights
from roots.checkpoint.zero_universal import universal_checkpoint_info
from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.errors import ExitCode, RootsError, problem, ran_out_of_memory
from roots.files import free_bytes, remove_partials, write_atomically
from roots.lock import Ownership
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, barrier, broadcast_object
from roots.parallel.shard import shard_of
from roots.parallel.shared_errors import together
from roots.training.course import changed_fields, leaves_the_course, rate_change
from roots.training.divergence import refuse_what_is_not_finite
from roots.training.engine.deepspeed_json import effective_zero_stage
from roots.training.engine.step import Engine
from roots.training.resuming import Candidates
from roots.training.travelling_tokenizer import write_tokenizer_files

_logger = get_logger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where training goes on: the steps done and the samples they consumed.

    `new_course`: steps that the run had done after this point come out otherwise now. Known on
    global rank 0. `evaluation`: the held-out loss after `step`, if measured and finite.
    """

    step: int
    consumed_samples: int
    new_course: bool = False
    evaluation: float | None = None


class Checkpointer:
    """Saves to and resumes from RUN/checkpoints. Every method is called by all ranks."""

    def __init__(self, config: RunConfig, mesh: Mesh, ownership: Ownership | None = None) -> None:
        self.config = config
        self.mesh = mesh
        self._ownership = ownership
        self.tokenizer_files: dict[str, bytes] = {}  # what every checkpoint has of them
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
        self._candidates = Candidates(config, mesh, self.root, self.layout)

    def find(self) -> Path | None:
        """The checkpoint to resume from, checked whole; None for a fresh start.

        Raises RootsError if it is damaged, of another model or layout, or if a fresh start is
        asked for where checkpoints of this run lie.
        """
        together(self.mesh.world, self._tidy)
        found = self._candidates.find()
        together(self.mesh.world, lambda: self._check_room(found))
        return found

    def find_weights(self) -> Path | None:
        """The checkpoint whose weights a fresh run starts from, checked whole; None without one.

        Raises RootsError if it is damaged or of another model.
        """
        return self._candidates.find_weights()

    def save(self, engine: Engine, point: ResumePoint) -> Path:
        """Write the checkpoint of `point` and return its folder; the manifest comes last.

        Raises RootsError with exit code DIVERGED, and touches nothing, if weights or optimizer
        state are not finite; with NOT_SAVED, on all ranks, where the disk does not take it.
        """
        together(self.mesh.world, lambda: self._refuse_what_is_not_finite(engine, point))
        name = folders.step_name(point.step)
        folder = self.root / name
        unsaved = ExitCode.NOT_SAVED
        together(self.mesh.world, lambda: self._make_room(point.step), os_error=unsaved)
        # Writing communicates inside DeepSpeed: a rank that fails there must end, so that the
        # launcher ends the others, and not wait for them to report.
        self._write(engine, folder, point)
        try:
            self._seal(folder, point)
        except RootsError:
            folders.discard(folder)
            raise
        return folder

    def load(self, engine: Engine, folder: Path) -> ResumePoint:
        """Restore `engine` from `folder`, which `find` has returned.

        Checkpoints of this run that are newer than `folder` belong to a course that is given up:
        they are set aside, so that nothing resumes from them again.
        """
        engine.load(folder.parent, folder.name)
        found = manifest.read_manifest(folder)
        own = folder.parent.resolve() == self.root.resolve()
        aside = together(self.mesh.world, lambda: self._set_aside(found.step if own else -1))
        _logger.info("resumed from %s at step %d", folder, found.step)
        changed = self._tell_changes(folders.read_config(folder), found.step)
        return ResumePoint(found.step, found.consumed_samples, new_course=aside or changed)

    def _tell_changes(self, before: RunConfig, step: int) -> bool:
        """Log what is not as in the checkpoint; return whether the steps to come are others."""
        changed = changed_fields(before, self.config)
        rate = rate_change(before, self.config, step)
        for line in (*changed.values(), *([] if rate is None else [rate])):
            _logger.info("%s", line)
        return leaves_the_course(changed, rate)

    def _refuse_what_is_not_finite(self, engine: Engine, point: ResumePoint) -> None:
        refuse_what_is_not_finite(engine.held_state(), point.step, self.mesh.rank)

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
        if self.mesh.rank == 0:
            if self._ownership is not None:
                self._ownership.check()
            self._tidy()
            folders.set_aside_after(self.root, step - 1)
            moved = folders.clear_place(self.root, step)
            if moved is not None:
                _logger.warning("renamed what lay in the way of a checkpoint to %s", moved)

    def _write(self, engine: Engine, folder: Path, point: ResumePoint) -> None:
        """DeepSpeed's files from every rank, weights from the first replica, config from rank 0."""
        try:
            self._write_states(engine, folder, point)
        except (RuntimeError, OSError, SafetensorError) as error:
            if ran_out_of_memory(error):
                raise
            # torch and safetensors report a full disk as errors of their own.
            reason = _why_not_written(error)
            folders.discard(folder)
            rule = f"could not be written ({reason}){self._room()}"
            fix = "free some disk space; the checkpoints before it are untouched"
            line = problem("checkpoint", str(folder), rule, fix)
            # A run may only go on where no other rank waits inside DeepSpeed.
            code = ExitCode.NOT_SAVED if self.mesh.world.size == 1 else ExitCode.BAD_INPUT
            raise RootsError(line, exit_code=code) from error

    def _room(self) -> str:
        """How much the newest checkpoint takes, if there is one, and how much room is left."""
        free = f"{free_bytes(self.root):,} bytes are free"
        latest = folders.latest_checkpoint(self.root)
        if latest is None:
            return f"; {free}"
        taken = manifest.read_manifest(latest).total_bytes
        return f"; {latest.name} has {taken:,} bytes, and {free}"

    def _write_states(self, engine: Engine, folder: Path, point: ResumePoint) -> None:
        state = self._client_state(engine, point)
        engine.save(self.root, folder.name, state)
        tensors = engine.weights()
        if self.mesh.expert_data.rank == 0:
            weights.save_weights(
                folder,
                tensors,
                pipeline_rank=self.mesh.pipeline.rank,
                tensor_rank=self.mesh.tensor.rank,
                expert_rank=self.mesh.expert.rank,
            )
        else:
            # At ZeRO-3 reading a weight is a collective, so the other replicas read along.
            for _ in tensors:
                pass
        if self.mesh.rank == 0:
            text = dump_config(self.config)
            write_atomically(folder / manifest.CONFIG_NAME, text)
            write_tokenizer_files(folder, self.tokenizer_files)

    def _client_state(self, engine: Engine, point: ResumePoint) -> dict[str, Any]:
        mine = [(name, shard_of(p, name)) for name, p in engine.module.named_parameters()]
        everyone = dict(
            entry for part in all_gather_object(self.mesh.pipeline, mine) for entry in part
        )
        info = universal_checkpoint_info(everyone.items(), self.mesh.tensor.size)
        return {"step": point.step, "consumed_samples": point.consumed_samples, **info}

    def _seal(self, folder: Path, point: ResumePoint) -> None:
        """Digest the files, a share per rank; rank 0 writes the manifest and removes old saves."""
        world = self.mesh.world
        barrier(world)
        # One rank's listing for all: network file systems may show each another state.
        unsaved = ExitCode.NOT_SAVED
        found = together(
            world, lambda: _files_below(folder) if world.rank == 0 else [], os_error=unsaved
        )
        share = broadcast_object(world, found)[world.rank :: world.size]
        mine = together(world, lambda: manifest.describe_files(folder, share), os_error=unsaved)
        parts = all_gather_object(world, mine)
        files = {name: record for part in parts for name, record in part.items()}
        together(world, lambda: self._finish(folder, point, files), os_error=unsaved)

    def _finish(
        self, folder: Path, point: ResumePoint, files: dict[str, manifest.FileRecord]
    ) -> None:
        if self.mesh.rank != 0:
            return
        sealed = manifest.Manifest(
            point.step, point.consumed_samples, self.layout, files, point.evaluation
        )
        manifest.write_manifest(folder, sealed)
        folders.point_latest(self.root, folder)
        for removed in retention.apply(self.root, retention.Keep.of(self.config.checkpoint)):
            _logger.info("removed old checkpoint %s", removed.name)


def _why_not_written(error: BaseException) -> str:
    """The reason in words; lets go of the file that `error` keeps open, and so of its room."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    first = str(error).splitlines()[0]
    # torch counts what it has written, and not what the system says of it.
    hides = isinstance(error, RuntimeError) and "unexpected pos" in first
    return f"no room on the disk or in the quota; torch: {first}" if hides else first


def _stages(config: RunConfig) -> dict[str, str]:
    """What decides which layers a rank holds; nothing where it holds all."""
    parallel = config.parallel
    if parallel.pipeline == 1:
        return {}
    partition = parallel.pipeline_partition
    named = partition if isinstance(partition, str) else str(list(partition))
    return {"schedule": parallel.pipeline_schedule, "partition": named}


def _files_below(folder: Path) -> list[str]:
    """Files of a checkpoint, relative to it, in one order."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
