"""Reading configs: extends, overrides, and every mistake with its exact line."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.config import RunConfig, dump_config, load_config, parse_config
from roots.errors import RootsError
from tests.helpers.sources import configs

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
        "give number of Transformer blocks (default 4)",
        "model.hidden_sise=3: unknown key; did you mean hidden_size?",
        "parallel.tensor='many': input should be a valid integer, unable to parse string as an "
        "integer; give tensor-parallel ranks (Shoeybi et al. 2019) (default 1)",
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
        "give the path of a YAML file, for example configs/model/tiny.yaml; "
        "`roots config list` and `roots config copy NAME` bring those of ROOTS",
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


@pytest.mark.parametrize(
    "text",
    ["20241130", "007", "on", "1e3", "yes", "null", "2024-13-45", "0x10", "1_000", "True", "None"],
)
def test_text_field_takes_what_was_typed(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", f"run: {{name: {text}}}\ndata: {{train: [{text}, a]}}\n")
    config = load_config(path)
    assert (config.run.name, config.data.train[0].prefix) == (text, text)
    path = write(tmp_path / "d.yaml", "run: {name: r}\n")
    config = load_config(path, [f"run.name={text}", f"checkpoint.resume={text}"])
    assert (config.run.name, config.checkpoint.resume) == (text, text)
    assert load_config(write(tmp_path / "e.yaml", dump_config(config))) == config


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("my project #2", "my project #2"),
        ("a: b", "a: b"),
        ("'007'", "007"),
        ('"on"', "on"),
        ("[old] *", "[old] *"),
        ("50%", "50%"),
        ("@home", "@home"),
        (" padded ", "padded"),
    ],
)
def test_override_of_a_text_field_is_taken_as_typed(typed: str, value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "{}\n")
    config = load_config(path, [f"tracking.wandb_project={typed}", f"run.directory={typed}"])
    assert (config.tracking.wandb_project, config.run.directory) == (value, value)


@pytest.mark.parametrize("text", ["null", "~", "", "None"])
def test_field_that_may_be_null_takes_every_spelling(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", f"data: {{tokenizer: {text}}}\nmodel: {{window: {text}}}\n")
    config = load_config(path, [f"checkpoint.weights={text}", f"data.train={text}"])
    assert (config.data.tokenizer, config.model.window) == (None, None)
    assert (config.checkpoint.weights, config.data.train) == (None, ())


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.steps=yes", "training.steps=True: must be a number, not a truth value; give "),
        (
            "optimizer.learning_rate=on",
            "optimizer.learning_rate=True: must be a number, not a truth value; give ",
        ),
        ("training.steps=1:30", "training.steps='1:30': input should be a valid integer, "),
        ("training.steps=", "training.steps: input should be a valid integer; give "),
        ("run.directory=", "run.directory='': must not be empty; give "),
        ("run.directory=a\tb", "run.directory='a\\tb': must have no control characters; give "),
        (
            "data.train=[a, b",
            "override='data.train=[a, b': is not YAML (while parsing a flow sequence",
        ),
    ],
)
def test_value_that_cannot_be_meant_is_refused(override: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(write(tmp_path / "c.yaml", "{}\n"), override)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("override", "number"),
    [
        ("training.steps=1k", "1000"),
        ("training.steps=1,000", "1000"),
        ("training.steps=1 000", "1000"),
        ("schedule.warmup_tokens=1.5B", "1500000000"),
        ("model.dropout=5%", "0.05"),
        ("optimizer.learning_rate=0,001", "0.001"),
        ("optimizer.beta1=90%", "0.9"),
    ],
)
def test_number_with_a_unit_is_refused_with_the_number_to_write(
    override: str, number: str, tmp_path: Path
) -> None:
    (line,) = lines_of(write(tmp_path / "c.yaml", "{}\n"), override)
    assert f"; write {number}; give " in line


def test_numbers_are_decimal_with_underscores_if_need_be(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "training: {steps: 1_000, seed: 010}\n")
    config = load_config(path, ["model.num_layers=+012", "optimizer.learning_rate=.5"])
    assert (config.training.steps, config.training.seed) == (1000, 10)
    assert (config.model.num_layers, config.optimizer.learning_rate) == (12, 0.5)


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("a,b", [("a", 1.0), ("b", 1.0)]),
        ("a, b", [("a", 1.0), ("b", 1.0)]),
        ("[a, {prefix: 7, weight: 2}]", [("a", 1.0), ("7", 2.0)]),
        ("{prefix: a, weight: 3}", [("a", 3.0)]),
        ("0.3 a 7 b", [("a", 0.3), ("b", 7.0)]),
        ("my data/a", [("my data/a", 1.0)]),
    ],
)
def test_datasets_may_be_named_in_one_text(
    text: str, sources: list[tuple[str, float]], tmp_path: Path
) -> None:
    path = write(tmp_path / "c.yaml", f"data: {{valid: {text}}}\n" if "," not in text else "{}\n")
    config = load_config(path, [f"data.train={text}", f"data.valid={text}"])
    for found in (config.data.train, config.data.valid):
        assert [(each.prefix, each.weight) for each in found] == sources


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../x",
        "a/b",
        "/tmp/x",
        "-x",
        "--help",
        ".hidden",
        "a b",
        "x" * 201,
        "\xe4",
    ],
)
def test_run_name_is_one_plain_folder(name: str, tmp_path: Path) -> None:
    (line,) = lines_of(write(tmp_path / "c.yaml", "{}\n"), f'run.name="{name}"')
    assert line.startswith(f"run.name={name[:200]!r}"[:-1])
    with pytest.raises(RootsError, match=r"^run\.name="):
        parse_config({"run": {"name": name}})


def test_run_name_says_what_a_name_is(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "run: {directory: ../elsewhere/runs}\n")
    assert lines_of(path, "run.name=..") == (
        "run.name='..': must be letters, digits, '.', '_' and '-', with none of '.' and '-' in "
        "front; give name of the run's folder (default 'run')",
    )
    assert load_config(path, ["run.name=v1.2_a-b"]).run_directory == Path(
        "../elsewhere/runs/v1.2_a-b"
    )


def test_mapping_in_an_override_is_merged_as_a_file_would_be(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "model: {num_layers: 2, moe: {top_k: 4}}\ndata:\n")
    config = load_config(path, ["model={num_heads: 8, moe: {num_experts: 8}}", "data.split=8,1,1"])
    assert (config.model.num_layers, config.model.num_heads) == (2, 8)
    assert (config.model.moe.top_k, config.model.moe.num_experts) == (4, 8)
    assert config.data.split == (8.0, 1.0, 1.0)


def test_section_under_which_nothing_stands_says_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "model: {num_layers: 2}\n")
    path = write(tmp_path / "b.yaml", "extends: a.yaml\nmodel:\ntraining:\n")
    assert load_config(path).model.num_layers == 2
    assert load_config(path, ["training.steps=3"]).training.steps == 3


def test_schema_of_an_editor_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "$schema: roots.schema.json\ntraining: {steps: 3}\n")
    assert load_config(path).training.steps == 3


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


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.stem)
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
