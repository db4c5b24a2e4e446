"""A few of the random configs, and that no field is left out of what they are drawn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.config.moe import MoEConfig
from roots.config.run import RunConfig
from roots.config.unread_fields import field_names
from roots.verify.proof import TOLERANCE, compare_all, write_data
from tests.verify.random_configs import Prover, legal
from tests.verify.random_fields import EXPERTS, LAYOUT, MODEL, OTHERS

# What a small copy has its own value of, or what says how long a run is and where things lie.
SIZES = {"architecture", "hidden_size", "num_heads", "num_encoder_layers", "sequence_length"}
SIZES |= {"source_length", "vocab_size", "vocab_multiple", "relative_max_distance"}
NOT_DRAWN: dict[str, set[str]] = {
    "training": {"steps", "precision", "micro_batch_size", "global_batch_size"},
    "optimizer": {"name", "implementation", "learning_rate", "epsilon"},
    "schedule": {
        "warmup_steps", "warmup_tokens", "decay_steps", "decay_tokens", "min_learning_rate",
    },
    "data": {
        "objective", "train", "valid", "split", "phase", "tokenizer", "begin_token", "mask_token",
        "sentinel_token", "pad_multiple", "group_batches", "cache_directory",
    },
    "ops": {"check_finite"},
    "parallel": {
        "expert", "zero_persistence_threshold", "offload_parameters", "nvme_path",
        "zero_quantized_weights", "zero_quantized_gradients",
    },
}  # fmt: skip


def test_every_field_is_drawn_or_said_not_to_be() -> None:
    model = {
        name for name in field_names() if "." not in name and name not in ("moe", "rotary_scaling")
    }
    assert model == set(MODEL) | SIZES
    assert set(MoEConfig.model_fields) == {"num_experts", *EXPERTS}
    for name, fields in {**OTHERS, "parallel": LAYOUT}.items():
        section = RunConfig.model_fields[name].annotation
        assert section is not None
        assert set(section.model_fields) == set(fields) | NOT_DRAWN[name]  # type: ignore[attr-defined]


@pytest.mark.distributed
@pytest.mark.parametrize("seed", [11, 12])
def test_a_random_config_raises_no_alarm(seed: int, tmp_path: Path) -> None:
    """The first one of its seed that takes two ranks."""
    drawn = next(each for each in legal(seed, write_data(tmp_path)) if each.ranks == 2)
    comparison, _ = compare_all(*Prover(tmp_path).curves(drawn))
    assert comparison.equal, (comparison.first, drawn.tree)
    assert max(each.relative for each in comparison.largest) < TOLERANCE / 2
