"""What `roots info` shows of the kernel libraries: built or not, with what, or why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from roots.ops.library.load import Loaded, available, loaded
from roots.ops.library.targets import BACKENDS, Backend

State = Literal["loaded", "built", "not built", "not loaded"]


@dataclass(frozen=True)
class LibraryStatus:
    """A kernel library here. `path` is None where there is none; `reason` then says why."""

    backend: Backend
    state: State
    path: str | None
    torch: str
    cuda: str
    architectures: tuple[str, ...]
    compiler: str
    reason: str


def library_statuses(devices: Iterable[str]) -> list[LibraryStatus]:
    """The status of every library; those of `devices` ("cpu", "cuda") are loaded to find out."""
    wanted = set(devices)
    return [_status(backend, load_it=backend in wanted) for backend in BACKENDS]


def _status(backend: Backend, load_it: bool) -> LibraryStatus:
    found = loaded(backend) if load_it else available(backend)
    stamp = found.stamp
    return LibraryStatus(
        backend=backend,
        state=_state(found, load_it),
        path=None if found.path is None else str(found.path),
        torch="" if stamp is None else stamp.torch,
        cuda="" if stamp is None else stamp.cuda,
        architectures=() if stamp is None else stamp.architectures,
        compiler="" if stamp is None else stamp.compiler,
        reason=found.reason,
    )


def _state(found: Loaded, load_it: bool) -> State:
    if found.path is None:
        return "not loaded" if load_it else "not built"
    return "loaded" if load_it else "built"
