"""Which checkpoint a run goes on from, and whether it may: damage, another model, another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from roots.checkpoint import folders, manifest
from roots.checkpoint.locating import fetched
from roots.checkpoint.mirror import Mirror
from roots.checkpoint.stored import unreachable
from roots.config.model import RESOLVED_FIELDS, ModelConfig
from roots.config.run import RunConfig
from roots.config.section import Section
from roots.config.unread_fields import idle_fields
from roots.data.record import DataRecord
from roots.errors import RootsError, problem
from roots.files import is_url
from roots.log import get_logger
from roots.parallel.mesh import Mesh
from roots.parallel.process import all_gather_object, broadcast_object
from roots.parallel.shared_errors import together
from roots.training.data_order import DataOrder, record_of
from roots.training.engine.state_files import foreign_names, foreign_state

_logger = get_logger(__name__)

# What may change from one part of a run to the next: it says how to train, not what the model is.
_FREE_MODEL_FIELDS = (
    "dropout",
    "attention_dropout",
    "moe.capacity_factor",
    "moe.balance_loss",
    "moe.z_loss",
)
_FREE_OF_WEIGHTS = frozenset({"init_std", "sequence_length", "source_length"})
# Below the run's folder, which all ranks see: checkpoints that were given by their URL.
_FETCHED_FOLDER = "fetched"


@dataclass(frozen=True)
class Candidates:
    """The checkpoints that a run of `config` could start from. Every method is called by all ranks.

    root: RUN/checkpoints; layout: the run's own; mirror: on global rank 0, if the run has one.
    """

    config: RunConfig
    mesh: Mesh
    root: Path
    layout: manifest.Layout
    mirror: Mirror | None = None

    @cached_property
    def data(self) -> DataRecord:
        """What lies at the prefixes of the config. Raises RootsError for what cannot be opened."""
        return record_of(self.config)

    def find(self) -> Path | None:
        """The checkpoint to resume from, checked whole; None for a fresh start.

        `auto` passes damaged ones by, tells of them and sets them aside, up to the newest good one;
        where none is good, the newest good one of the mirror is fetched.
        Raises RootsError if all are damaged, or the one named is; if it is of another model or
        layout; or if a fresh start is asked for where checkpoints of this run lie.
        """
        if self.config.checkpoint.resume == "auto":
            return self._newest_good()
        wish = self.config.checkpoint.resume
        wish = self._here(wish, lambda found: found.resumed_files, "checkpoint.resume")
        return together(self.mesh.world, partial(self._named, wish))

    def find_weights(self) -> Path | None:
        """The checkpoint whose weights a fresh run starts from, checked whole; None without one.

        Raises RootsError if it is damaged or of another model.
        """
        wish = self.config.checkpoint.weights
        if wish is None:
            return None
        here = self._here(wish, lambda found: found.model_files, "checkpoint.weights")
        return together(self.mesh.world, partial(self._find_weights, here))

    def _here(self, wish: str, wanted: Callable[[manifest.Manifest], list[str]], field: str) -> str:
        """A path for `wish`, which `field` names: of a URL, where rank 0 fetches it to."""
        if not is_url(wish):
            return wish
        below = self.root.parent / _FETCHED_FOLDER
        world = self.mesh.world

        def fetch() -> Path | None:
            return fetched(wish, below, wanted, field) if world.rank == 0 else None

        return str(broadcast_object(world, together(world, fetch)))

    def _newest_good(self) -> Path | None:
        world = self.mesh.world
        # One rank's listing for all: network file systems may show each another state.
        listed = folders.saved_checkpoints(self.root) if world.rank == 0 else []
        damaged: dict[Path, list[str]] = {}
        for folder in reversed(broadcast_object(world, listed)):
            lines = self._damage_seen_by_any(folder)
            if not lines:
                together(world, partial(self.judge, folder))
                together(world, partial(self._pass_by, damaged, folder))
                return folder
            damaged[folder] = lines
        fetched = self._newest_of_mirror(damaged)
        if fetched is not None:
            together(world, partial(self.judge, fetched))
            return fetched
        if damaged:
            raise RootsError(*self._all_damaged(damaged), speaks=world.rank == 0)
        return None

    def _newest_of_mirror(self, damaged: dict[Path, list[str]]) -> Path | None:
        """The newest good checkpoint of the mirror, brought into RUN/checkpoints by rank 0."""
        if self.config.checkpoint.mirror is None:
            return None

        def fetch() -> Path | None:
            if self.mirror is None:
                return None
            partial_folder, lines = self.mirror.fetch_newest()
            if partial_folder is None and lines and not damaged:
                raise RootsError(*manifest.first_of(lines), self._none_good(self.mirror))
            for line in manifest.first_of(lines):
                _logger.warning("%s", line)
            if partial_folder is None:
                return None
            self._pass_by(damaged, folders.final_folder(partial_folder))
            found = folders.publish_folder(partial_folder)
            folders.point_latest(self.root, found)
            return found

        world = self.mesh.world
        found: Path | None = broadcast_object(world, together(world, fetch))
        return found

    def _pass_by(self, damaged: dict[Path, list[str]], good: Path) -> None:
        """Tell of the damaged ones and move them out of the way of the steps to come."""
        if self.mesh.rank != 0 or not damaged:
            return
        for folder, lines in damaged.items():
            for line in manifest.first_of(lines):
                _logger.warning("%s", line)
            kept = folders.set_aside(folder, folders.DAMAGED)
            _logger.warning("%s is damaged, and kept as %s", folder.name, kept)
        folders.point_latest(self.root, good)
        _logger.warning("%s is the newest good checkpoint", good)

    def _damage_seen_by_any(self, folder: Path) -> list[str]:
        """What is wrong with the files of `folder`: each rank reads some, and all know of all.

        Raises RootsError if it is not damaged, but of another version of ROOTS.
        """

        def look() -> list[str]:
            try:
                found = manifest.read_manifest(folder)
                return self._damage(folder, found, found.resumed_files)
            except manifest.DamagedError as error:
                return list(error.lines)

        parts = all_gather_object(self.mesh.world, together(self.mesh.world, look))
        return list(dict.fromkeys(line for part in parts for line in part))

    def _none_good(self, mirror: Mirror) -> str:
        """The line on a mirror that has nothing good, of a run that would begin anew over it."""
        fix = "bring the files back from a copy, or set another run.name to begin anew"
        return problem("checkpoint.mirror", mirror.stored.where(""), "holds none that is good", fix)

    def _all_damaged(self, damaged: dict[Path, list[str]]) -> list[str]:
        rule = f"no checkpoint in {self.root} is good: {len(damaged)} are damaged"
        if len(damaged) == 1:
            rule = f"the only checkpoint in {self.root} is damaged"
        fix = "bring the files back from a copy, or set another run.name to begin anew"
        lines = [line for each in damaged.values() for line in manifest.first_of(each)]
        return [*lines, problem("checkpoint.resume", "auto", rule, fix)]

    def _named(self, wish: str) -> Path | None:
        """The checkpoint that checkpoint.resume names, judged and its files read."""
        if wish == "never":
            latest = folders.latest_checkpoint(self.root) or self._latest_of_mirror()
            if latest is None:
                return None
            fix = "set checkpoint.resume=auto to go on from there, or another run.name"
            rule = f"cannot start afresh over {latest}"
            raise RootsError(problem("checkpoint.resume", wish, rule, fix))
        others = "; auto is the newest good one of this run, and never a fresh start"
        folder = folders.resolve_checkpoint(wish, "checkpoint.resume", others)
        self.judge(folder, reads=True)
        return folder

    def _latest_of_mirror(self) -> str | None:
        if self.mirror is None:
            return None
        stored = self.mirror.stored
        try:
            names = stored.names()
        except OSError as error:
            raise unreachable("checkpoint.mirror", stored.where(""), error) from None
        return stored.where(names[-1]) if names else None

    def judge(self, folder: Path, *, reads: bool = False) -> None:
        """Raise RootsError unless this run may go on from `folder`.

        reads: look for damage too, in this rank's share of the files.
        """
        found = manifest.read_manifest(folder)
        if not found.has_training_state:
            rule = f"{folder} holds weights alone, and no optimizer to go on with"
            fix = "set checkpoint.weights to it instead, to start a run from its weights"
            raise RootsError(problem("checkpoint.resume", self.config.checkpoint.resume, rule, fix))
        lines = [
            *self._model_differences(folder, _use_the_config_of(folder)),
            *self._order_differences(folder, found),
            *self._layout_differences(folder, found),
            *(self._damage(folder, found, found.resumed_files) if reads else ()),
            *self._foreign(folder, found),
        ]
        if lines:
            raise RootsError(*lines)

    def _find_weights(self, wish: str) -> Path:
        folder = folders.resolve_checkpoint(wish, "checkpoint.weights")
        found = manifest.read_manifest(folder)
        fix = (
            f"use the model of the config stored as {folder / manifest.CONFIG_NAME}, or set "
            "checkpoint.weights to a checkpoint of this model"
        )
        # Positions that are computed reach as far as a run wants.
        free = {"init_std"} if self.config.model.position == "learned" else _FREE_OF_WEIGHTS
        lines = [
            *self._model_differences(folder, fix, free),
            *self._damage(folder, found, found.weights),
        ]
        if lines:
            raise RootsError(*lines)
        return folder

    def _damage(self, folder: Path, found: manifest.Manifest, names: list[str]) -> list[str]:
        """What is wrong with this rank's share of the files."""
        share = names[self.mesh.rank :: self.mesh.world.size]
        return manifest.damage_of(folder, found, share)

    def _foreign(self, folder: Path, found: manifest.Manifest) -> list[str]:
        """What in this rank's share of DeepSpeed's files is no training state, but runs."""
        states = [each for each in found.resumed_files if manifest.is_deepspeed_file(each)]
        lines = []
        for path in (folder / each for each in states[self.mesh.rank :: self.mesh.world.size]):
            names = foreign_names(path) if path.is_file() else []
            if names:
                lines.append(foreign_state(path, ", ".join(names)))
        return lines

    def _model_differences(self, folder: Path, fix: str, free: Set[str] = frozenset()) -> list[str]:
        model = folders.read_config(folder).model
        stored = dict(_resolved_fields(model))
        idle = idle_fields(model) & idle_fields(self.config.model)
        return [
            problem(f"model.{name}", value, f"is {stored[name]!r} in checkpoint {folder}", fix)
            for name, value in _resolved_fields(self.config.model)
            if stored[name] != value and name not in {*_FREE_MODEL_FIELDS, *free, *idle}
        ]

    def _order_differences(self, folder: Path, found: manifest.Manifest) -> list[str]:
        """What decides which samples a step sees must stay, or some are skipped or repeated.

        Rank 0 looks at the data; only a checkpoint that says what it was can be compared with them.
        """
        lines: tuple[str, ...] = ()
        data = None
        if self.mesh.rank == 0 and found.data is not None:
            try:
                data = self.data
            except RootsError as error:
                lines = error.lines
        order = DataOrder(folder, folders.read_config(folder), found, self.config, data)
        return [*order.differences(), *lines]

    def _layout_differences(self, folder: Path, found: manifest.Manifest) -> list[str]:
        """What only DeepSpeed's files hold resumes where they were written."""
        stored = found.layout
        if stored == self.layout or not found.in_deepspeed_files:
            return []
        rule = (
            f"was saved on {stored.describe()}, and its optimizer state resumes on that layout only"
        )
        fix = (
            f"start the run that way or set another run.name; this one is {self.layout.describe()}"
        )
        return [problem("checkpoint", str(folder), rule, fix)]


def _use_the_config_of(folder: Path) -> str:
    return f"use the config stored as {folder / manifest.CONFIG_NAME}, or another run.name"


def _resolved_fields(model: ModelConfig) -> Iterator[tuple[str, Any]]:
    """Every field with the value that null stands for; those of a section as section.field."""
    experts = {
        "ffn_hidden_size": model.expert_ffn_size,
        "shared_ffn_hidden_size": model.shared_expert_ffn_size,
        "normalise_weights": model.moe.normalises,
    }
    for name in type(model).model_fields:
        value = getattr(model, RESOLVED_FIELDS.get(name, name))
        if isinstance(value, Section):
            tree = {**value.model_dump(), **(experts if name == "moe" else {})}
            yield from ((f"{name}.{key}", item) for key, item in tree.items())
        else:
            yield name, value
