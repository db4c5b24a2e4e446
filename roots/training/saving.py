"""Writing a checkpoint: a part from each rank, beside training where there is room for a copy.

    start      rank 0 makes `step_N.partial`; a thread of each rank copies its state, then writes
    update     the next one of the weights waits for the copy, which goes on beside forward and
               backward until then (as CheckFreq, Mohan et al., FAST 2021)
    busy       until this rank's part is on the disk
    conclude   once no rank is busy: rank 0 joins the records of all in the manifest and renames the
               folder, or removes it where a rank has failed

Nothing is communicated but the marks of an error, and nobody waits for a slower rank before
`conclude`. A folder without its name, or without a manifest, is never loaded: a save that dies
leaves the checkpoint before it as the newest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from roots.checkpoint import folders, manifest, retention
from roots.checkpoint.disk_rate import measure_disk
from roots.checkpoint.mirror import Mirror
from roots.checkpoint.parts import PartRecord, join_records, write_part
from roots.checkpoint.staging import Staging, entries_of, staged_bytes
from roots.checkpoint.tensor_file import Entry
from roots.checkpoint.zero_universal import universal_checkpoint_info
from roots.config.load import dump_config
from roots.config.run import RunConfig
from roots.device import (
    Device,
    available_host_bytes,
    launch_environment,
    own_stream,
    synchronize,
)
from roots.errors import RootsError
from roots.files import write_atomically
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, anywhere, barrier, broadcast_object
from roots.parallel.shard import shard_of
from roots.parallel.shared_errors import together
from roots.training.callbacks.metrics import SaveRecord
from roots.training.divergence import refuse_what_is_not_finite
from roots.training.engine.step import Engine
from roots.training.resume_point import ResumePoint
from roots.training.travelling_tokenizer import write_tokenizer_files

_logger = get_logger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole.

    stall_seconds: training waited so long on this rank; write_seconds: of the slowest rank;
    num_bytes: of the parts of all ranks; disk_share: how fast rank 0 wrote its part, of what its
    disk can. The last three are known on global rank 0.
    """

    path: Path
    step: int
    stall_seconds: float
    write_seconds: float = 0.0
    num_bytes: int = 0
    disk_share: float | None = None

    def record(self) -> SaveRecord:
        """What the metrics of the run have of it."""
        return SaveRecord(
            self.step, self.num_bytes, self.stall_seconds, self.write_seconds, self.disk_share
        )


@dataclass
class _Job:
    """One save of this rank, under way or done."""

    point: ResumePoint
    folder: Path
    state: dict[str, object]
    stall_seconds: float = 0.0
    error: RootsError | None = None
    bug: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)
    copied: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Saver:
    """Writes the checkpoints of one run below `root`, one at a time."""

    def __init__(self, config: RunConfig, mesh: Mesh, root: Path, layout: manifest.Layout) -> None:
        self.tokenizer_files: dict[str, bytes] = {}  # what every checkpoint has of them
        self.mirror: Mirror | None = None
        # What the wait of an update for a copy counts as.
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        self._config = config
        self._mesh = mesh
        self._root = root
        self._layout = layout
        self._staging: Staging | None = None
        self._preparing: threading.Thread | None = None
        self._job: _Job | None = None
        self._told_of_memory = False
        self._disk_rate: float | None = None
        # A thread that the end of the process waits for.
        self._remover = ThreadPoolExecutor(1, "roots-remove")
        self._removal: Future[None] | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a save was started and not concluded, equal on all ranks."""
        return self._job is not None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self._job is not None and self._job.running

    def prepare(self, engine: Engine) -> None:
        """Make the memory for copies beside training, so that the first save need not wait for it.

        For an engine that has all of its state, on any rank or all; where there is not enough
        memory, nothing happens, and the first save tells of it.
        """
        if self._staging is not None or not self._config.checkpoint.asynchronous:
            return
        self._staging = Staging(pinned=engine.device.kind == "cuda")
        needed = staged_bytes(engine.written_pieces())
        if needed <= _free_bytes_of_a_rank():
            self._preparing = threading.Thread(
                target=self._staging.reserve, args=(needed,), kwargs={"touch": True}, daemon=True
            )
            self._preparing.start()

    def start(self, engine: Engine, point: ResumePoint, *, beside: bool = True) -> None:
        """Begin to write `point`; every rank must call, with no save in flight.

        `beside`: training goes on meanwhile, and calls `engine.before_update` before it changes
        anything; else the state is written from where it is, without a copy.
        Raises RootsError with exit code NOT_SAVED if the folder cannot be made. What fails later is
        raised by `conclude`.
        """
        assert self._job is None, "a save is in flight"
        started = time.monotonic()
        folder = folders.partial_folder(self._root, point.step)
        together(self._mesh.world, lambda: self._make(folder))
        others = self._write_deepspeed_files(engine, folder, point)
        job = _Job(point, folder, engine.state().to_json())
        self._job = job
        if beside and self._may_copy(engine):
            job.thread = threading.Thread(
                target=self._copy_and_write,
                args=(job, engine.device, self._copying(engine), others),
                name="roots-save",
                daemon=True,
            )
            engine.before_update = self.wait_for_copy
            job.thread.start()
            job.stall_seconds = time.monotonic() - started
            return
        self._write(job, map(entries_of, engine.written_groups()), others)
        job.stall_seconds = time.monotonic() - started

    def wait_for_copy(self) -> None:
        """Return when what is being saved may change; at once if nothing is."""
        job = self._job
        if job is None or job.thread is None or job.copied.is_set():
            return
        started = time.monotonic()
        with self.waiting():
            job.copied.wait()
        job.stall_seconds += time.monotonic() - started

    def wait(self) -> None:
        """Return when this rank has written its part."""
        if self._job is not None and self._job.thread is not None:
            started = time.monotonic()
            self._job.thread.join()
            self._job.stall_seconds += time.monotonic() - started

    def conclude(self) -> Saved:
        """Seal the save in flight; every rank must call, none of them busy. `settle` follows.

        Raises RootsError with exit code NOT_SAVED if a rank could not write its part, or DIVERGED
        if weights or optimizer state were not finite; nothing is left of it then.
        """
        started = time.monotonic()
        job = self._job
        assert job is not None, "no save is in flight"
        self._job = None
        if job.bug is not None:
            raise job.bug
        world = self._mesh.world
        if anywhere(world, job.error is not None):
            if world.rank == 0:
                folders.discard(job.folder)
            together(world, lambda: _raise(job.error))
        try:
            saved = together(world, lambda: self._sealed(job))
            stall = saved.stall_seconds + time.monotonic() - started
            return replace(saved, stall_seconds=stall)
        except RootsError:
            if world.rank == 0:
                folders.discard(job.folder)
            raise

    def settle(self) -> None:
        """Return when the old checkpoints are removed, which goes on beside training too."""
        removal, self._removal = self._removal, None
        if removal is not None:
            removal.result()

    def _remove_old(self) -> None:
        held = () if self.mirror is None else self.mirror.held
        keep = retention.Keep.of(self._config.checkpoint)
        for removed in retention.apply(self._root, keep, held):
            _logger.info("removed old checkpoint %s", removed.name)

    @cached_property
    def _config_text(self) -> str:
        """The same in every checkpoint."""
        return dump_config(self._config)

    def _make(self, folder: Path) -> None:
        """The folder with all that is small."""
        if self._mesh.rank != 0:
            return
        try:
            folder.mkdir()
            write_atomically(folder / manifest.CONFIG_NAME, self._config_text)
            write_tokenizer_files(folder, self.tokenizer_files)
        except OSError as error:
            folders.discard(folder)
            raise folders.not_written(folder, error) from None

    def _may_copy(self, engine: Engine) -> bool:
        """Whether to write from a copy, equal on all ranks; memory for it is reserved then."""
        if not self._config.checkpoint.asynchronous:
            return False
        if self._preparing is not None:
            self._preparing.join()
        needed = staged_bytes(engine.written_pieces())
        if self._staging is None:
            self._staging = Staging(pinned=engine.device.kind == "cuda")
        more = max(0, needed - self._staging.num_bytes)
        free = _free_bytes_of_a_rank()
        if not anywhere(self._mesh.world, more > free):
            self._staging.reserve(needed)
            return True
        if not self._told_of_memory:
            self._told_of_memory = True
            _logger.warning(
                "checkpoints are written while training waits: a copy in host memory takes "
                "%s more bytes on this rank, and %s are free for each rank of this machine",
                f"{more:,}",
                f"{free:,}",
            )
        return False

    def _copying(self, engine: Engine) -> Callable[[], list[Entry]]:
        """What is left of a copy of the state: all of it, where a step leaves the state alone."""
        assert self._staging is not None
        synchronize(engine.device)
        if engine.pieces_stay:
            return partial(self._staging.copy, list(engine.written_pieces()))
        entries = self._staging.copy(engine.written_pieces())
        synchronize(engine.device)
        return lambda: entries

    def _copy_and_write(
        self, job: _Job, device: Device, copy: Callable[[], list[Entry]], others: Sequence[str]
    ) -> None:
        """What a thread does beside training."""
        try:
            with own_stream(device):
                entries = copy()
        except BaseException as error:  # noqa: BLE001  # told by conclude, in the thread of the run
            job.bug = error
            return
        finally:
            job.copied.set()
        self._write(job, [entries], others)

    def _write(self, job: _Job, groups: Iterable[Iterable[Entry]], others: Sequence[str]) -> None:
        """Write this rank's part, of which each tensor is looked at while it is at hand."""

        def check(entry: Entry) -> None:
            named = [(f"tensor {entry.tensor}", [entry.data])]
            refuse_what_is_not_finite(named, job.point.step, self._mesh.rank)

        try:
            part = write_part(job.folder, self._mesh.rank, groups, others, check)
            if self._mesh.rank == 0 and self._disk_rate is None:
                self._disk_rate = measure_disk(job.folder, part.num_bytes)
        except RootsError as error:
            job.error = error
        except OSError as error:
            job.error = folders.not_written(job.folder, error)
        except BaseException as error:  # noqa: BLE001  # told by conclude, in the thread of the run
            job.bug = error

    def _write_deepspeed_files(self, engine: Engine, folder: Path, point: ResumePoint) -> list[str]:
        """DeepSpeed's own files, if they are asked for; this rank's share of them is returned."""
        if not self._config.checkpoint.deepspeed_files:
            return []
        mine = [(name, shard_of(p, name)) for name, p in engine.module.named_parameters()]
        stages = all_gather_object(self._mesh.pipeline, mine)
        shards = dict(entry for part in stages for entry in part)
        info = universal_checkpoint_info(shards.items(), self._mesh.tensor.size)
        state = {"step": point.step, "consumed_samples": point.consumed_samples, **info}
        engine.save_deepspeed_files(self._root, folder.name, state)
        world = self._mesh.world
        barrier(world)
        # One rank's listing for all: network file systems may show each another state.
        found = [
            str(path.relative_to(folder))
            for path in sorted(folder.rglob(f"*{manifest.TRAINING_STATE_SUFFIX}"))
        ]
        return broadcast_object(world, found)[world.rank :: world.size]

    def _sealed(self, job: _Job) -> Saved:
        try:
            return self._seal(job)
        except OSError as error:
            raise folders.not_written(job.folder, error) from None

    def _seal(self, job: _Job) -> Saved:
        """The manifest last, then the name; rank 0 alone does anything."""
        final = folders.step_name(job.point.step)
        if self._mesh.rank != 0:
            return Saved(self._root / final, job.point.step, job.stall_seconds)
        records = join_records(job.folder, self._mesh.world.size)
        files = {name: each for record in records for name, each in record.files.items()}
        small = [
            str(path.relative_to(job.folder))
            for path in sorted(job.folder.rglob("*"))
            if path.is_file() and str(path.relative_to(job.folder)) not in files
        ]
        files |= manifest.describe_files(job.folder, small)
        sealed = job.point.manifest(self._layout, files, job.state)
        manifest.write_manifest(job.folder, sealed)
        path = folders.publish_folder(job.folder)
        folders.point_latest(self._root, path)
        self._removal = self._remover.submit(self._remove_old)
        if job.thread is None:
            self.settle()
        if self.mirror is not None:
            self.mirror.wake()
        return _saved(path, job, records, self._disk_rate)


def _saved(path: Path, job: _Job, records: Sequence[PartRecord], disk_rate: float | None) -> Saved:
    mine = records[0]
    known = disk_rate is not None and mine.seconds > 0
    return Saved(
        path,
        job.point.step,
        job.stall_seconds,
        max(record.seconds for record in records),
        sum(record.num_bytes for record in records),
        mine.num_bytes / mine.seconds / disk_rate if known else None,
    )


def _free_bytes_of_a_rank() -> int:
    """Host memory that this rank may take, if all of its machine take as much."""
    return available_host_bytes() // max(1, launch_environment().local_world_size)


def _raise(error: RootsError | None) -> None:
    if error is not None:
        raise error
