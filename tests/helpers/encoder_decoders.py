"""Small encoder-decoders for tests of what they write."""

from __future__ import annotations

from typing import Any

from roots.models.build import build_model
from roots.models.encoder_decoder import EncoderDecoder
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from tests.helpers.decoders import small_model


def small_encoder_decoder(*, seed: int = 1, **changes: Any) -> EncoderDecoder:
    """A model of two layers on either side in fp32, initialised far from uniform."""
    fields = {"architecture": "encoder_decoder", "init_std": 0.3, **changes}
    model = small_model(**fields)
    network = build_model(model, Mesh.single(), options=BuildOptions())
    initialise(network, seed, model)
    assert isinstance(network, EncoderDecoder)
    return network.eval()
