"""What a config.json of T5 says of its head."""

from __future__ import annotations

import pytest

from roots.exchange.hf.t5 import Head


@pytest.mark.parametrize(
    "tree, tied, scale",
    [
        ({}, True, 512**-0.5),
        ({"d_model": 64}, True, 0.125),
        ({"d_model": 64, "tie_word_embeddings": False}, False, 1.0),
        ({"d_model": 64, "tie_word_embeddings": True, "scale_decoder_outputs": False}, True, 1.0),
        (
            {"d_model": 64, "tie_word_embeddings": False, "scale_decoder_outputs": True},
            False,
            0.125,
        ),
    ],
)
def test_tied_heads_are_scaled(tree: dict[str, object], tied: bool, scale: float) -> None:
    assert Head().read(tree) == {"tied_embeddings": tied, "head_scale": scale}
