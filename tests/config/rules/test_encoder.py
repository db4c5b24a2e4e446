"""Rules of encoders and encoder-decoders, each with the exact line it gives."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import parse_config
from roots.config.rules.encoder import ENCODER_RULES, folded_stages_send_x_alone
from roots.config.rules.table import cross_section_problems
from roots.config.run import RunConfig
from roots.errors import RootsError

PAIR = {"architecture": "encoder_decoder"}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "encoder_fields_need_an_encoder": (
        {"model": {"source_length": 64}},
        "model.source_length=64: has no effect with model.architecture=decoder; "
        "set model.architecture=encoder_decoder, or model.source_length=null",
    ),
    "sinusoids_need_an_even_width": (
        {"model": {"position": "sinusoidal", "hidden_size": 33, "num_heads": 3}},
        "model.hidden_size=33: must be even with model.position=sinusoidal; "
        "set it to 34, or use another position encoding",
    ),
    "far_distances_need_buckets": (
        {"model": {"position": "relative", "relative_max_distance": 16}},
        "model.relative_max_distance=16: must be above half of model.relative_buckets=32; "
        "set it to 128",
    ),
    "encoders_on_whole_rows": (
        {"model": PAIR, "parallel": {"sequence": True}},
        "parallel.sequence=True: must be false with model.architecture=encoder_decoder, whose "
        "layers need whole rows; set parallel.sequence=false and raise parallel.tensor instead",
    ),
    "biased_scores_on_whole_rows": (
        {"model": {"position": "alibi"}, "parallel": {"context": 2}},
        "parallel.context=2: must be 1 with model.position=alibi; "
        "set model.position=rotary, or parallel.context=1",
    ),
    "transform_on_whole_rows": (
        {"model": {"head_transform": True}, "parallel": {"sequence": True, "tensor": 2}},
        "parallel.sequence=True: must be false with model.head_transform=true; "
        "set parallel.sequence=false, or model.head_transform=false",
    ),
    "one_stack_options": (
        {"model": {"architecture": "encoder", "window": 8}},
        "model.window=8: must be null with model.architecture=encoder, whose encoder sees whole "
        "rows; set model.window=null",
    ),
    "parallel_branches_have_norms_before": (
        {"model": {"parallel_residual": True, "norm_position": "post"}},
        "model.norm_position='post': must be pre with model.parallel_residual=true; "
        "set model.norm_position=pre, or model.parallel_residual=false",
    ),
}


@pytest.mark.parametrize("rule", list(ENCODER_RULES), ids=lambda rule: rule.__name__)
def test_violated_rule_says_field_value_rule_and_fix(rule: Any) -> None:
    if rule is folded_stages_send_x_alone:
        # The schedule that it is about has no name in this version.
        config = RunConfig.model_validate({"model": PAIR})
        folded = config.parallel.model_copy(
            update={"pipeline": 2, "pipeline_schedule": "dualpipev"}
        )
        config = config.model_copy(update={"parallel": folded})
        line = (
            "parallel.pipeline_schedule='dualpipev': cannot run with "
            "model.architecture=encoder_decoder; set parallel.pipeline_schedule=1f1b"
        )
    else:
        tree, line = CASES[rule.__name__]
        config = RunConfig.model_validate(tree)
    assert list(rule(config)) == [line]
    assert line in cross_section_problems(config)


def test_branches_beside_each_other_leave_no_place_for_the_source() -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"model": {**PAIR, "parallel_residual": True}})
    assert caught.value.lines == (
        "model.parallel_residual=True: must be false with model.architecture=encoder_decoder, "
        "whose decoder reads the encoder between attention and MLP; "
        "set model.parallel_residual=false",
    )


def test_stages_are_counted_over_both_stacks() -> None:
    model = {**PAIR, "num_layers": 2, "num_encoder_layers": 3}
    parse_config({"model": model, "parallel": {"pipeline": 5}})
    with pytest.raises(RootsError) as caught:
        parse_config({"model": model, "parallel": {"pipeline": 6}})
    assert caught.value.lines == (
        "parallel.pipeline=6: must be at most model.num_encoder_layers + model.num_layers=5; "
        "set parallel.pipeline to 5 or less, or add layers",
    )
