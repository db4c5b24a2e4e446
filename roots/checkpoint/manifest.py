"""The manifest of a checkpoint: what belongs to it, and the proof that it is whole.

A checkpoint is a folder `step_NNNNNNNN` holding

    weights/*.safetensors    weights by global name, a file for each rank that wrote some
    optimizer/*.safetensors  the optimizer's fp32 weights and moments, as many; not in an imported
                             model (names: roots/training/engine/checkpoint_state.py; what a file
                             says of its tensors: roots/checkpoint/tensor_file.py)
    config.yaml              the resolved config of the run
    tokenizer/               what the run's texts were tokenized with, if the run knows
    mp_rank_*, zero_*, ...   DeepSpeed's own files, with checkpoint.deepspeed_files
    manifest.json            written last: {"format": "roots-checkpoint", "version": 3, "step": ...,
                             "consumed_samples": ..., "layout": {...}, "evaluation": x or null,
                             "best": ["loss", null] or [TASK/MEASURE, x or null],
                             "state": {...} or null, "history": {...},
                             "data": {...} (roots/data/record.py),
                             "saved": seconds since the epoch, or null,
                             "files": {path: {"bytes": n, "sha256": hex}},
                             "sha256": hex of the rest}

Version 2 had digests of another kind (roots/checkpoint/file_record.py), version 1 besides the
optimizer in DeepSpeed's files alone, and no state; both are read as they were.

While it is written the folder is called `step_NNNNNNNN.partial`, which is never loaded, nor is one
without a manifest. The layout says who wrote it: any other reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from roots.checkpoint.file_record import DIGEST, DIGESTS, FileRecord, describe_file, digest_of
from roots.config.training import BY_LOSS
from roots.data.record import DataRecord
from roots.errors import RootsError, problem
from roots.files import sync_file, write_atomically
from roots.log import Report, silent

FORMAT = "roots-checkpoint"
VERSION = 3
# Whether a manifest of the version has a digest of its own for sure.
_READABLE = {1: False, 2: False, VERSION: True}
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
WEIGHTS_FOLDER = "weights"
OPTIMIZER_FOLDER = "optimizer"
# DeepSpeed's files, and none of ROOTS'.
TRAINING_STATE_SUFFIX = ".pt"
_READERS = 8
_MAX_LINES = 12
_END_OF_TIME = 253_402_214_400  # the last day of the year 9999, with which dates end


class DamagedError(RootsError):
    """What should be a finished checkpoint has no manifest, or one that cannot be read."""


@dataclass(frozen=True)
class Layout:
    """The degrees under which DeepSpeed's files were written, and which stages a rank held."""

    tensor: int
    pipeline: int
    data: int
    zero_stage: int
    precision: str
    schedule: str = "1f1b"
    partition: str = "parameters"
    expert: int = 1

    def describe(self) -> str:
        """The layout in words; of stages only what is not as usual."""
        words = (
            f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}, "
            f"ZeRO {self.zero_stage}, {self.precision}"
        )
        if self.expert > 1:
            words += f", expert {self.expert}"
        if self.schedule != "1f1b":
            words += f", {self.schedule}"
        return words if self.partition == "parameters" else f"{words}, partition {self.partition}"


@dataclass(frozen=True)
class Manifest:
    """What a finished checkpoint contains.

    evaluation: the held-out loss after `step`, if one was measured there and is finite.
    best: what the run judges its checkpoints by (checkpoint.keep_best_by), and the cost of this
    one by that, where lower is better: of another measure than the loss, and if it was measured.
    state: the numbers that the optimizer goes on with; None of an imported model, and in version 1.
    history: what the run remembers of samples that it skipped (training/anomalies/guard.py).
    data: what it reads, and since when; saved: when it was, in seconds since the epoch; both None
    of a ROOTS that did not write them.
    """

    step: int
    consumed_samples: int
    layout: Layout
    files: dict[str, FileRecord]
    evaluation: float | None = None
    state: dict[str, Any] | None = None
    version: int = VERSION
    history: dict[str, Any] = field(default_factory=dict)
    data: DataRecord | None = None
    saved: int | None = None
    best: tuple[str, float | None] = (BY_LOSS, None)

    def cost(self, by: str) -> float | None:
        """How bad the model is by that measure; None where that was not measured."""
        if by == BY_LOSS:
            return self.evaluation
        return self.best[1] if self.best[0] == by else None

    @property
    def has_training_state(self) -> bool:
        """Whether a run can go on from it; an imported model has weights alone."""
        return self.state is not None or self.in_deepspeed_files

    @property
    def in_deepspeed_files(self) -> bool:
        """Whether DeepSpeed's files alone hold the training state, for one layout."""
        return self.version == 1 and any(is_deepspeed_file(name) for name in self.files)

    @property
    def model_files(self) -> list[str]:
        """All that a model is loaded from, in order."""
        training = f"{OPTIMIZER_FOLDER}/"
        return sorted(
            name
            for name in self.files
            if not (is_deepspeed_file(name) or name.startswith(training))
        )

    @property
    def resumed_files(self) -> list[str]:
        """All that a run goes on from, in order."""
        unread = not self.in_deepspeed_files
        return sorted(name for name in self.files if not (unread and is_deepspeed_file(name)))

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(record.bytes for record in self.files.values())

    @property
    def weights(self) -> list[str]:
        """The files of the weights, in order."""
        return sorted(name for name in self.files if name.startswith(f"{WEIGHTS_FOLDER}/"))

    @property
    def optimizer(self) -> list[str]:
        """The files of the optimizer's state, in order."""
        return sorted(name for name in self.files if name.startswith(f"{OPTIMIZER_FOLDER}/"))


def is_deepspeed_file(name: str) -> bool:
    """Whether a file of a checkpoint is one of DeepSpeed's states."""
    return name.endswith(TRAINING_STATE_SUFFIX)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Measure and digest files of `folder`, and flush them to the disk."""
    records = {}
    for name in names:
        sync_file(folder / name)
        records[name] = describe_file(folder / name)
    return records


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    tree = {"format": FORMAT, **asdict(manifest)}
    tree["files"] = {name: record.to_json() for name, record in manifest.files.items()}
    write_atomically(folder / MANIFEST_NAME, with_digest(tree))


def with_digest(tree: dict[str, Any]) -> str:
    """The text of a manifest: `tree` and its digest, which tells of damage to it."""
    content = _undigested(tree)
    return json.dumps({**content, DIGEST: _digest(content, DIGEST)}, indent=1, sort_keys=True)


def _undigested(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name not in DIGESTS}


def _digest(content: dict[str, Any], kind: str) -> str:
    return digest_of(json.dumps(content, sort_keys=True).encode(), kind)


def _check_digest(tree: dict[str, Any]) -> None:
    """Raise ValueError for a manifest that is not the one that was written."""
    recorded = {kind: tree[kind] for kind in DIGESTS if kind in tree}
    if not recorded and _READABLE.get(tree["version"]):
        raise ValueError("it records no checksum of its own")
    content = _undigested(tree)
    if any(digest != _digest(content, kind) for kind, digest in recorded.items()):
        raise ValueError("it does not have the checksum that it records")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of `folder`.

    Raises DamagedError if there is none or it is not readable, and another RootsError if it is of
    another format or version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise DamagedError(no_manifest(str(folder)))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(str(folder), f"cannot be read ({error.strerror})") from None
    return parse_manifest(content, str(folder))


def no_manifest(where: str) -> str:
    """The line on a folder, at a path or URL, that is no finished checkpoint."""
    rule = f"is no finished checkpoint (it has no {MANIFEST_NAME})"
    fix = "give a folder like RUN/checkpoints/step_00000100, or the folder of a run"
    return problem("checkpoint", where, rule, fix)


def _unreadable(where: str, rule: str) -> DamagedError:
    fix = "use another checkpoint of the run"
    return DamagedError(problem("manifest", f"{where}/{MANIFEST_NAME}", rule, fix))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest of the checkpoint at `where`, a path or URL. Raises as `read_manifest` does."""
    try:
        tree: dict[str, Any] = json.loads(content.decode("utf-8"))
        if not isinstance(tree, dict):
            raise TypeError("no object")
        _check_digest(tree)
        if tree["format"] != FORMAT or tree["version"] not in _READABLE:
            found = f"{tree['format']} version {tree['version']}"
            rule = f"is {found}, this ROOTS reads {FORMAT} versions 1 to {VERSION}"
            fix = "use the ROOTS that wrote it"
            raise RootsError(problem("checkpoint", where, rule, fix))
        files = {_plain(name): FileRecord.from_json(each) for name, each in tree["files"].items()}
        layout = Layout(**tree["layout"])
        # One without held-out loss, history, data or time is of a ROOTS that did not write any.
        loss, data = tree.get("evaluation"), tree.get("data")
        sealed = Manifest(
            tree["step"],
            tree["consumed_samples"],
            layout,
            files,
            loss,
            tree.get("state"),
            tree["version"],
            tree.get("history", {}),
            None if data is None else DataRecord.from_json(data),
            tree.get("saved"),
            tuple(tree.get("best", (BY_LOSS, None))),
        )
        _check_types(sealed)
        return sealed
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(where, f"is not readable ({type(error).__name__}: {error})") from None


def _plain(name: str) -> str:
    """A file's name, which must lie in the checkpoint."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise ValueError(f"names {name!r}, which is no file of a checkpoint")
    return name


def _check_types(found: Manifest) -> None:
    """Raise TypeError for values of other types than the fields have."""
    numbers = [found.step, found.consumed_samples]
    layout = asdict(found.layout)
    texts = [layout.pop(name) for name in ("precision", "schedule", "partition")]
    if not all(isinstance(number, int) for number in (*numbers, *layout.values())):
        raise TypeError("a count is no integer")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is none")
    if found.state is not None and not isinstance(found.state, dict):
        raise TypeError("the state is no object")
    loss = found.evaluation
    if loss is not None and (isinstance(loss, bool) or not isinstance(loss, (int, float))):
        raise TypeError("the held-out loss is no number")
    if not _is_best(found.best):
        raise TypeError("what the best are judged by is none")
    if not isinstance(found.history, dict):
        raise TypeError("the history is no object")
    saved = found.saved
    if saved is not None and not (type(saved) is int and 0 <= saved < _END_OF_TIME):
        raise TypeError("the time of saving is none")


def _is_best(best: tuple[Any, ...]) -> bool:
    if len(best) != 2 or not isinstance(best[0], str):
        return False
    return best[1] is None or (isinstance(best[1], (int, float)) and not isinstance(best[1], bool))


def check_model(folder: Path) -> None:
    """Compare all that a model is loaded from, not the training state, with the manifest.

    Reads every byte once. Raises RootsError with a line for each file that is missing or changed.
    """
    found = read_manifest(folder)
    if lines := first_of(all_damage(folder, found, found.model_files)):
        raise RootsError(*lines)


def all_damage(
    folder: Path, manifest: Manifest, names: Iterable[str], report: Report = silent
) -> list[str]:
    """As `damage_of`, reading some files at a time (up to 2 GB/s and core); reports bytes."""
    names = list(names)
    sizes = [manifest.files[name].bytes for name in names]
    lines: list[str] = []
    done = 0
    with ThreadPoolExecutor(_READERS) as readers:
        parts = readers.map(lambda name: damage_of(folder, manifest, [name]), names)
        for part, size in zip(parts, sizes, strict=True):
            lines += part
            done += size
            report(done, sum(sizes))
    return lines


def first_of(lines: Sequence[str]) -> list[str]:
    """The first of many lines on damaged files, and how many more there are."""
    more = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], *([f"... and {more} more damaged files"] if more > 0 else [])]


def damage_of(
    folder: Path, manifest: Manifest, names: Iterable[str], *, contents: bool = True
) -> list[str]:
    """Compare the named files with the manifest; one line per missing or changed file.

    Without `contents` no file is read: it has to be there, of the right length.
    """
    lines = []
    for name in names:
        path = folder / name
        try:
            rule = difference(path, manifest.files.get(name), contents=contents)
        except OSError as error:
            rule = f"cannot be read ({error.strerror})"
        if rule is not None:
            lines.append(damaged_file(str(path), rule))
    return lines


def damaged_file(where: str, rule: str) -> str:
    """The line on a file, at a path or URL, that is not the one that was saved."""
    return problem("checkpoint file", where, rule, "use another checkpoint of the run")


def difference(path: Path, expected: FileRecord | None, *, contents: bool = True) -> str | None:
    """What is wrong with a file; None if it is the one that was saved."""
    if expected is None:
        return "is not in the manifest"
    if not path.is_file():
        return "is missing"
    length = path.stat().st_size
    if length != expected.bytes:
        return f"has {length} bytes where the manifest says {expected.bytes}"
    if contents and describe_file(path, expected.kind) != expected:
        return "does not have the checksum that the manifest records"
    return None
