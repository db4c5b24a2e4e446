"""Which files of somebody else's folder are opened: plain names, links that stay, regular files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.exchange.foreign_folder import copy_file, file_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("a marker\n")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "a/b", "/etc/hostname", "a\\b"])
def test_names_are_plain(folder: Path, name: str) -> None:
    with pytest.raises(RootsError, match="is no plain name of a file of"):
        file_in(folder, name)


@pytest.mark.parametrize("absolute", [True, False])
def test_link_out_of_the_folder_is_refused(folder: Path, absolute: bool) -> None:
    target = folder.parent / "secret" if absolute else Path("../secret")
    (folder / "config.json").symlink_to(target)
    with pytest.raises(RootsError, match="is a link that leads out of"):
        file_in(folder, "config.json")


def test_link_through_a_linked_folder_is_refused(folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "config.json").symlink_to("up/secret")
    with pytest.raises(RootsError, match="is a link that leads out of"):
        file_in(folder, "config.json")


def test_link_inside_the_folder_and_a_linked_folder_are_followed(folder: Path) -> None:
    (folder / "real.json").write_text("{}")
    (folder / "config.json").symlink_to("real.json")
    assert file_in(folder, "config.json") == folder / "config.json"
    (folder.parent / "latest").symlink_to("model")
    assert file_in(folder.parent / "latest", "config.json") is not None
    assert file_in(folder, "missing.json") is None


def test_hub_cache_is_followed_and_nothing_beside_its_blobs(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "hash").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/hash")
    assert file_in(snapshot, "config.json") == snapshot / "config.json"
    (tmp_path / "models--a--b" / "refs").write_text("main")
    (snapshot / "tokenizer.json").symlink_to("../../refs")
    with pytest.raises(RootsError, match="is a link that leads out of"):
        file_in(snapshot, "tokenizer.json")


def test_what_is_no_regular_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "config.json")
    (folder / "tokenizer.json").mkdir()
    for name in ("config.json", "tokenizer.json"):
        with pytest.raises(RootsError, match="is no regular file"):
            file_in(folder, name)


@pytest.mark.parametrize("mode, expected", [(0o600, 0o600), (0o640, 0o640), (0o644, 0o644)])
def test_copy_is_readable_by_nobody_who_may_not_read_the_source(
    folder: Path, mode: int, expected: int
) -> None:
    source, target = folder.parent / "secret", folder / "copy"
    source.chmod(mode)
    before = os.umask(0o022)
    try:
        copy_file(source, target)
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == expected
    assert target.read_text() == "a marker\n"
