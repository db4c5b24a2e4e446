"""Checkpoints that megatron-core itself has written give the logits of its own GPTModel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from roots.checkpoint.megatron import import_megatron
from roots.cli.main import main
from roots.device import Device
from roots.errors import RootsError
from roots.generation.load import load_model
from tests.helpers.megatron_model import KINDS, VOCABULARY, tokens
from tests.helpers.sources import ROOT

pytest.importorskip("megatron.core", reason="megatron-core is not installed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron")
    words = [sys.executable, "-m", "tests.helpers.megatron_model", str(folder)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_gpt_model(kind: str, saved: Path, tmp_path: Path) -> None:
    words = ["--to", str(tmp_path / "roots"), "--from", "megatron", "--shard-size", "20KB"]
    with pytest.raises(SystemExit) as stop:
        main(["import", str(saved / kind / "iter_0000001"), *words])
    assert stop.value.code == 0
    model = load_model(tmp_path / "roots", Device("cpu", 0))
    assert model.config.model.vocab_size == VOCABULARY
    tokens_BT = tokens()
    with torch.no_grad():
        found = model.decoder(tokens_BT, torch.zeros_like(tokens_BT), torch.zeros(2).long())
    expected = torch.load(saved / kind / "logits.pt")
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_config_serves_a_folder_without_arguments(saved: Path, tmp_path: Path) -> None:
    """As a library saves one: only then the architecture has to be told."""
    source = tmp_path / "iter_0000001"
    shutil.copytree(saved / "llama" / "iter_0000001", source)
    import_megatron(source, tmp_path / "first")
    torch.save({}, source / "common.pt")
    with pytest.raises(RootsError) as caught:
        import_megatron(source, tmp_path / "second")
    assert caught.value.lines == (
        f"arguments={str(source / 'common.pt')!r}: holds no `args`; "
        "give --config FILE with the `model` section of this model",
    )
    import_megatron(source, tmp_path / "second", config=tmp_path / "first" / "config.yaml")
    for name in ("weights/part_00000.safetensors", "config.yaml"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_bad_folders_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RootsError) as caught:
        import_megatron(tmp_path, tmp_path / "out")
    assert caught.value.lines == (
        f"folder={str(tmp_path)!r}: holds no .metadata, so it is no torch_dist checkpoint; "
        "give the iter_NNNNNNN folder of a training with --dist-ckpt-format torch_dist",
    )
    source = tmp_path / "iter_0000001"
    shutil.copytree(saved / "gpt" / "iter_0000001", source)
    arguments = torch.load(source / "common.pt", weights_only=False)["args"]
    arguments.num_layers = 1
    torch.save({"args": arguments}, source / "common.pt")
    with pytest.raises(RootsError) as caught:
        import_megatron(source, tmp_path / "out")
    last = (
        f"tensor decoder.layers.1.mlp.linear_fc2.bias: is in {source}, and a model of this config "
        "has no place for it; use the config that the weights were saved with"
    )
    assert last in caught.value.lines
    assert len(caught.value.lines) == len({*caught.value.lines}) == 12
    arguments.position_embedding_type = "mrope"
    torch.save({"args": arguments}, source / "common.pt")
    with pytest.raises(RootsError) as caught:
        import_megatron(source, tmp_path / "out")
    assert caught.value.lines == (
        f"argument position_embedding_type of {source / 'common.pt'}='mrope': must be one of "
        "learned_absolute, rope; ROOTS has no map for another value; "
        "give --config if the argument is not true",
    )
    for path in source.glob("*.distcp"):
        path.unlink()
    arguments.num_layers = 2
    arguments.position_embedding_type = "learned_absolute"
    torch.save({"args": arguments}, source / "common.pt")
    with pytest.raises(RootsError, match=f"is not readable .*{source}/__0_"):
        import_megatron(source, tmp_path / "out")
