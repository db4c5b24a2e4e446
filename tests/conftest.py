"""What all tests share: GPU tests are skipped, with the reason, where there is no GPU."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from roots.device import device_count

    if device_count() == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and there is none here"))
