"""Loading a kernel library: a prebuilt one that fits the sources at hand, else one built now.

Looked at in this order:
1. the folder named by ROOTS_KERNELS, whatever it was built from;
2. this package's folder, where `pip install` puts what it built ahead of time, if its stamp says
   that it was built from the sources at hand;
3. the cache, which builds what it does not have.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from roots.device import (
    build_environment,
    kernel_cache_folder,
    oldest_gpu,
    prebuilt_kernels_folder,
)
from roots.errors import RootsError
from roots.log import get_logger
from roots.ops.library.build import Plan
from roots.ops.library.cache import Cache, is_complete
from roots.ops.library.constant import constant_in_graphs
from roots.ops.library.stamp import Stamp, read_stamp, source_hash
from roots.ops.library.targets import ARCHITECTURES, Backend, library_name, make_target
from roots.ops.library.toolchain import BuildError, find_toolchain

_logger = get_logger("ops")
PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Loaded:
    """The outcome of loading: the library's path and stamp, or the reason why there is none."""

    path: Path | None
    stamp: Stamp | None
    reason: str


@constant_in_graphs
def load(backend: Backend) -> str:
    """Load the library of `backend`; "" when it is loaded, else the reason as a full sentence.

    The CUDA library needs the CPU library, which defines the schemas of both.
    """
    return loaded(backend).reason


@functools.cache
def loaded(backend: Backend) -> Loaded:
    """Load the library of `backend` once in this process and say what became of it."""
    if backend == "cuda":
        reason = _reason_against_gpu() or load("cpu")
        if reason:
            return Loaded(None, None, reason)
    try:
        path = find_or_build(backend)
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except (BuildError, RootsError, OSError) as error:
        reason = _missing(backend, error)
        _logger.warning("%s", reason)
        return Loaded(None, None, reason)
    _logger.info("loaded the %s kernels from %s", backend, path)
    return Loaded(path, read_stamp(path), "")


def available(backend: Backend) -> Loaded:
    """What loading would find without building anything; nothing is loaded either."""
    path = find(backend)
    if path is not None:
        return Loaded(path, read_stamp(path), "")
    try:
        plan = _plan(backend)
    except BuildError as error:
        return Loaded(None, None, _missing(backend, error))
    stamp = plan.stamp()
    try:
        path = Cache(kernel_cache_folder()).library(stamp)
    except RootsError as error:
        return Loaded(None, None, _missing(backend, error))
    if is_complete(path, stamp):
        return Loaded(path, read_stamp(path), "")
    return Loaded(None, None, f"the {backend} kernels are compiled at their first use.")


def find_or_build(backend: Backend) -> Path:
    """The library that `load` loads; it is built if it has to be. Raises BuildError, RootsError."""
    return find(backend) or Cache(kernel_cache_folder()).find_or_build(_plan(backend))


def find(backend: Backend) -> Path | None:
    """The library that was built ahead of time and fits, if there is one; nothing is built."""
    folder = prebuilt_kernels_folder()
    if folder is not None:
        named = folder / library_name(backend)
        if named.is_file():
            return named
    library = PACKAGE / library_name(backend)
    if not library.is_file():
        return None
    csrc = sources_folder()
    if csrc is None:
        return library
    stamp = read_stamp(library)
    if stamp is not None and stamp.sources == source_hash(make_target(backend, csrc), csrc):
        return library
    _logger.info("%s was built from other sources than %s holds: not used", library, csrc)
    return None


def sources_folder() -> Path | None:
    """The sources of the kernels: those of the checkout, or the copy in an installed package."""
    checkout = PACKAGE.parents[2] / "csrc"
    for folder in (checkout, PACKAGE / "csrc"):
        if (folder / "schemas.h").is_file():
            return folder
    return None


def _plan(backend: Backend) -> Plan:
    """What would be built here; raises BuildError where that cannot be."""
    csrc = sources_folder()
    if csrc is None:
        raise BuildError("their sources (csrc) are not part of this installation of ROOTS.")
    tools = find_toolchain(
        build_environment(), needs_cuda=backend != "cpu", needs_nvcc=backend == "cuda"
    )
    return Plan(make_target(backend, csrc), tools, csrc)


def _reason_against_gpu() -> str:
    """The machine code and the PTX are for GPUs from the first architecture on."""
    oldest, first = oldest_gpu(), ARCHITECTURES[0]
    if oldest is None or oldest >= (int(first[:-1]), int(first[-1])):
        return ""
    return (
        f"the CUDA kernels need a GPU of compute capability {first[:-1]}.{first[-1]}, and one here "
        f"has {oldest[0]}.{oldest[1]}."
    )


def _missing(backend: Backend, error: Exception) -> str:
    """One line that ends with a full stop."""
    return f"the {backend} kernels are missing: {' '.join(str(error).split()).rstrip('.')}."
