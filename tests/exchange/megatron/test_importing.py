"""Checkpoints that megatron-core itself has written give the logits of its own GPTModel."""

from __future__ import annotations

import enum
import pickle
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from random import Random

import pytest
import torch
import yaml

from roots.cli.main import main
from roots.device import Device
from roots.errors import RootsError
from roots.exchange.megatron.importing import _members, import_megatron
from roots.generation.load import load_model
from tests.helpers.damage import damaged
from tests.helpers.megatron_model import KINDS, VOCABULARY, tokens
from tests.helpers.sources import ROOT

REMOVE = "if that was not so in the training, remove common.pt and give --config"
GIVE = "give the config of the model that was trained; ROOTS maps no other GPTModel"
SET = "set it so, or remove common.pt if the training had it otherwise"

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


def test_norms_of_their_own_have_the_names_of_fused_ones() -> None:
    """With Transformer Engine, layers with experts have such a one; the folders here never do."""
    name = "decoder.layers.pre_mlp_layernorm.weight"
    assert _members(name, (2, 40)) == [
        ("decoder.layers.0.mlp.linear_fc1.layer_norm_weight", (0,)),
        ("decoder.layers.1.mlp.linear_fc1.layer_norm_weight", (1,)),
    ]
    assert _members("decoder.layers.7.input_layernorm.bias", (40,)) == [
        ("decoder.layers.7.self_attention.linear_qkv.layer_norm_bias", ())
    ]


def test_experts_are_told_apart_within_their_layers() -> None:
    stacked = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    names = [
        (f"decoder.layers.{layer}.mlp.experts.experts.{expert}.linear_fc1.weight", (layer, expert))
        for layer in range(2)
        for expert in range(3)
    ]
    assert _members(stacked, (2, 3, 8, 4)) == names
    # Where layers differ, or every shard is stored by itself, there is less to take apart.
    alone = "decoder.layers.1.mlp.experts.experts.2.linear_fc1.weight"
    assert _members(alone, (8, 4)) == [(alone, ())]


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


class Backend(enum.Enum):
    """A class that torch does not load as plain data, as Megatron's enums are."""

    AUTO = 5


def _copy(saved: Path, kind: str, target: Path) -> tuple[Path, Path, Namespace]:
    """A folder to change, its common.pt, and the arguments in there."""
    source = target / "iter_0000001"
    shutil.copytree(saved / kind / "iter_0000001", source)
    path = source / "common.pt"
    return source, path, torch.load(path, weights_only=False)["args"]


def _lines(source: Path, target: Path, config: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(RootsError) as caught:
        import_megatron(source, target / "out", config=config)
    assert not (target / "out").exists()
    return caught.value.lines


def test_objects_among_the_arguments_are_left_unread(saved: Path, tmp_path: Path) -> None:
    """A run of Megatron-LM has some; only what is compared matters."""
    source, path, arguments = _copy(saved, "gpt", tmp_path)
    import_megatron(source, tmp_path / "plain")
    arguments.attention_backend = Backend.AUTO
    torch.save({"args": arguments, "iteration": 1}, path)
    import_megatron(source, tmp_path / "objects")
    for name in ("weights/part_00000.safetensors", "config.yaml"):
        texts = {(tmp_path / folder / name).read_bytes() for folder in ("plain", "objects")}
        assert len(texts) == 1


def test_every_argument_without_a_field_is_refused_at_once(saved: Path, tmp_path: Path) -> None:
    source, path, arguments = _copy(saved, "llama", tmp_path)
    arguments.softmax_type = "off-by-one"
    arguments.no_rope_freq = [0, 0, 1]
    arguments.mtp_num_layers = 1
    torch.save({"args": arguments}, path)
    expected = (
        f"argument mtp_num_layers of {path}=1: must be one of None, 0; {REMOVE}",
        f"argument softmax_type of {path}='off-by-one': must be vanilla; {REMOVE}",
        f"argument no_rope_freq of {path}=[0, 0, 1]: must be one of None, 0; {REMOVE}",
    )
    assert _lines(source, tmp_path) == expected
    config = tmp_path / "mine.yaml"
    config.write_text("model: {vocab_size: 90, norm_position: post, embedding_scale: 2.0}\n")
    assert _lines(source, tmp_path, config) == (
        f"model.norm_position='post': must be pre; {GIVE}",
        f"model.embedding_scale=2.0: must be 1.0; {GIVE}",
        *expected,
    )


def test_config_and_arguments_have_to_agree(saved: Path, tmp_path: Path) -> None:
    """These fields leave no trace in names and shapes of tensors."""
    source, path, _ = _copy(saved, "stretched", tmp_path)
    import_megatron(source, tmp_path / "right")
    config = tmp_path / "mine.yaml"
    tree = yaml.safe_load((tmp_path / "right" / "config.yaml").read_text())
    tree["model"] |= {"rotary_fraction": 0.25, "attention_scale": None, "activation": "geglu"}
    tree["model"]["rotary_scaling"]["factor"] = 2.0
    config.write_text(yaml.safe_dump(tree))
    stated = "as the stored arguments have"
    assert _lines(source, tmp_path, config) == (
        f"model.rotary_fraction=0.25: must be 0.5, {stated} rotary_percent=0.5; {SET}",
        "model.rotary_scaling={'kind': 'linear', 'factor': 2.0}: must be {'kind': 'linear', "
        f"'factor': 3}}, {stated} rotary_seq_len_interpolation_factor=3; {SET}",
        f"model.attention_scale: must be 0.4, {stated} softmax_scale=0.4; {SET}",
        f"model.activation='geglu': must be 'swiglu', {stated} swiglu=True; {SET}",
    )
    path.unlink()
    import_megatron(source, tmp_path / "out", config=config)


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
        "learned_absolute, rope, none; "
        "if that was not so in the training, remove common.pt and give --config",
    )
    for path in source.glob("*.distcp"):
        path.unlink()
    arguments.num_layers = 2
    arguments.position_embedding_type = "learned_absolute"
    torch.save({"args": arguments}, source / "common.pt")
    with pytest.raises(RootsError, match=f"model file='{source}/__0_0.distcp': is missing"):
        import_megatron(source, tmp_path / "out")


class Marker:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_that_a_pickle_names_is_run(saved: Path, tmp_path: Path) -> None:
    source, path, arguments = _copy(saved, "gpt", tmp_path)
    marker = tmp_path / "was_run"
    good = (source / ".metadata").read_bytes()
    (source / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Marker(marker)}))
    (line,) = _lines(source, tmp_path)
    where = f"metadata='{source}/.metadata'"
    assert line.startswith(f"{where}: is not readable (UnpicklingError: names pathlib.Path")
    assert line.endswith("which does not belong into it); copy the folder again")
    (source / ".metadata").write_bytes(good)
    arguments.attention_backend = Marker(marker)
    torch.save({"args": arguments, "state": Marker(marker)}, path)
    assert _lines(source, tmp_path) == (
        f"arguments='{path}': is damaged, or holds more than plain data, which is never run; "
        "give --config FILE with the `model` section of this model",
    )
    assert not marker.exists()


def test_links_out_of_the_folder_are_not_followed(saved: Path, tmp_path: Path) -> None:
    source, *_ = _copy(saved, "gpt", tmp_path)
    for name in (".metadata", "common.pt", "__0_0.distcp"):
        moved = (source / name).rename(tmp_path / "elsewhere")
        (source / name).symlink_to(moved)
        (line,) = _lines(source, tmp_path)
        assert f"file='{source}/{name}': is a link that leads out of {source}" in line
        (source / name).unlink()
        moved.rename(source / name)


def test_absurd_sizes_are_refused_before_anything_is_made_of_them(
    saved: Path, tmp_path: Path
) -> None:
    source, path, arguments = _copy(saved, "gpt", tmp_path)
    arguments.num_layers = 10_000_000
    torch.save({"args": arguments}, path)
    (line,) = _lines(source, tmp_path)
    assert re.match(rf"layers of {path}=10000000: are more than the \d+ tensors of", line)


def test_damaged_folders_are_told_in_lines(saved: Path, tmp_path: Path) -> None:
    """Bits are flipped, files cut and stretched: an import ends with lines, or is right."""
    source, *_ = _copy(saved, "gpt", tmp_path)
    random, told = Random(1), []
    for name, times in ((".metadata", 250), ("common.pt", 50), ("__0_0.distcp", 30)):
        good = (source / name).read_bytes()
        for _ in range(times):
            (source / name).write_bytes(damaged(good, random))
            try:
                import_megatron(source, tmp_path / "out")
            except RootsError as error:
                told.append(error.lines)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert not list(tmp_path.glob(".*partial"))
        (source / name).write_bytes(good)
    assert len(told) > 150
    assert all(len(lines) <= 13 for lines in told)
    assert not any("\n" in line for lines in told for line in lines)
