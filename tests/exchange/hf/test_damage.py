"""Folders damaged by accident, or with values swapped: an import ends with lines, or is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from roots.errors import RootsError
from roots.exchange.hf.importing import import_hf
from roots.exchange.hf.registry import family_of, read_model
from tests.helpers.damage import damaged
from tests.helpers.hf_models import Case, build, gpt2, gpt_neox, of_llama, transformers

ODD_VALUES = (None, -1, 0, 10**12, 1.5, float("nan"), "x", "", [], ["x", {}], {"x": []}, True)
EXPERTS = {"num_experts": 5, "moe_intermediate_size": 24}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": transformers.BertConfig,
    "t5": transformers.T5Config,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": partial(of_llama, "LlamaConfig"),
    "mistral": partial(of_llama, "MistralConfig"),
    "mixtral": partial(of_llama, "MixtralConfig", num_local_experts=5),
    "qwen2": partial(of_llama, "Qwen2Config", use_sliding_window=True, max_window_layers=0),
    "qwen3": partial(of_llama, "Qwen3Config"),
    "qwen2_moe": partial(of_llama, "Qwen2MoeConfig", **EXPERTS),
    "qwen3_moe": partial(of_llama, "Qwen3MoeConfig", **EXPERTS),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file that an import opens."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    case = Case("llama", CONFIGS["llama"])
    build(case).save_pretrained(folder, max_shard_size="60KB")
    words = {f"w{number}": number for number in range(99)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "w1"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "bos_token_id": 2}')
    return folder


def lines_of(folder: Path, target: Path) -> tuple[str, ...]:
    """What an import says; nothing where it succeeds. Nothing else is left behind."""
    try:
        import_hf(folder, target)
    except RootsError as error:
        assert not target.exists()
        return error.lines
    finally:
        shutil.rmtree(target, ignore_errors=True)
        assert not list(target.parent.glob(".*partial"))
    return ()


def test_damaged_files_are_told_in_lines(model: Path, tmp_path: Path) -> None:
    folder, random, told = tmp_path / "hf", Random(3), 0
    shutil.copytree(model, folder)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 8
    for name in names:
        good = (folder / name).read_bytes()
        # Of weights the header; whatever bits a number has, it is one.
        size = 800 if name.endswith(".safetensors") else len(good)
        for _ in range(40):
            (folder / name).write_bytes(damaged(good[:size], random) + good[size:])
            lines = lines_of(folder, tmp_path / "out")
            assert len(lines) <= 13
            assert not any("\n" in line for line in lines)
            told += bool(lines)
        (folder / name).write_bytes(good)
    assert told > 200
    assert lines_of(folder, tmp_path / "out") == ()


@pytest.mark.parametrize("family", CONFIGS)
def test_values_of_any_type_are_read_or_refused(family: str) -> None:
    """A config.json with one key of another type, value or length than it has."""
    good = json.loads(CONFIGS[family]().to_json_string(use_diff=False))
    path, lines = Path("config.json"), []
    for key in good:
        for value in ODD_VALUES:
            tree = {**good, key: value}
            try:
                read_model(family_of(tree, path), tree, path)
            except RootsError as error:
                lines += error.lines
    assert lines
    assert all(" of config.json" in line for line in lines)
