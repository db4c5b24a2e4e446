"""What planning a save costs one rank of many: its boxes and its file's header, and the sealing.

Ranks are simulated: a stage is built without memory, its flattened parameters are cut as ZeRO does,
and rank 0 joins as many records as there are ranks. The model grows with the ranks, so that each
has as many tensors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from roots.checkpoint.boxes import Piece
from roots.checkpoint.file_record import FileRecord
from roots.checkpoint.manifest import Layout, Manifest, write_manifest
from roots.checkpoint.parts import RECORDS_FOLDER, join_records
from roots.checkpoint.staging import entries_of, staged_bytes
from roots.checkpoint.tensor_file import planned
from roots.config.model import ModelConfig
from roots.models.options import BuildOptions
from roots.parallel.shard import shard_of
from tests.helpers.decoders import build_decoder, fake_mesh

TENSOR, LAYERS_OF_A_RANK, REPEATS = 8, 20, 5
KINDS = ("", "master/", "exp_avg/", "exp_avg_sq/")


@dataclass(frozen=True)
class Simulated:
    """A layout of `ranks` = TENSOR x pipeline x data, with ZeRO over data."""

    pipeline: int
    data: int

    @property
    def ranks(self) -> int:
        """All of them."""
        return TENSOR * self.pipeline * self.data


LAYOUTS = (Simulated(1, 1), Simulated(4, 2), Simulated(16, 4))


def measure(layout: Simulated, folder: Path) -> dict[str, float]:
    """Entries of the rank that has most, seconds of its plan, and of rank 0's sealing."""
    found = [_plan(list(_pieces(layout, rank))) for rank in sorted({0, layout.data - 1})]
    return {
        "ranks": layout.ranks,
        "entries": max(entries for entries, _ in found),
        "plan_seconds": max(seconds for _, seconds in found),
        "seal_seconds": _seal(layout, folder / f"ranks_{layout.ranks}"),
    }


def _plan(pieces: list[Piece]) -> tuple[int, float]:
    """Number of entries, and the least of some times, since other processes run as well."""
    count, times = 0, []
    for _ in range(REPEATS):
        started = time.perf_counter()
        staged_bytes(pieces)
        plans, metadata = planned(list(entries_of(pieces)))
        json.dumps(metadata)
        times.append(time.perf_counter() - started)
        count = len(plans)
    return count, min(times)


def _pieces(layout: Simulated, data_rank: int) -> Iterator[Piece]:
    """What one data-parallel rank of the first stage writes: its share of the flat parameters."""
    model = ModelConfig(
        num_layers=LAYERS_OF_A_RANK * layout.data,
        hidden_size=8192,
        num_heads=64,
        vocab_size=32000,
        sequence_length=4096,
    )
    decoder = build_decoder(model, fake_mesh(TENSOR, 3), options=BuildOptions())
    named = list(decoder.named_parameters())
    share = -(-sum(parameter.numel() for _, parameter in named) // layout.data)
    begin, position = data_rank * share, 0
    for name, parameter in named:
        first = max(0, begin - position)
        last = min(parameter.numel(), begin + share - position)
        position += parameter.numel()
        if first < last:
            shard = shard_of(parameter, name)
            for kind in KINDS:
                data = torch.empty(last - first, device="meta")
                yield Piece(f"{kind}{shard.name}", shard, first, data)


def _seal(layout: Simulated, folder: Path) -> float:
    """Seconds in which rank 0 joins the records of all and writes the manifest."""
    (folder / RECORDS_FOLDER).mkdir(parents=True)
    for rank in range(layout.ranks):
        files = {
            f"{kind}/rank_{rank:05d}.safetensors": FileRecord(1, "0" * 64).to_json()
            for kind in ("weights", "optimizer")
        }
        record = folder / RECORDS_FOLDER / f"rank_{rank:05d}.json"
        record.write_text(json.dumps({"seconds": 1.0, "files": files}), encoding="utf-8")
    started = time.perf_counter()
    files: dict[str, FileRecord] = {}
    for each in join_records(folder, layout.ranks):
        files |= each.files
    place = Layout(TENSOR, layout.pipeline, layout.data, 1, "bf16")
    write_manifest(folder, Manifest(1, 1, place, files, state={}))
    return time.perf_counter() - started
