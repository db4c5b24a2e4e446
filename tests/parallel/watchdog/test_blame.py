"""Errors that another rank may have caused are told from those of this one."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from roots.errors import RootsError
from roots.parallel.watchdog.blame import is_of_communication

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")


@pytest.mark.parametrize("error", [GLOO, dist.DistNetworkError("reset"), dist.DistStoreError("x")])
def test_errors_of_communication_are_found_below_others(error: Exception) -> None:
    assert is_of_communication(error)
    above = RootsError("MASTER_ADDR:MASTER_PORT: all processes must meet there")
    above.__cause__ = error
    assert is_of_communication(above)


@pytest.mark.parametrize(
    "error", [None, ValueError("connection"), RuntimeError("no room"), OSError(98, "in use")]
)
def test_others_are_not(error: Exception | None) -> None:
    assert not is_of_communication(error)
