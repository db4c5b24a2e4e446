"""A point of a run in the manifest of its checkpoint."""

from __future__ import annotations

import time

from roots.checkpoint.manifest import Layout
from roots.data.record import DataRecord
from roots.training.resume_point import ResumePoint


def test_manifest_tells_where_and_when() -> None:
    layout, data = Layout(1, 1, 1, 0, "fp32"), DataRecord(1, 16)
    before = int(time.time())
    point = ResumePoint(3, 24, evaluation=2.5, history={"losses": [1.0]}, data=data)
    found = point.manifest(layout, {}, {"updates": 3})
    assert (found.step, found.consumed_samples, found.layout) == (3, 24, layout)
    assert (found.evaluation, found.history, found.data) == (2.5, {"losses": [1.0]}, data)
    assert found.state == {"updates": 3}
    assert found.saved is not None
    assert before <= found.saved <= time.time()
