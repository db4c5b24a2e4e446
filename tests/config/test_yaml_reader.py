"""One reader of YAML, bounded: what no config holds is one line, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from roots.config import load_config
from roots.config.yaml_reader import MAX_BYTES, Scalar, plain, read_yaml, read_yaml_file
from roots.errors import RootsError
from tests.helpers.sources import files, name_of


def refused(text: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RootsError) as caught:
        load_config(path)
    prefix = f"config file='{path}': "
    assert all(line.startswith(prefix) for line in caught.value.lines)
    return [line.removeprefix(prefix) for line in caught.value.lines]


def laughs(levels: int) -> str:
    """A few hundred bytes whose aliases unfold into ten to the power of `levels` values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_aliases_that_unfold_without_end_are_refused_at_once(tmp_path: Path) -> None:
    start = time.process_time()
    rule = "has more than 50000 values, aliases unfolded, which no config needs; "
    rule += "write the values out"
    assert refused(laughs(9), tmp_path) == [rule]
    merges = "a0: &a0 {k: v}\n" + "\n".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)
    )
    assert refused(merges, tmp_path) == [rule]
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[" * 50_000, "has more than 20 levels, which no config needs; write the values out"),
        (
            "model: &m {moe: *m}",
            "has an alias inside what it stands for, which no config needs; write the values out",
        ),
        (
            "a: [" + "x," * 50_001 + "]",
            "has more than 50000 values, aliases unfolded, which no config needs; "
            "write the values out",
        ),
        (
            "#" * (MAX_BYTES + 1),
            "has more than 1048576 bytes, which no config needs; give the path of a YAML file",
        ),
    ],
)
def test_bounds_of_a_config(text: str, rule: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path) == [rule]


def test_keys_that_stand_twice_are_refused_with_both_lines(tmp_path: Path) -> None:
    text = """
model:
  num_layers: 2
  num_heads: 4
  num_layers: 3
training: {steps: 1, "steps": 2}
model: {}
data:
  train: [{prefix: a, prefix: b}]
"""
    assert refused(text, tmp_path) == [
        "names model.num_layers twice, in lines 3 and 5; remove one of them",
        "names training.steps twice, in line 6; remove one of them",
        "names model twice, in lines 2 and 7; remove one of them",
        "names data.train.prefix twice, in line 9; remove one of them",
    ]


def test_same_key_in_two_items_of_a_list_stands_once_in_each() -> None:
    assert read_yaml("[{a: 1}, {a: 2}]", "text", "x") == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    "text",
    [
        "run: !!python/object/apply:os.getcwd []",
        "run: !!python/name:os.getcwd x",
        "run: !mine {name: x}",
        "run: !!binary aGk=",
        "!!set {a, b}",
        "[1, 2]: 3",
        "a: 1\n--- \nb: 2",
        "a: \x00",
        "a: *nowhere",
    ],
)
def test_what_is_more_than_plain_data_is_one_line(text: str, tmp_path: Path) -> None:
    (line,) = refused(text, tmp_path)
    assert line.startswith("is not YAML (")
    assert "\n" not in line
    assert line.endswith("; mend that line")


def test_file_that_is_no_text_or_no_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"run: \xff\xfe")
    with pytest.raises(RootsError, match=r"is not YAML \('utf-8' codec can't .*; save it as UTF-8"):
        read_yaml_file(path)
    with pytest.raises(RootsError, match="is a folder; give the path of a YAML file"):
        read_yaml_file(tmp_path)


def test_scalars_keep_their_text_and_know_their_value() -> None:
    text = "[007, on, 'on', ~, 1e3, 0x1f, -1_000, .5, 2024-01-02, .inf, 1:30, \"null\"]"
    tree = read_yaml(text, "text", "x")
    assert tree[:5] == ["007", "on", "on", "~", "1e3"]
    assert [isinstance(each, Scalar) for each in tree[:4]] == [True, True, False, True]
    values = [7, True, "on", None, "1e3", 31, -1000, 0.5, "2024-01-02", float("inf"), "1:30"]
    assert plain(tree) == [*values, "null"]
    assert Scalar("9" * 5000).value == "9" * 5000


def test_anchors_and_merges_of_yaml_work() -> None:
    text = "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\nlist: {<<: [{z: 4}, *b], x: 5}\n"
    assert plain(read_yaml(text, "text", "x")) == {
        "base": {"x": 1, "y": 2},
        "other": {"x": 1, "y": 3},
        "list": {"x": 5, "y": 2, "z": 4},
    }


def test_package_reads_yaml_here_alone() -> None:
    found = [
        name_of(path)
        for path in files(".py", below=("roots",))
        if "import yaml" in path.read_text(encoding="utf-8")
    ]
    # The loader writes YAML and reads none; task files are lm_eval's, with tags of its own.
    tasks = "roots/evaluation/harness/task_files.py"
    assert found == ["roots/config/load.py", "roots/config/yaml_reader.py", tasks]
