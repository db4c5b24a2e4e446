"""Every problem at once: overrides, bounds and rules together, without false follow-up errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.config import RunConfig, load_config, parse_config
from roots.config.rules.batch import batch_rule
from roots.config.rules.table import has_training_data
from roots.errors import RootsError


def lines_of(tree: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        parse_config(tree)
    return caught.value.lines


def test_overrides_bounds_and_rules_come_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training: {steps: -1, micro_batch_size: 3}\nparallel: {zero_stage: 2}\n")
    overrides = ["parallel.pipeline=2", "steps"]
    rules = [has_training_data, batch_rule(4)]
    with pytest.raises(RootsError) as caught:
        load_config(path, overrides, rules=rules)
    assert [line.split(":")[0] for line in caught.value.lines] == [
        "override='steps'",
        "training.steps=-1",
        "parallel.zero_stage=2",
        "data.train=[]",
        "training.global_batch_size=32",
    ]


@pytest.mark.parametrize(
    ("tree", "lines"),
    [
        # The default of 4 heads would not divide by 3, but nobody asked for 4.
        ({"model": {"num_heads": 0}, "parallel": {"tensor": 3}}, 1),
        ({"model": {"num_head": 6}, "parallel": {"tensor": 3}}, 1),
        ({"modle": {"num_layers": 8}, "parallel": {"pipeline": 8}}, 1),
        ({"model": [1], "parallel": {"pipeline": 8}}, 1),
        # A head of 7 dimensions is violated whatever else the section holds.
        ({"model": {"num_heads": 7, "num_layers": 0}, "parallel": {"pipeline": 8}}, 2),
        ({"model": {1: 2, "num_heads": 7}}, 2),
        ({5: 2, "model": {"num_heads": 7}}, 2),
        # A section within a section: only its own field is unknown.
        ({"model": {"moe": {"num_experts": 4, "top_k": 0}}, "parallel": {"expert": 3}}, 2),
        ({"model": {"moe": {"num_expert": 4, "top_k": 9}}, "parallel": {"expert": 4}}, 1),
        ({"model": {"moe": 3, "num_heads": 7}, "parallel": {"expert": 4}}, 2),
    ],
)
def test_rules_say_nothing_of_a_field_that_was_refused(tree: dict[str, Any], lines: int) -> None:
    assert len(lines_of(tree)) == lines


def test_problem_in_a_nested_section_has_its_whole_path() -> None:
    assert lines_of({"model": {"moe": {"top_k": 0, "num_expert": 4}}}) == (
        "model.moe.top_k=0: input should be greater than 0; "
        "give experts that each token goes to (default 2)",
        "model.moe.num_expert=4: unknown key; did you mean num_experts?",
    )


def test_refused_config_leaves_the_defaults_whole() -> None:
    lines_of({"model": {"num_heads": 0}, "parallel": {"tensr": 1}})
    lines_of({"modle": {}})
    assert parse_config({}) == RunConfig()
    assert (RunConfig().model.num_heads, RunConfig().parallel.tensor) == (4, 1)


def test_bug_in_a_rule_is_not_taken_for_a_missing_field(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("{}\n")
    with pytest.raises(AttributeError, match="no_such_field"):
        load_config(path, rules=[lambda config: [config.model.no_such_field]])  # type: ignore[attr-defined]


def test_problem_inside_a_list_names_its_item_and_the_known_keys() -> None:
    sources = [{"prefix": "a"}, {"prefix": "b", "wieght": 2, "weight": -1}]
    assert lines_of({"data": {"train": sources}}) == (
        "data.train[1].weight=-1: input should be greater than 0; "
        "give share of samples, relative to the other sources (default 1.0)",
        "data.train[1].wieght=2: unknown key; did you mean weight?",
    )


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", float("inf"), float("nan")])
@pytest.mark.parametrize("path", ["optimizer.learning_rate", "training.gradient_clipping"])
def test_floats_are_finite(path: str, text: str | float) -> None:
    section, field = path.split(".")
    (line,) = lines_of({section: {field: text}})
    assert line.startswith(f"{path}={text!r}: input should be a finite number; give ")


@pytest.mark.parametrize("text", ["1e3", "1.0e+3", "0.5e4", "5E3", "2000.0"])
def test_whole_numbers_may_be_written_with_an_exponent(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"schedule: {{warmup_tokens: {text}}}\n")
    config = load_config(path, [f"training.steps={text}"])
    assert config.schedule.warmup_tokens == config.training.steps == float(text)
    assert isinstance(config.schedule.warmup_tokens, int)


@pytest.mark.parametrize("text", ["1.5e0", "1e-3", "1e999", "1e3x"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    (line,) = lines_of({"training": {"steps": text}})
    assert line.startswith(f"training.steps={text!r}: input should be a valid integer")


def test_exponent_form_stays_text_where_text_is_due() -> None:
    assert parse_config({"run": {"name": "1e3"}}).run.name == "1e3"


def test_implementation_that_no_op_has_is_refused() -> None:
    assert lines_of({"ops": {"attention": "flash", "rms_norm": "torch_sdpa"}}) == (
        "ops.attention='flash': input should be 'auto', 'roots', 'simulator', 'torch_sdpa' or "
        "'reference'; "
        "give fused softmax-attention (default 'auto')",
        "ops.rms_norm='torch_sdpa': input should be 'auto', 'roots', 'simulator', 'torch' or "
        "'reference'; give RMS norm (default 'auto')",
    )
