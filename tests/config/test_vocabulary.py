"""A model has as many rows as the tokenizer of its data has ids, unless the config says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roots.cli.main import main
from roots.config import RunConfig, dump_config, load_config
from roots.config.vocabulary import vocabulary_notes
from tests.helpers.sources import ROOT


def describe(prefix: Path, ids: int) -> str:
    """The two files of a dataset that are looked at before torch is there."""
    Path(f"{prefix}.json").write_text(json.dumps({"vocab_size": ids}), encoding="utf-8")
    Path(f"{prefix}.idx").touch()
    return str(prefix)


def load(tmp_path: Path, *overrides: str, base: bool = False) -> RunConfig:
    path = tmp_path / "c.yaml"
    text = f"extends: {ROOT / 'configs' / 'base.yaml'}\n" if base else "{}\n"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


@pytest.mark.parametrize("base", [False, True])
def test_vocabulary_is_that_of_the_data_unless_set(tmp_path: Path, base: bool) -> None:
    data = describe(tmp_path / "train", 2000)
    config = load(tmp_path, f"data.train={data}", base=base)
    assert (config.model.vocab_size, config.model.padded_vocab_size) == (2000, 2048)
    assert "vocab_size: 2000" in dump_config(config)
    wish = load(tmp_path, f"data.train={data}", "model.vocab_size=2048", base=base)
    assert wish.model.vocab_size == 2048
    null = load(tmp_path, f"data.train={data}", "model.vocab_size=null", base=base)
    assert null.model.vocab_size == 2000
    assert load(tmp_path, base=base).model.vocab_size == 50257


def test_largest_of_all_datasets_counts(tmp_path: Path) -> None:
    small, large = describe(tmp_path / "a", 300), describe(tmp_path / "b", 400)
    assert load(tmp_path, f"data.train={small},{large}").model.vocab_size == 400
    assert load(tmp_path, f"data.train={small}", f"data.valid={large}").model.vocab_size == 400


def test_pairs_have_a_description_a_side(tmp_path: Path) -> None:
    describe(tmp_path / "p.source", 300)
    describe(tmp_path / "p.target", 300)
    wishes = ["model.architecture=encoder_decoder", "data.objective=pairs"]
    assert load(tmp_path, f"data.train={tmp_path / 'p'}", *wishes).model.vocab_size == 300


@pytest.mark.parametrize(
    ("wishes", "size"),
    [
        (["model.architecture=encoder"], 2001),
        (["model.architecture=encoder", "data.mask_token=3"], 2000),
        # 64 tokens hold a text of 70, whose 10 noise tokens are 3 spans.
        (["model.architecture=encoder_decoder", "model.sequence_length=64"], 2003),
        (["model.architecture=encoder_decoder", "data.sentinel_token=1999"], 2000),
    ],
)
def test_tokens_that_an_objective_reserves_come_on_top(
    wishes: list[str], size: int, tmp_path: Path
) -> None:
    data = describe(tmp_path / "train", 2000)
    assert load(tmp_path, f"data.train={data}", *wishes).model.vocab_size == size


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ({"model": {"vocab": {"a": 0, "b": 6}}, "added_tokens": [{"id": 9}]}, 10),
        ({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": []}, 2),
        ([], 50257),
    ],
)
def test_data_of_other_programs_have_the_tokenizer_of_the_config(
    content: Any, ids: int, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = load(tmp_path, f"data.train={tmp_path / 'other'}", f"data.tokenizer={tmp_path}")
    assert config.model.vocab_size == ids
    assert load(tmp_path, "data.train=other", "data.tokenizer=bytes").model.vocab_size == 257


def test_rules_judge_the_vocabulary_of_the_data(tmp_path: Path) -> None:
    data = describe(tmp_path / "train", 2000)
    config = load(tmp_path, f"data.train={data}", "parallel.tensor=4", "data.begin_token=1999")
    assert config.model.vocab_size == 2000


@pytest.mark.parametrize(("size", "tells"), [(2048, False), (3000, False), (4097, True)])
def test_far_too_many_rows_are_told(size: int, tells: bool, tmp_path: Path) -> None:
    data = describe(tmp_path / "train", 2000)
    notes = vocabulary_notes(load(tmp_path, f"data.train={data}", f"model.vocab_size={size}"))
    expected = (
        "model.vocab_size=4097: the tokenizer of the data has 2000 ids, so 2097 rows of the "
        "embedding and of every logit are never used and cost time and memory; leave "
        "model.vocab_size out, or set it to the tokenizer's ids"
    )
    assert notes == ([expected] if tells else [])


def test_show_tells_it_beside_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {{train: {describe(tmp_path / 'train', 300)}}}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["config", "show", str(path), "model.vocab_size=50257"])
    output = capsys.readouterr()
    assert output.err.startswith("roots: note: model.vocab_size=50257: the tokenizer of the data ")
    assert "vocab_size: 50257" in output.out
    Path(tmp_path / "train.json").unlink()
    with pytest.raises(SystemExit):
        main(["config", "show", str(path)])
    assert capsys.readouterr().err == (
        "roots: note: model.vocab_size=50257: is the default, because nothing says which tokenizer "
        f"made {tmp_path / 'train'}; set it to the tokenizer's ids, or data.tokenizer to its "
        "folder\n"
    )
