"""DeepSpeed's start, without the seconds that it spends on what ROOTS never runs."""

from __future__ import annotations

import contextlib

from roots.device import temporary_environment


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimizer before DeepSpeed does, with torch.compile off.

    deepspeed.initialize asks of every optimizer whether it is a Muon. That import decorates three
    functions with torch.compile, which loads Inductor: 4 seconds of processor time in each rank
    (torch 2.13, deepspeed 0.19), for an optimizer that ROOTS does not offer. A DeepSpeed without
    that module needs nothing.
    """
    with temporary_environment("TORCHDYNAMO_DISABLE", "1"), contextlib.suppress(ImportError):
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
