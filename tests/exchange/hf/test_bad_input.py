"""Folders that are no whole model of a known architecture are refused, each in its own words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from roots.cli.main import main
from roots.errors import RootsError
from roots.exchange.hf.exporting import export_hf
from roots.exchange.hf.importing import import_hf
from roots.exchange.hf.special_tokens import data_tokens
from tests.helpers.hf_models import Case, build, of_llama

CASE = Case("llama", lambda: of_llama("LlamaConfig"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    build(CASE).save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    copy = tmp_path / "hf"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def refused(source: Path, target: Path) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        import_hf(source, target)
    assert not list(target.parent.glob(".*partial"))
    assert not target.exists()
    return caught.value.lines


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def shard_with(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def test_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert refused(folder, tmp_path / "out") == (
        f"model file={str(lost)!r}: is missing, but model.safetensors.index.json names it; "
        "copy it again from where the model comes from",
    )


def test_torn_shard_is_named(folder: Path, tmp_path: Path) -> None:
    torn = sorted(folder.glob("model-*.safetensors"))[0]
    torn.write_bytes(torn.read_bytes()[:-7])
    (line,) = refused(folder, tmp_path / "out")
    assert re.fullmatch(
        rf"model file={re.escape(repr(str(torn)))}: is no whole safetensors file \(.*\); "
        "copy it again from where the model comes from",
        line,
    )


def test_wrong_shape_missing_and_superfluous_tensors_are_all_named(
    folder: Path, tmp_path: Path
) -> None:
    path = shard_with(folder, "model.norm.weight")
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.zeros(47)
    save_file(tensors, path, metadata={"format": "pt"})
    path = shard_with(folder, "model.layers.1.mlp.down_proj.weight")
    tensors = load_file(path)
    tensors["model.layers.1.mlp.extra.weight"] = tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    assert refused(folder, tmp_path / "out") == (
        f"tensor model.norm.weight=[47]: must have shape [48] by the config of {folder}; "
        "use the config that the weights were saved with",
        "tensor model.layers.1.mlp.down_proj.weight: "
        f"is not in {folder}; is the config of this model another one's? copy the model again",
        f"tensor model.layers.1.mlp.extra.weight: is in {folder}, and a model of this config has "
        "no place for it; use the config that the weights were saved with",
    )


def test_unknown_architecture_is_named(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, lambda tree: tree.update(architectures=["FooForCausalLM"]))
    (line,) = refused(folder, tmp_path / "out")
    assert line.startswith(
        f"architecture of {folder}/config.json='FooForCausalLM': must be one of GPT2LMHeadModel, "
    )
    assert line.endswith("; ROOTS has no map for another architecture")


def test_values_that_roots_does_not_have_are_all_named(folder: Path, tmp_path: Path) -> None:
    edit_config(
        folder,
        lambda tree: tree.update(
            hidden_act="relu2",
            rope_parameters={"rope_type": "longrope", "factor": 2.0},
            attention_bias=True,
        ),
    )
    where = f" of {folder}/config.json"
    no_field = "so this model cannot be imported"
    assert refused(folder, tmp_path / "out") == (
        f"hidden_act{where}='relu2': must be one of silu; "
        f"ROOTS has no field for another value, {no_field}",
        f"rope_type{where}='longrope': must be one of default, linear, yarn, llama3; "
        f"ROOTS cannot compute such frequencies, {no_field}",
        f"mlp_bias{where}=False: must equal attention_bias=True; "
        f"ROOTS has biases in both or in neither, {no_field}",
    )


def test_experts_that_roots_does_not_have_are_named(folder: Path, tmp_path: Path) -> None:
    changed = {"use_sliding_window": True, "mlp_only_layers": [1]}
    edit_config(folder, lambda tree: tree.update(architectures=["Qwen3MoeForCausalLM"], **changed))
    edit_config(folder, lambda tree: [tree.pop(key) for key in ("mlp_bias", "pretraining_tp")])
    where = f" of {folder}/config.json"
    no_model = "so this model cannot be imported"
    assert refused(folder, tmp_path / "out") == (
        f"use_sliding_window{where}=True: must be False; "
        f"ROOTS has no windows beside experts of this kind, {no_model}",
        f"mlp_only_layers{where}=[1]: must be empty; "
        f"ROOTS has experts in every n-th layer, {no_model}",
    )


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", tmp_path / "out") == (
        f"config={str(tmp_path / 'empty' / 'config.json')!r}: does not exist, so "
        f"{tmp_path / 'empty'} is no folder of a Hugging Face model; "
        "give a folder with config.json and *.safetensors",
    )


def test_command_reports_in_one_line_and_overwrites_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", str(model), "--to", str(tmp_path), "--shard-size", "5 bananas"]
    for value, message in (
        (
            "5 bananas",
            "roots: error: --shard-size='5 bananas': must be a number of bytes such as 5GB, 500MB "
            "or 1000000, and at least 1KB; write it that way\n",
        ),
        (
            "5",
            "roots: error: --shard-size='5': must be a number of bytes such as 5GB, 500MB "
            "or 1000000, and at least 1KB; write it that way\n",
        ),
        (
            "5GB",
            f"roots: error: --to={str(tmp_path)!r}: exists already, and nothing is overwritten; "
            "name a new folder\n",
        ),
    ):
        (tmp_path / "mine").touch()
        with pytest.raises(SystemExit) as stop:
            main([*words[:-1], value])
        assert stop.value.code == 2
        assert capsys.readouterr().err == message
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_damaged_checkpoint_is_not_exported(model: Path, tmp_path: Path) -> None:
    import_hf(model, tmp_path / "roots")
    (path,) = (tmp_path / "roots" / "weights").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RootsError) as caught:
        export_hf(tmp_path / "roots", tmp_path / "out")
    assert caught.value.lines == (
        f"checkpoint file={str(path)!r}: does not have the checksum that the manifest records; "
        "use another checkpoint of the run",
    )


def test_damaged_settings_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text("{")
    with pytest.raises(RootsError) as caught:
        data_tokens(tmp_path, "encoder_decoder", {})
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: is not a JSON object (")
