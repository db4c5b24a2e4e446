"""DeepSpeed's start, without the seconds that it spends on what ROOTS never runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_DISABLED = "TORCHDYNAMO_DISABLE"


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimizer before DeepSpeed does, with torch.compile off.

    deepspeed.initialize asks of every optimizer whether it is a Muon. That import decorates three
    functions with torch.compile, which loads Inductor: 4 seconds of processor time in each rank
    (torch 2.13, deepspeed 0.19), for an optimizer that ROOTS does not offer. A DeepSpeed without
    that module needs nothing.
    """
    with _compilation_off(), contextlib.suppress(ImportError):
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401


@contextlib.contextmanager
def _compilation_off() -> Iterator[None]:
    """torch.compile returns what it is given, as torch's own switch in the environment says."""
    before = os.environ.get(_DISABLED)
    os.environ[_DISABLED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DISABLED]
        else:
            os.environ[_DISABLED] = before
