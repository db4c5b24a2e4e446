"""Small datasets and configs for tests that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from roots.config import RunConfig, parse_config
from roots.data.indexed import IndexedWriter

VOCAB_SIZE = 61


def write_dataset(prefix: Path, *, documents: int = 40, seed: int = 7) -> Path:
    """Write short documents that can be learned: each counts up from a random token."""
    generator = np.random.default_rng(seed)
    with IndexedWriter(prefix, VOCAB_SIZE) as writer:
        for _ in range(documents):
            length, first = int(generator.integers(5, 60)), int(generator.integers(1, VOCAB_SIZE))
            tokens = 1 + (first + np.arange(length)) % (VOCAB_SIZE - 1)
            writer.add(np.append(tokens, 0))
        writer.finish(tokenizer="test", end_of_document=0)
    return prefix


def small_config(prefix: Path, folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """A model that trains in seconds; `sections` override fields section by section."""
    tree: dict[str, dict[str, Any]] = {
        "run": {"name": "test", "directory": str(folder)},
        "model": {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "vocab_size": VOCAB_SIZE,
            "vocab_multiple": 8,
            "sequence_length": 16,
        },
        "training": {
            "steps": 4,
            "precision": "fp32",
            "micro_batch_size": 2,
            "global_batch_size": 8,
        },
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"warmup_steps": 2, "min_learning_rate": 1e-3},
        "data": {"train": [str(prefix)], "valid": [str(prefix)]},
        "evaluation": {"every_steps": 0, "steps": 2},
        "checkpoint": {"every_steps": 0},
        "tracking": {"tensorboard": False, "log_every_steps": 1},
    }
    for name, fields in sections.items():
        tree.setdefault(name, {}).update(fields)
    return parse_config(tree)
