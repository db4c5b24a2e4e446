"""The datasets that rows of the table read, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from roots.data.indexed import IndexedWriter
from tests.helpers.runs import VOCAB_SIZE, write_dataset

DATASETS = ("text", "more", "pairs")


def write_datasets(folder: Path) -> Path:
    """Write all of DATASETS below `folder`, and return it."""
    write_dataset(folder / "text")
    write_dataset(folder / "more", documents=30, seed=8)
    for side in ("source", "target"):
        generator = np.random.default_rng(7)
        with IndexedWriter(folder / f"pairs.{side}", VOCAB_SIZE) as writer:
            for _ in range(40):
                length, first = (int(n) for n in generator.integers((2, 1), (14, 45)))
                writer.add(np.append(first + np.arange(length) * (side == "target"), 0))
            writer.finish(tokenizer="test", end_of_document=0)
    return folder


def placed(sources: Any, folder: Path) -> list[Any]:
    """A value of `data.train` or `data.valid` with the names of datasets turned into prefixes."""
    return [
        {**each, "prefix": str(folder / each["prefix"])}
        if isinstance(each, dict)
        else str(folder / each)
        for each in sources
    ]
