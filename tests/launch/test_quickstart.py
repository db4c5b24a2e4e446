"""A machine that lacks something is told so in one line, before anything is changed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import run_python
from tests.helpers.sources import ROOT
from tests.launch.machine import Machine

QUICKSTART = "launch/quickstart.sh"
OLD_PYTHON = 'if [[ "$1" == --version ]]; then echo "Python 3.9.2"; else exit 1; fi'
NO_ENSUREPIP = f'[[ "$2" == *ensurepip* ]] && exit 1; exec {sys.executable} "$@"'
# A compiler that finds every header, or all but Python's. It reads what it is given: bash would
# otherwise call the pipe to it broken, now and then.
COMPILER = "exec cat >/dev/null"
NO_PYTHON_HEADER = 'while read -r line; do [[ "$line" == *Python.h* ]] && exit 1; done; exit 0'
OLD_COMPILER = "exit 1"
FULL_DISK = "echo Filesystem; echo /dev/x 100 99 1048576 99% /"
FILLED_DISK = "echo Filesystem; echo /dev/x 100 99 101999 99% /"
ROOMY_DISK = "echo Filesystem; echo /dev/x 100 1 999999999 1% /"


@pytest.mark.parametrize(
    "tools, line",
    [
        (
            {"python3": OLD_PYTHON},
            "quickstart.sh: python3 is Python 3.9.2: Python 3.10 or newer is needed; "
            "install one and set PYTHON=/path/to/python3",
        ),
        (
            {"python3": NO_ENSUREPIP},
            "quickstart.sh: python3 cannot make virtual environments: "
            "run `apt-get install python3-venv`",
        ),
        (
            {},
            "quickstart.sh: no C++ compiler (c++) on PATH: run `apt-get install g++` or set CXX",
        ),
        (
            {"c++": OLD_COMPILER},
            "quickstart.sh: the C++ compiler (c++) does not compile C++17: "
            "run `apt-get install g++` or set CXX",
        ),
        (
            {"c++": COMPILER, "df": FULL_DISK},
            "quickstart.sh: 1 GiB free in CHECKOUT: 8 GiB are needed; "
            "free some space or use another disk",
        ),
    ],
    ids=["old python", "no venv", "no compiler", "old compiler", "full disk"],
)
def test_lack_is_told_in_one_line(tmp_path: Path, tools: dict[str, str], line: str) -> None:
    machine = Machine(tmp_path)
    for name, script in {"df": ROOMY_DISK, **tools}.items():
        machine.tool(name, script)
    before = machine.files()
    result = machine.run(QUICKSTART)
    assert result.stderr == line.replace("CHECKOUT", str(machine.checkout)) + "\n"
    assert (result.returncode, result.stdout) == (2, "")
    assert machine.files() == before


def test_missing_python_is_told_in_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.tools / "python3").unlink()
    result = machine.run(QUICKSTART)
    assert result.returncode == 2
    assert result.stderr.startswith("quickstart.sh: no python3 on PATH: Python 3.10 or newer")
    assert result.stderr.count("\n") == 1


def test_missing_headers_are_told_in_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.tool("c++", NO_PYTHON_HEADER)
    result = machine.run(QUICKSTART)
    assert result.returncode == 2
    assert result.stderr.startswith("quickstart.sh: no Python.h in ")
    assert result.stderr.endswith(": run `apt-get install python3-dev`\n")
    assert result.stderr.count("\n") == 1


def test_pip_that_fills_the_disk_is_told_in_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.tool("c++", COMPILER)
    machine.tool("df", ROOMY_DISK)
    python = machine.checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    pip = 'if [[ "$1" == -m ]]; then echo "OSError: No space left on device"; exit 1; fi'
    python.write_text(f'#!{machine.tools}/bash\n{pip}\nexec {sys.executable} "$@"\n', "utf-8")
    python.chmod(0o755)
    for name in ("pyproject.toml", "setup.py"):
        (machine.checkout / name).touch()
    (machine.checkout / "csrc" / "data").mkdir(parents=True)
    (machine.checkout / "csrc" / "data" / "index.cpp").touch()
    result = machine.run(QUICKSTART)
    assert result.returncode == 2
    assert result.stderr == (
        "quickstart.sh: the disk filled up while packages were installed: "
        "free some space and run this again\n"
    )


@pytest.mark.parametrize("full", [True, False])
def test_step_that_fills_the_disk_is_told_in_one_line(tmp_path: Path, full: bool) -> None:
    machine = Machine(tmp_path)
    machine.tool("c++", COMPILER)
    machine.tool("df", f'if [[ -e "$HOME/filled" ]]; then {FILLED_DISK}; else {ROOMY_DISK}; fi')
    python = machine.checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    fills = ': >"$HOME/filled"; ' if full else ""
    corpus = f'if [[ "$1" == launch/* ]]; then {fills}echo "not written" >&2; exit 7; fi'
    found = f'if [[ "$2" == *find_spec* ]]; then exit 0; fi; exec {sys.executable} "$@"'
    python.write_text(f"#!{machine.tools}/bash\n{corpus}\n{found}\n", "utf-8")
    python.chmod(0o755)
    constraints = machine.checkout / "docker" / "constraints.txt"
    key = hashlib.sha256(constraints.read_bytes()).hexdigest()[:16]
    (machine.checkout / ".venv" / ".roots-environment").write_text(f"{key} plots cpu\n", "utf-8")
    for name in ("pyproject.toml", "setup.py", "csrc/data/index.cpp"):
        path = machine.checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    result = machine.run(QUICKSTART)
    told = (
        f"quickstart.sh: 99 MiB free in {machine.checkout}/runs/quickstart: "
        "free some space and run this again\n"
    )
    assert result.stderr == "not written\n" + (told if full else "")
    assert result.returncode == (2 if full else 7)
    assert not list((machine.checkout / "runs" / "quickstart" / "stamps").iterdir())


def test_arguments_are_refused(tmp_path: Path) -> None:
    result = Machine(tmp_path).run(QUICKSTART, "--gpus", "8")
    assert result.returncode == 2
    assert result.stderr == "quickstart.sh: takes no arguments, was given: --gpus 8\n"


def test_corpus_holds_out_by_name_and_repeats_itself(tmp_path: Path) -> None:
    texts = [_make_corpus(tmp_path / name) for name in ("once", "again")]
    assert texts[0] == texts[1]
    names = {
        part: {json.loads(line)["name"] for line in text.splitlines()}
        for part, text in texts[0].items()
    }
    assert not names["train"] & names["valid"]
    assert 0.03 < len(names["valid"]) / len(names["train"]) < 0.12
    assert "math (docstrings)" in names["train"] | names["valid"]
    assert not any("/test" in name or "site-packages" in name for name in names["train"])


def _make_corpus(folder: Path) -> dict[str, str]:
    script = ROOT / "launch" / "quickstart_corpus.py"
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return {part: (folder / f"{part}.jsonl").read_text("utf-8") for part in ("train", "valid")}


@pytest.mark.parametrize(
    "gpus, expected",
    [
        ("1", ["1", "parallel.tensor=1", 8, 8]),
        ("2", ["2", "parallel.tensor=2", 8, 8]),
        ("3", ["3", "parallel.tensor=1", 3, 9]),
        ("8", ["8", "parallel.tensor=2", 2, 8]),
    ],
)
def test_layout_uses_all_gpus_in_fp16(gpus: str, expected: list[str | int]) -> None:
    ranks, tensor, micro_batch, global_batch = expected
    assert _choose_layout(gpus) == [
        ranks,
        tensor,
        f"training.micro_batch_size={micro_batch}",
        f"training.global_batch_size={global_batch}",
        "training.precision=fp16",
    ]


def test_layout_without_gpu_is_two_ranks_in_the_faster_precision() -> None:
    lines = _choose_layout("0")
    assert lines[:2] == ["2", "parallel.tensor=2"]
    assert lines[-1] in {"training.precision=fp32", "training.precision=bf16"}


def _choose_layout(gpus: str) -> list[str]:
    script = ROOT / "launch" / "quickstart_layout.py"
    if gpus == "1":
        command = [sys.executable, script, gpus]
        result = subprocess.run(command, capture_output=True, text=True)
    else:
        result = run_python(script, gpus)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
