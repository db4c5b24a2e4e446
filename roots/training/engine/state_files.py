"""DeepSpeed's files of a checkpoint: read as data, for they are pickles and run nothing here.

DeepSpeed unpickles whatever a file names, so that a folder of somebody else would be as trusted as
a program. Its states need four classes of its own besides what torch takes for weights.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import ZERO_STAGE
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from roots.errors import RootsError, problem

NEEDED = (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)
_NEEDED_NAMES = frozenset(f"{each.__module__}.{each.__qualname__}" for each in NEEDED)


def foreign_names(path: Path) -> list[str]:
    """What the pickle in `path` names beside data and NEEDED, sorted; nothing is loaded."""
    try:
        return sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - _NEEDED_NAMES)
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return ["something else than torch.save writes"]


def foreign_state(path: Path, found: str) -> str:
    """The line that refuses `path` for `found` in it."""
    rule = f"holds {found}, and no training state does; it was not loaded"
    return problem("checkpoint file", str(path), rule, "resume from a checkpoint that ROOTS saved")


def read_state(path: str, map_location: Any = None) -> Any:
    """What `torch.load` gives, of data and NEEDED alone. Raises RootsError for anything else."""
    try:
        with safe_globals(list(NEEDED)):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        found = ", ".join(foreign_names(Path(path))) or "a pickle of another kind"
        raise RootsError(foreign_state(Path(path), found)) from None


@contextmanager
def read_as_data(engine: Any) -> Iterator[None]:
    """Within it DeepSpeed's engine loads its files by `read_state`."""
    reader = engine.checkpoint_engine
    reader.load = read_state
    try:
        yield
    finally:
        del reader.load


def name_zero_stage(optimizer: Any) -> None:
    """Add to saved states the stage, which DeepSpeed's bf16 optimizer leaves out.

    Without that key DeepSpeed's own zero_to_fp32 takes the file for no ZeRO checkpoint at all.
    """
    original = optimizer.state_dict
    optimizer.state_dict = lambda: {**original(), ZERO_STAGE: 1}
