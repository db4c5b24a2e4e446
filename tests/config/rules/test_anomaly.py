"""What `anomaly` and `checks` cannot do, with the exact lines that say so."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import parse_config
from roots.errors import RootsError

NVME = {"zero_stage": 3, "offload_optimizer": "nvme", "nvme_path": "/disk"}


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"anomaly": {"spike": "rewind"}, "parallel": NVME},
            "anomaly.spike='rewind': needs a snapshot in memory of all that is trained, of which "
            "parallel.offload_* keeps a part on NVMe; set anomaly.spike=skip, or offload to cpu",
        ),
        (
            {"anomaly": {"non_finite": "rewind"}, "parallel": NVME},
            "anomaly.non_finite='rewind': needs a snapshot in memory of all that is trained, of "
            "which parallel.offload_* keeps a part on NVMe; set anomaly.non_finite=skip, or "
            "offload to cpu",
        ),
        (
            {"checks": {"replay_every_steps": 5}, "parallel": {"zero_stage": 3}},
            "checks.replay_every_steps=5: needs whole weights, and with parallel.zero_stage=3 a "
            "rank has a part of each; set checks.replay_every_steps=0",
        ),
        (
            {"checks": {"replay_every_steps": 5}, "parallel": {"pipeline": 2}},
            "checks.replay_every_steps=5: needs whole models, and with parallel.pipeline > 1 a "
            "rank has a part of the layers; set checks.replay_every_steps=0",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(tree: dict[str, Any], line: str) -> None:
    with pytest.raises(RootsError) as caught:
        parse_config(tree)
    assert caught.value.lines == (line,)


def test_data_is_planned_for_what_may_be_jumped_over() -> None:
    assert parse_config({}).anomaly.spare_batches == 0
    settings = {"anomaly": {"spike": "rewind", "max_rewinds": 3}}
    assert parse_config(settings).anomaly.spare_batches == 3
