"""What a config.json of the Llama family and Qwen means where it leaves a key out."""

from __future__ import annotations

import pytest

from roots.exchange.hf.llama import LayerWindow


@pytest.mark.parametrize(
    "tree, window",
    [
        ({}, None),
        ({"sliding_window": 128}, None),
        ({"sliding_window": 128, "use_sliding_window": False}, None),
        ({"sliding_window": 128, "use_sliding_window": False, "max_window_layers": 0}, None),
        ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 0}, 128),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
        # 28 layers without a window come first unless said.
        ({"sliding_window": 128, "use_sliding_window": True, "num_hidden_layers": 24}, None),
    ],
)
def test_windows_of_qwen_are_for_models_that_ask(
    tree: dict[str, object], window: int | None
) -> None:
    assert LayerWindow().read(tree) == {"window": window}
