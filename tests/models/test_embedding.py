"""Token vectors and what is added to them before the first block."""

from __future__ import annotations

import pytest
import torch

from roots.models.embedding import sinusoids
from tests.helpers.decoders import small_decoder, small_model


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])
def test_tokens_alone_are_scaled(position: str) -> None:
    """scale * token + position + segment, as in the original Transformer."""
    model = small_model(embedding_scale=3.0, token_types=2, position=position)
    embedding = small_decoder(model).embedding
    tokens_BT = torch.tensor([[5, 7, 7, 99], [0, 1, 2, 3]])
    with torch.no_grad():
        x_BTH, *_ = embedding((tokens_BT, torch.zeros_like(tokens_BT), torch.zeros(2)))
        expected_BTH = 3.0 * embedding.tokens.weight[tokens_BT] + embedding.token_types.weight[0]
        if position == "learned":
            expected_BTH = expected_BTH + embedding.positions.weight[:4]
        if position == "sinusoidal":
            expected_BTH = expected_BTH + sinusoids(torch.arange(4), model.hidden_size)
    torch.testing.assert_close(x_BTH, expected_BTH)
