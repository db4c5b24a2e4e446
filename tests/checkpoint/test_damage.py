"""Damaged checkpoints: whatever the bytes are, the readers give values or errors in one line."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from roots.checkpoint import check_model, manifest, read_config
from roots.checkpoint.weights import WeightStore
from roots.config import dump_config, parse_config
from roots.errors import RootsError
from roots.parallel.shard import Shard
from tests.helpers.manifests import edit_manifest
from tests.helpers.stored_weights import save_weights

SHARDS = (
    (Shard("norm", (7,), None, ()), torch.arange(7.0)),
    (Shard("qkv", (12, 3), 0, ((0, 2), (4, 6), (8, 10))), torch.ones(6, 3)),
)
# How many damaged files each reader is given.
EXAMPLES = 300


def save(folder: Path) -> Path:
    """A checkpoint of two small tensors."""
    (folder / manifest.CONFIG_NAME).write_text(dump_config(parse_config({})), encoding="utf-8")
    save_weights(folder, SHARDS, pipeline_rank=0, tensor_rank=0)
    return seal(folder)


def seal(folder: Path) -> Path:
    layout = manifest.Layout(1, 1, 1, 0, "fp32")
    names = [manifest.CONFIG_NAME, *(f"weights/{path.name}" for path in weights_of(folder))]
    files = manifest.describe_files(folder, names)
    manifest.write_manifest(folder, manifest.Manifest(3, 24, layout, files))
    return folder


def weights_of(folder: Path) -> list[Path]:
    return sorted((folder / manifest.WEIGHTS_FOLDER).iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("damage"))


Damage = tuple[float, int, bytes]


def damaged(content: bytes, damage: Damage) -> bytes:
    """Put `written` in the place of `removed` bytes from a share of the file on."""
    share, removed, written = damage
    start = int(share * len(content))
    return content[:start] + written + content[start + removed :]


damages = st.tuples(
    st.floats(0, 1),
    st.integers(0, 60) | st.just(1 << 30),
    st.binary(max_size=12)
    | st.sampled_from([b"null", b"-1", b"1e999", b"{}", b"[", b'"', b"\xff\xfe", b"9" * 30]),
)
fuzz = functools.partial(
    settings,
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_all(reader: Callable[[], None], path: Path, content: bytes) -> None:
    """Only values or RootsErrors of whole lines come back; the file is as before afterwards."""
    before = path.read_bytes()
    path.write_bytes(content)
    lines: tuple[str, ...] = ("no error",)
    try:
        reader()
    except RootsError as error:
        lines = error.lines
    finally:
        path.write_bytes(before)
    assert lines
    assert all(line.strip() and "\n" not in line for line in lines)


@fuzz()
@given(damage=damages)
@example(damage=(0.0, 1 << 30, b"[1]"))
@example(damage=(0.0, 1 << 30, b'{"format": "roots-checkpoint", "version": 1, "files": []}'))
@example(damage=(0.0, 1 << 30, b"[" * 100000))
def test_manifest(whole: Path, damage: Damage) -> None:
    path = whole / manifest.MANIFEST_NAME
    tree = json.loads(path.read_bytes())
    # Whatever else is damaged, this would tell; in version 2 it may be missing.
    del tree["sha256"]
    tree["version"] = 2
    content = damaged(json.dumps(tree, indent=1, sort_keys=True).encode(), damage)

    def reader() -> None:
        check_model(whole)
        WeightStore(whole)
        assert manifest.read_manifest(whole).layout.describe()

    read_all(reader, path, content)


@fuzz()
@given(damage=damages)
def test_weights(whole: Path, damage: Damage, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without a manifest, whose checksums would refuse each."""
    (path,) = weights_of(whole)
    content = damaged(path.read_bytes(), damage)
    record = whole / manifest.MANIFEST_NAME
    sealed = record.read_bytes()
    record.unlink()

    def reader() -> None:
        store = WeightStore(whole)
        for shard, _ in SHARDS:
            store.read(shard)

    try:
        read_all(reader, path, content)
    finally:
        record.write_bytes(sealed)


@settings(fuzz(), max_examples=60)
@given(damage=damages)
def test_config(whole: Path, damage: Damage) -> None:
    """With a manifest that fits, as if the damage had been saved."""
    path = whole / manifest.CONFIG_NAME
    content = damaged(path.read_bytes(), damage)

    def reader() -> None:
        seal(whole)
        read_config(whole)

    read_all(reader, path, content)
    seal(whole)


@pytest.mark.parametrize(
    "record",
    [
        {"shape": [12, 3], "dim": 5, "intervals": [[0, 6]]},
        {"shape": [12, 3], "dim": 0, "intervals": [[0, 60]]},
        {"shape": [12, 3], "dim": 0, "intervals": [[6, 0]]},
        {"shape": [12, 3], "dim": 0, "intervals": [[0, 5]]},
        {"shape": [12, 3], "dim": None, "intervals": []},
        {"shape": [12, 3], "dim": None, "intervals": [[0, 6]]},
        {"shape": "ab", "dim": 0, "intervals": []},
        {"shape": [12, 3]},
        [],
    ],
)
def test_record_that_does_not_fit_its_tensor(tmp_path: Path, record: object) -> None:
    path = tmp_path / "weights" / "a.safetensors"
    path.parent.mkdir()
    save_file({"qkv": torch.ones(6, 3)}, path, {"shards": json.dumps({"qkv": record})})
    with pytest.raises(RootsError) as caught:
        WeightStore(tmp_path)
    (line,) = caught.value.lines
    assert line.startswith(f"checkpoint file='{path}': holds no weights of ROOTS (")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", "weights/../../a", "a\0b"])
def test_manifest_names_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    stranger = {"bytes": 1, "sha256": "00"}
    edit_manifest(tmp_path, lambda tree: tree["files"].update({name: stranger}))
    with pytest.raises(RootsError, match="is no file of a checkpoint"):
        check_model(tmp_path)


def test_weights_beside_those_of_the_manifest_are_not_read(tmp_path: Path) -> None:
    save(tmp_path)
    (path,) = weights_of(tmp_path)
    path.with_name("zzz.safetensors").write_bytes(b"a stranger's")
    check_model(tmp_path)
    assert torch.equal(WeightStore(tmp_path).read(SHARDS[0][0]), SHARDS[0][1])


def test_many_damaged_files_are_told_shortly(tmp_path: Path) -> None:
    for number in range(20):
        tensors = [(Shard(f"norm{number}", (7,), None, ()), torch.ones(7))]
        save_weights(tmp_path, tensors, pipeline_rank=number, tensor_rank=0)
    (tmp_path / manifest.CONFIG_NAME).write_text("{}")
    seal(tmp_path)
    for path in weights_of(tmp_path):
        path.unlink()
    with pytest.raises(RootsError) as caught:
        check_model(tmp_path)
    assert len(caught.value.lines) == 13
    assert caught.value.lines[-1] == "... and 8 more damaged files"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_weights_have_the_mode_of_all_other_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
