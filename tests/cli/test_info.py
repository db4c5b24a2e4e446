"""`roots info` tells what was built, with what, and why something is missing."""

from __future__ import annotations

import json

import pytest

from roots.cli import info
from roots.cli.main import main
from roots.ops.library import status
from roots.ops.library.load import Loaded


def call_info(*arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["info", *arguments])
    assert caught.value.code == 0


def test_json_has_every_library_and_op(capsys: pytest.CaptureFixture[str]) -> None:
    call_info("--json")
    report = json.loads(capsys.readouterr().out)
    libraries = {each["backend"]: each for each in report["libraries"]}
    assert list(libraries) == ["cpu", "cuda", "simulator"]
    for each in libraries.values():
        assert each["state"] in ("loaded", "built", "not built", "not loaded")
        assert (each["path"] is None) == bool(each["reason"])
    assert {"attention", "rms_norm"} <= {each["op"] for each in report["ops"]}


def test_text_has_a_line_for_every_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Loaded(None, None, "the kernels are missing: there is no compiler.")
    monkeypatch.setattr(status, "loaded", lambda backend: missing)
    monkeypatch.setattr(status, "available", lambda backend: missing)
    call_info()
    lines = capsys.readouterr().out.splitlines()
    assert "kernels simulator  not built: the kernels are missing: there is no compiler." in lines
    assert [line.split()[1] for line in lines if line.startswith("kernels ")] == [
        "cpu",
        "cuda",
        "simulator",
    ]


def test_line_of_a_library_names_its_place_and_tools() -> None:
    library = {
        "backend": "cuda",
        "state": "built",
        "path": "/p/_C_cuda.so",
        "torch": "2.13.0",
        "cuda": "13.0",
        "architectures": ["80", "90"],
        "compiler": "c++ 12",
    }
    assert info.library_line(library) == (
        "built: /p/_C_cuda.so (torch 2.13.0, CUDA 13.0, sm_80, sm_90, c++ 12)"
    )
