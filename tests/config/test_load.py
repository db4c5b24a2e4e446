"""Reading configs: extends, overrides, and every mistake with its exact line."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.config import RunConfig, dump_config, load_config, parse_config
from roots.errors import RootsError

CONFIGS = Path(__file__).parents[2] / "configs"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        load_config(path, overrides)
    return caught.value.lines


def test_extends_merges_sections_and_the_nearest_file_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "model: {num_layers: 2, num_heads: 2}\ntraining: {seed: 1}\n")
    write(tmp_path / "b.yaml", "model: {num_layers: 3}\n")
    path = write(tmp_path / "c.yaml", "extends: [a.yaml, b.yaml]\ntraining: {seed: 9}\n")
    config = load_config(path)
    assert (config.model.num_layers, config.model.num_heads, config.training.seed) == (3, 2, 9)


def test_sections_within_sections_are_merged_and_overridden_field_by_field(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "model: {moe: {num_experts: 8, top_k: 4, every: 2}}\n")
    path = write(tmp_path / "b.yaml", "extends: a.yaml\nmodel: {moe: {top_k: 3}}\n")
    config = load_config(path, ["model.moe.every=1", "model.moe.z_loss=1e-3"])
    moe = config.model.moe
    assert (moe.num_experts, moe.top_k, moe.every, moe.z_loss) == (8, 3, 1, 1e-3)
    assert load_config(write(tmp_path / "c.yaml", dump_config(config))) == config


def test_overrides_win_and_are_read_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "model: {num_layers: 2}\n")
    overrides = [
        "model.num_layers=7",
        "model.num_kv_heads=null",
        "data.train=[a, {prefix: b, weight: 2}]",
        "optimizer.learning_rate=1e-5",
        "run.name=x",
    ]
    config = load_config(path, overrides)
    assert config.model.num_layers == 7
    assert [source.prefix for source in config.data.train] == ["a", "b"]
    assert [source.weight for source in config.data.train] == [1.0, 2.0]
    assert config.optimizer.learning_rate == 1e-5


def test_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    config = parse_config({"data": {"train": ["a"], "split": "8,1,1"}, "run": {"name": "r"}})
    assert load_config(write(tmp_path / "c.yaml", dump_config(config))) == config


def test_all_problems_come_at_once_with_path_value_rule_and_fix(tmp_path: Path) -> None:
    text = "model: {hidden_sise: 3, num_layers: -1}\nparallel: {tensor: many}\nmodle: {}\n"
    assert lines_of(write(tmp_path / "c.yaml", text)) == (
        "model.num_layers=-1: input should be greater than 0; "
        "it is: number of Transformer blocks (default 4)",
        "model.hidden_sise=3: unknown key; did you mean hidden_size?",
        "parallel.tensor='many': input should be a valid integer, unable to parse string as an "
        "integer; it is: tensor-parallel ranks (Shoeybi et al. 2019) (default 1)",
        "modle={}: unknown key; did you mean model?",
    )


def test_unknown_key_without_a_near_name_lists_the_known_ones() -> None:
    with pytest.raises(RootsError) as caught:
        parse_config({"run": {"zzz": 1}})
    assert caught.value.lines == ("run.zzz=1: unknown key; use one of name, directory",)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("steps", "override='steps': must read section.key=value; write it that way"),
        (
            "run.name.first=x",
            "run.name.first='x': `name` is a value, not a section; shorten the path",
        ),
    ],
)
def test_malformed_override_is_named(tmp_path: Path, override: str, line: str) -> None:
    path = write(tmp_path / "c.yaml", "run: {name: r}\n")
    assert lines_of(path, override) == (line,)


@pytest.mark.parametrize("parents", ["5", "[1]", "{a: b}"])
def test_extends_that_names_no_file_is_refused(tmp_path: Path, parents: str) -> None:
    (line,) = lines_of(write(tmp_path / "c.yaml", f"extends: {parents}\n"))
    assert line.startswith(f"extends of {tmp_path / 'c.yaml'}=")
    assert line.endswith(
        ": must name files; write `extends: base.yaml` or `extends: [a.yaml, b.yaml]`"
    )


def test_impossible_date_in_an_override_is_text(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "{}\n")
    assert load_config(path, ["run.name=2024-13-45"]).run.name == "2024-13-45"


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert lines_of(path) == (
        f"config file='{path}': does not exist; "
        "give the path of a YAML file, for example configs/model/tiny.yaml",
    )


def test_missing_parent_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "extends: none.yaml\n")
    assert lines_of(path)[0].startswith(f"config file='{tmp_path / 'none.yaml'}': does not exist;")


def test_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    path = write(tmp_path / "b.yaml", "extends: a.yaml\n")
    assert lines_of(path) == (
        "extends='b.yaml -> a.yaml -> b.yaml': must not go in a circle; remove one link",
    )


def test_broken_yaml_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "model: {a: 1\nrun: ]\n")
    (line,) = lines_of(path)
    assert line.startswith(f"config file='{path}': is not YAML (")
    assert "\n" not in line
    assert line.endswith("; mend that line")


def test_impossible_date_in_a_file_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "run: {name: 2024-13-45}\n")
    (line,) = lines_of(path)
    assert line.startswith(f"config file='{path}': is not YAML (month must be in 1..12")
    assert line.endswith("); mend that line")


def test_config_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "- 1\n")
    assert lines_of(path) == (
        f"config file='{path}': must hold sections such as `model:`, not a list; "
        "see configs/base.yaml",
    )


def test_config_is_frozen() -> None:
    config = parse_config({})
    with pytest.raises(ValueError, match="frozen"):
        config.model.num_layers = 3  # type: ignore[misc]


def test_base_spells_out_every_default() -> None:
    import yaml

    tree = yaml.safe_load((CONFIGS / "base.yaml").read_text(encoding="utf-8"))
    default = RunConfig.model_validate({})
    assert load_config(CONFIGS / "base.yaml") == default
    assert keys_of(tree) == keys_of(default.model_dump())


def keys_of(tree: object) -> object:
    """The keys of a tree, level by level."""
    return {key: keys_of(tree[key]) for key in tree} if isinstance(tree, dict) else None


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_resolves(path: Path) -> None:
    assert isinstance(load_config(path), RunConfig)


@pytest.mark.parametrize(
    ("name", "dimensions", "billions"),
    [
        ("gpt-125m", (12, 768, 12), 0.125),
        ("gpt-350m", (24, 1024, 16), 0.355),
        ("gpt-1.3b", (24, 2048, 16), 1.315),
        ("gpt-2.7b", (32, 2560, 32), 2.65),
        ("gpt-6.7b", (32, 4096, 32), 6.66),
        ("gpt-13b", (40, 5120, 40), 12.85),
        ("gpt-175b", (96, 12288, 96), 174.6),
    ],
)
def test_gpt3_models_have_the_papers_dimensions(
    name: str, dimensions: tuple[int, int, int], billions: float
) -> None:
    from roots.planner.parameters import count_parameters

    model = load_config(CONFIGS / "model" / f"{name}.yaml").model
    assert (model.num_layers, model.hidden_size, model.num_heads) == dimensions
    assert count_parameters(model).total / 1e9 == pytest.approx(billions, rel=0.01)
