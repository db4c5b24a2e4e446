"""The arguments of a run of Megatron-LM, out of the common.pt beside its weights."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from roots.errors import RootsError, problem
from roots.exchange.foreign_folder import file_in
from roots.parallel.distributed_checkpoint import DAMAGE

_NEEDED = "give --config FILE with the `model` section of this model"


def stored_arguments(path: Path, *, needed: bool) -> Mapping[str, Any]:
    """The arguments in the file `path`; none where it has none and they are not `needed`.

    Nothing that the pickle names is run: objects of classes that torch does not know to be plain
    data, such as Megatron's enums, are left empty. Raises RootsError.
    """
    if file_in(path.parent, path.name) is None:
        if needed:
            raise RootsError(problem("arguments", str(path), "does not exist", _NEEDED))
        return {}
    try:
        tree = _load(path)
    except pickle.UnpicklingError:
        # torch's own words advise to read it as a program.
        rule = "is damaged, or holds more than plain data, which is never run"
        raise RootsError(problem("arguments", str(path), rule, _remedy(needed))) from None
    except (*DAMAGE, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        rule = f"is not readable as plain data ({reason})"
        raise RootsError(problem("arguments", str(path), rule, _remedy(needed))) from None
    arguments = tree.get("args") if isinstance(tree, dict) else None
    if arguments is None:
        if needed:
            raise RootsError(problem("arguments", str(path), "holds no `args`", _NEEDED))
        return {}
    found: Mapping[str, Any] = vars(arguments)
    return found


def _remedy(needed: bool) -> str:
    return _NEEDED if needed else "remove it, and the config alone says what the model is"


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Unread, name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True)


class _Unread:
    """Stands for an object of a class that is not loaded."""

    def __new__(cls, *_: object) -> _Unread:
        """Drop what the object was made from."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """As in `__new__`."""

    def __setstate__(self, _: object) -> None:
        """Drop the attributes."""
