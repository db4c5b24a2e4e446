"""Arrays on disk under a fingerprint: built once per node, memory-mapped by every rank.

In the cache folder, for a fingerprint F:
    F.<name>.npy   one file per array, numpy's own format
    F.json         format "roots-index", version 1, what the arrays are for, and the type and
                   shape of each; written last, so that its presence means that all are whole
    F.lock         held while building (see roots.lock)
The folder may be removed at any time between runs.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import tokenize
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roots.errors import RootsError, cure_of, problem
from roots.files import publish, removed_on_error, write_atomically
from roots.lock import Place, file_lock
from roots.log import get_logger

Arrays = Mapping[str, NDArray[Any]]
Purpose = Mapping[str, str | int | float | list[float]]

DEFAULT_FOLDER = "index-cache"
# Below the time after which ranks that wait in a collective give up (roots.parallel.process).
LOCK_TIMEOUT_SECONDS = 1500.0
_PLACE = Place(
    "index cache",
    "the sample index is kept there",
    "set data.cache_directory to a folder of this machine that can be written",
)
_FORMAT = "roots-index"
_VERSION = 1
# What reading a damaged manifest or array raises.
_DAMAGES = (
    ValueError,
    LookupError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    RecursionError,
    MemoryError,
    # numpy parses the header of an array as Python.
    SyntaxError,
    tokenize.TokenError,
)
# After which an unfinished array belongs to no process that still writes it.
_LEFTOVER_SECONDS = 3600.0


def fingerprint(purpose: Purpose) -> str:
    """Hash what determines the content of the arrays, and the version of this format."""
    text = json.dumps({"version": _VERSION, **purpose}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cached_arrays(
    folder: Path,
    purpose: Purpose,
    build: Callable[[], Arrays],
    *,
    timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
) -> Arrays:
    """Return the arrays of `purpose`, memory-mapped, building them where they are not cached.

    The first process to ask builds, the others wait for just that. Raises RootsError where the
    folder cannot be written, or after waiting `timeout_seconds` for another process.
    """
    name = fingerprint(purpose)
    found = _load(folder, name)
    if found is not None:
        return found
    with file_lock(
        folder / f"{name}.lock",
        timeout_seconds,
        _PLACE,
        done=lambda: _load(folder, name) is not None,
    ) as held:
        if held is not None:
            _store(folder, name, purpose, build())
    found = _load(folder, name)
    if found is None:
        rule = "was removed while it was being used"
        raise RootsError(problem(str(folder / f"{name}.json"), None, rule, "start again"))
    return found


def _load(folder: Path, name: str) -> Arrays | None:
    """Map the arrays; None where they are absent or not whole."""
    manifest = folder / f"{name}.json"
    try:
        described = dict(json.loads(manifest.read_bytes())["arrays"])
        arrays = {
            key: np.load(folder / f"{name}.{key}.npy", mmap_mode="r", allow_pickle=False)
            for key in described
        }
    except FileNotFoundError:
        return None
    except _DAMAGES as error:
        get_logger("data").warning("%s: cached index is damaged (%s); building it", manifest, error)
        return None
    # numpy's loader gives no array for a file that is an archive.
    whole = all(isinstance(array, np.ndarray) for array in arrays.values())
    if not whole or {key: _describe(array) for key, array in arrays.items()} != described:
        get_logger("data").warning("%s: cached index is damaged; building it again", manifest)
        return None
    return arrays


def _store(folder: Path, name: str, purpose: Purpose, arrays: Arrays) -> None:
    _remove_leftovers(folder, name)
    token = secrets.token_hex(4)
    described = {key: _describe(array) for key, array in arrays.items()}
    content = {"format": _FORMAT, "version": _VERSION, "purpose": purpose, "arrays": described}
    try:
        for key, array in arrays.items():
            temporary = folder / f"{name}.{key}.{token}.partial"
            with removed_on_error(temporary):
                with open(temporary, "wb") as file:
                    np.save(file, array, allow_pickle=False)
                publish(temporary, folder / f"{name}.{key}.npy")
        write_atomically(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        rule = f"cannot be written ({error.strerror}), and the sample index is kept there"
        fix = f"{cure_of(error)}, or set data.cache_directory to another folder"
        raise RootsError(problem("index cache", str(folder), rule, fix)) from None


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove what builders of this entry left that were killed; that of a live one is younger."""
    for path in folder.glob(f"{name}.*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()


def _describe(array: NDArray[Any]) -> dict[str, object]:
    return {"dtype": array.dtype.str, "shape": list(array.shape)}
