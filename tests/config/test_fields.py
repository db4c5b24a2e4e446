"""A wrong name is told with the field that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.config import load_config
from roots.config.fields import FOREIGN_NAMES, annotation_at, meant_by
from roots.errors import RootsError


def fix_of(override: str, tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(RootsError) as caught:
        load_config(path, [override])
    (line,) = caught.value.lines
    return line.partition("unknown key; ")[2]


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("steps=5", "did you mean training.steps=5 or evaluation.steps=5?"),
        ("learning_rate=1e-3", "did you mean optimizer.learning_rate=1e-3?"),
        ("training.learning_rate=0.5", "did you mean optimizer.learning_rate=0.5?"),
        ("num_experts=8", "did you mean model.moe.num_experts=8?"),
        ("wandb=yes", "did you mean tracking.wandb=true?"),
        ("global_batch_sise=8", "did you mean training.global_batch_size=8?"),
        ("global-batch-size=8", "did you mean training.global_batch_size=8?"),
        ("model.precision=fp16", "did you mean training.precision=fp16?"),
        ("train.steps=5", "did you mean training?"),
        ("optimizer.lr=1", "did you mean learning_rate?"),
        ("model.num_hidden_layers=2", "did you mean num_layers?"),
        ("model.num_attention_heads=4", "did you mean num_heads?"),
        ("model.block_size=64", "did you mean sequence_length?"),
        ("model.max_position_embeddings=64", "did you mean sequence_length?"),
        ("model.moe.intermediate_size=64", "did you mean ffn_hidden_size?"),
        ("model.rms_norm_eps=1e-6", "did you mean norm_epsilon?"),
        ("schedule.lr_decay_style=cosine", "did you mean name?"),
        ("optimizer.lr_scheduler_type=cosine", "did you mean schedule.name=cosine?"),
        ("evaluation.max_steps=5", "did you mean steps?"),
        ("lr=1", "did you mean optimizer.learning_rate=1?"),
        ("name=x", "did you mean run.name=x or optimizer.name=x or schedule.name=x?"),
        ("run.zzz=1", "use one of name, directory"),
    ],
)
def test_unknown_key_names_the_field_that_is_meant(override: str, fix: str, tmp_path: Path) -> None:
    assert fix_of(override, tmp_path) == fix


def test_names_of_other_programs_lead_to_fields() -> None:
    for name, field in FOREIGN_NAMES.items():
        assert annotation_at(field.split(".")) is not None, field
        assert meant_by((name,), 1), name
