"""What the stock tool is told of a checkpoint, and that it is told nothing it would get wrong."""

from __future__ import annotations

from dataclasses import replace

from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_INFO

from roots.checkpoint.zero_universal import universal_checkpoint_info
from roots.parallel.shard import replicated


def test_checkpoints_with_experts_spread_out_are_not_announced() -> None:
    """Each rank of the expert axis has other experts under one name: the tool would join them."""
    norm = ("layers.0.norm.weight", replicated("layers.0.norm.weight", (8,)))
    expert = replicated("layers.0.mlp.experts.1.down.weight", (8, 4))
    name = "layers.0.mlp.experts.down_0"
    assert UNIVERSAL_CHECKPOINT_INFO in universal_checkpoint_info([norm, (name, expert)], 1)
    assert universal_checkpoint_info([norm, (name, replace(expert, expert=True))], 1) == {}
