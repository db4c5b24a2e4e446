"""What one rank adds to a checkpoint: files of weights and of optimizer state, and their record.

The record is a small file of its own, so that no rank has to be asked what it has written:

    records/rank_NNNNN.json   {"seconds": of writing, "files": {path: {"bytes": n, "sha256": hex}}}

Whoever seals the checkpoint joins the records in its manifest and removes them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from roots.checkpoint.file_record import FileRecord
from roots.checkpoint.manifest import OPTIMIZER_FOLDER, WEIGHTS_FOLDER, describe_files
from roots.checkpoint.tensor_file import SUFFIX, Entry, write_entries
from roots.errors import RootsError, problem
from roots.files import sync_folder, write_atomically

RECORDS_FOLDER = "records"


@dataclass(frozen=True)
class PartRecord:
    """What one rank has written, and how long that took."""

    seconds: float
    files: dict[str, FileRecord]

    @property
    def num_bytes(self) -> int:
        """Length of all its files."""
        return sum(record.bytes for record in self.files.values())


def write_part(
    folder: Path,
    rank: int,
    groups: Iterable[Iterable[Entry]],
    others: Sequence[str] = (),
    check: Callable[[Entry], None] = lambda _: None,
) -> PartRecord:
    """Write the entries of this rank below `folder`, and the record, all flushed to the disk.

    A group has files of its own, written before the next is asked for. Weights are the entries of
    tensors without a kind before their name. `others` are files that are there already, to be
    flushed and recorded too. Raises OSError, and what `check` raises of an entry that is about to
    be written.
    """
    started = time.monotonic()
    files = describe_files(folder, others)
    for number, entries in enumerate(groups):
        held: dict[str, list[Entry]] = {WEIGHTS_FOLDER: [], OPTIMIZER_FOLDER: []}
        for entry in entries:
            held[OPTIMIZER_FOLDER if "/" in entry.tensor else WEIGHTS_FOLDER].append(entry)
        for kind, mine in held.items():
            if mine:
                name = f"{kind}/{file_name(rank, number)}"
                (folder / kind).mkdir(parents=True, exist_ok=True)
                files[name] = write_entries(folder / name, mine, check)
                sync_folder(folder / kind)
    record = PartRecord(time.monotonic() - started, files)
    (folder / RECORDS_FOLDER).mkdir(parents=True, exist_ok=True)
    tree = {"seconds": record.seconds, "files": {name: files[name].to_json() for name in files}}
    write_atomically(_record_file(folder, rank), json.dumps(tree))
    return record


def file_name(rank: int, group: int) -> str:
    """The file of `rank` for its groups of entries, from 0: of one alone, as a rule."""
    return f"rank_{rank:05d}{f'_{group:05d}' if group else ''}{SUFFIX}"


def join_records(folder: Path, world_size: int) -> list[PartRecord]:
    """The records of all ranks, in order, then removed. Raises RootsError for a missing one."""
    records = []
    for rank in range(world_size):
        path = _record_file(folder, rank)
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            rule = "is missing, though its rank has written it"
            fix = "do all hosts see the same folder? put run.directory on a shared file system"
            raise RootsError(problem("checkpoint file", str(path), rule, fix)) from None
        files = {name: FileRecord.from_json(each) for name, each in tree["files"].items()}
        records.append(PartRecord(tree["seconds"], files))
    shutil.rmtree(folder / RECORDS_FOLDER)
    return records


def _record_file(folder: Path, rank: int) -> Path:
    return folder / RECORDS_FOLDER / f"rank_{rank:05d}.json"
