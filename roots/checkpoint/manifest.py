"""The manifest of a checkpoint: what belongs to it, and the proof that it is whole.

A checkpoint is a folder `step_NNNNNNNN` holding

    weights/*.safetensors   parameters by global name, one file per tensor and pipeline rank, and
                            per expert rank one of its experts
    config.yaml             the resolved config of the run
    tokenizer/              of an imported model, if it came with one
    mp_rank_*, zero_*, ...  DeepSpeed's own files, read by its stock tools; not in an imported model
    manifest.json           written last: {"format": "roots-checkpoint", "version": 1, "step": ...,
                            "consumed_samples": ..., "layout": {...},
                            "files": {path: {"bytes": n, "blake2b": hex}}}

A folder without a manifest is the remains of a save that did not end, and is never loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roots.errors import RootsError, problem
from roots.files import sync_file, write_atomically

FORMAT = "roots-checkpoint"
VERSION = 1
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
# DeepSpeed's files, and none of ROOTS'.
TRAINING_STATE_SUFFIX = ".pt"
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """Length and digest of one file."""

    bytes: int
    blake2b: str


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
    """What a finished checkpoint contains."""

    step: int
    consumed_samples: int
    layout: Layout
    files: dict[str, FileRecord]

    @property
    def has_training_state(self) -> bool:
        """Whether a run can go on from it; an imported model has weights alone."""
        return any(name.endswith(TRAINING_STATE_SUFFIX) for name in self.files)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Measure and digest files of `folder`, and flush them to the disk."""
    records = {}
    for name in names:
        sync_file(folder / name)
        records[name] = _describe(folder / name)
    return records


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    tree = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    write_atomically(folder / MANIFEST_NAME, json.dumps(tree, indent=1, sort_keys=True))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of `folder`.

    Raises RootsError if there is none, or it is not of this format and version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        rule = f"is no finished checkpoint (it has no {MANIFEST_NAME})"
        fix = "give a folder like RUN/checkpoints/step_00000100, or the folder of a run"
        raise RootsError(problem("checkpoint", str(folder), rule, fix))
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT or tree["version"] != VERSION:
            found = f"{tree['format']} version {tree['version']}"
            rule = f"is {found}, this ROOTS reads {FORMAT} version {VERSION}"
            fix = "use the ROOTS that wrote it"
            raise RootsError(problem("checkpoint", str(folder), rule, fix))
        files = {name: FileRecord(**record) for name, record in tree["files"].items()}
        return Manifest(tree["step"], tree["consumed_samples"], Layout(**tree["layout"]), files)
    except (ValueError, KeyError, TypeError) as error:
        rule = f"is not readable ({type(error).__name__}: {error})"
        raise RootsError(
            problem("manifest", str(path), rule, "use another checkpoint of the run")
        ) from None


def damage_of(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Compare the named files with the manifest; one line per missing or changed file."""
    lines = []
    for name in names:
        expected, path = manifest.files[name], folder / name
        fix = "use another checkpoint of the run"
        if not path.is_file():
            lines.append(problem("checkpoint file", str(path), "is missing", fix))
        elif path.stat().st_size != expected.bytes:
            rule = f"has {path.stat().st_size} bytes where the manifest says {expected.bytes}"
            lines.append(problem("checkpoint file", str(path), rule, fix))
        elif _describe(path) != expected:
            rule = "does not have the checksum that the manifest records"
            lines.append(problem("checkpoint file", str(path), rule, fix))
    return lines


def _describe(path: Path) -> FileRecord:
    digest, count = hashlib.blake2b(digest_size=16), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            count += len(block)
    return FileRecord(count, digest.hexdigest())
