"""The configs and launch scripts of ROOTS are listed and copied, from a checkout or installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import roots
from roots.cli.shipped import config_names, copy_shipped
from roots.config import load_config
from roots.errors import RootsError
from tests.helpers.sources import ROOT


def test_every_config_is_listed_with_its_purpose() -> None:
    names = config_names()
    assert {"base", "model/tiny", "run/quickstart", "cluster/laptop"} <= names.keys()
    assert all(text.endswith(".") or text for text in names.values())
    assert names["model/gpt-neox-20b"] == "GPT-NeoX-20B (Black et al. 2022, arXiv:2204.06745)."


def test_copy_takes_along_what_it_extends(tmp_path: Path) -> None:
    copied = copy_shipped("run/question-answering", tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in copied) == [
        "configs/base.yaml",
        "configs/run/question-answering.yaml",
        "configs/run/translation-en-de.yaml",
    ]
    here = load_config(ROOT / "configs" / "run" / "question-answering.yaml")
    assert load_config(tmp_path / "configs" / "run" / "question-answering.yaml") == here
    assert copy_shipped("configs/run/question-answering.yaml", tmp_path) == []


def test_task_files_are_copied_together(tmp_path: Path) -> None:
    copied = copy_shipped("evaluation/cloze", tmp_path)
    names = {str(path.relative_to(tmp_path / "configs" / "evaluation")) for path in copied}
    assert {"cloze.yaml", "translation.yaml", "answers.py", "examples/texts.jsonl"} <= names


def test_copy_replaces_nothing_and_knows_its_names(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    base = tmp_path / "configs" / "base.yaml"
    base.write_text("mine\n", encoding="utf-8")
    with pytest.raises(RootsError) as caught:
        copy_shipped("model/tiny", tmp_path)
    fix = "move it away, or name another folder by --to"
    assert caught.value.lines == (f"{base}: is there with other content; {fix}",)
    assert not (tmp_path / "configs" / "model").exists()
    with pytest.raises(RootsError, match=r"^NAME='tiny': is no config that comes with ROOTS; "):
        copy_shipped("tiny", tmp_path)


def test_launch_scripts_can_be_run_where_they_are_copied(tmp_path: Path) -> None:
    names = {path.name for path in copy_shipped("launch", tmp_path)}
    assert {"local.sh", "hostfile.sh", "slurm.sbatch", "rank.py", "environment.sh"} <= names
    assert (tmp_path / "launch" / "local.sh").stat().st_mode & 0o100


def test_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "roots"
    shutil.copytree(ROOT / "configs", package / "_shipped" / "configs")
    monkeypatch.setattr(roots, "__file__", str(package / "__init__.py"))
    assert "model/tiny" in config_names()
    shutil.rmtree(package / "_shipped")
    with pytest.raises(RootsError, match="are not part of this installation; install ROOTS again"):
        config_names()
