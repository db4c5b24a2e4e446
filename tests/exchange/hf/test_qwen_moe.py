"""What a config.json of Qwen's mixtures of experts means where it leaves a key out."""

from __future__ import annotations

import pytest

from roots.exchange.hf.qwen_moe import ExpertFields

transformers = pytest.importorskip("transformers", reason="the `hf` extra is not installed")


@pytest.mark.parametrize("name", ["Qwen2MoeConfig", "Qwen3MoeConfig"])
@pytest.mark.parametrize(
    "tree, normalised",
    [({}, False), ({"norm_topk_prob": False}, False), ({"norm_topk_prob": True}, True)],
)
def test_probabilities_of_the_chosen_are_normalised_if_asked(
    name: str, tree: dict[str, object], normalised: bool
) -> None:
    assert getattr(transformers, name)().norm_topk_prob is False
    section = ExpertFields(60, 4, 1408, shared=False).read(tree)["moe"]
    assert section["normalise_weights"] is normalised
