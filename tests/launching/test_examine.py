"""What a run needs of its hosts follows from its config."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.config import load_config
from roots.launching.examine import examine, missing_programs, request_of
from roots.launching.gather import HERE, here
from roots.launching.via import Via


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.yaml").write_text("model: {num_layers: 2}\n", encoding="utf-8")
    text = "extends: base/model.yaml\nrun: {name: x, directory: runs}\n"
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "overrides, files",
    [
        ([], []),
        (
            ["data.train=a,b", "data.valid=c", "data.tokenizer=words"],
            ["a.bin", "a.idx", "b.bin", "b.idx", "c.bin", "c.idx", "words"],
        ),
        (["checkpoint.resume=never", "checkpoint.weights=w"], ["w"]),
        (["checkpoint.resume=r"], ["r"]),
        (["checkpoint.resume=s3://bucket/r"], []),
        (["data.train=a,a", "data.tokenizer=bytes"], ["a.bin", "a.idx"]),
        (
            ["data.train=p", "data.objective=pairs", "model.architecture=encoder_decoder"],
            ["p.source.bin", "p.source.idx", "p.target.bin", "p.target.idx"],
        ),
    ],
)
def test_config_with_all_it_extends_and_data(
    folder: Path, overrides: list[str], files: list[str]
) -> None:
    request = request_of(load_config("run.yaml", overrides), Path("run.yaml"), [7])
    assert request.paths == ("run.yaml", "base/model.yaml", *files)
    assert (request.folder, request.ports) == (folder, (7,))
    assert request.run_directory == Path("runs/x")


def test_this_machine_is_examined(folder: Path) -> None:
    request = request_of(load_config("run.yaml", ["data.train=a"]), Path("run.yaml"))
    fix = "copy it there, or keep it where all hosts see it"
    assert examine(request, [here()], {HERE: 1}).problems == [
        f"this machine: a.{ending}: no such file; {fix}" for ending in ("bin", "idx")
    ]


def test_tokenizer_that_is_missing_is_told_with_its_field(folder: Path) -> None:
    config = load_config("run.yaml", ["data.tokenizer=words", "checkpoint.weights=gone"])
    fix = "copy it there, or keep it where all hosts see it"
    assert examine(request_of(config, Path("run.yaml")), [here()], {HERE: 1}).problems == [
        f"this machine: data.tokenizer='words': no such file; {fix}",
        f"this machine: checkpoint.weights='gone': no such file; {fix}",
    ]


@pytest.mark.parametrize(
    "via, options, lines",
    [
        (Via.local, (), []),
        (Via.deepspeed, ("--over ssh",), []),
        (
            Via.deepspeed,
            ("--over pdsh",),
            [
                "--option='--over pdsh': there is no pdsh on PATH; "
                "run `apt-get install pdsh`, or leave --over pdsh away"
            ],
        ),
        (
            Via.mpirun,
            (),
            [
                "--via='mpirun': there is no mpirun on PATH; "
                "run `apt-get install openmpi-bin` on every host, or load its module"
            ],
        ),
    ],
)
def test_missing_program_is_told(
    monkeypatch: pytest.MonkeyPatch, via: Via, options: tuple[str, ...], lines: list[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert missing_programs(via, options) == lines
