"""`pip install` builds the kernels ahead of time, and says in one line what it leaves for later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT
from tests.ops.library.tiny import write_sources

# setup.py as a build without torch sees it.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; exec(open('setup.py').read())"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with kernels of a few lines, and without the index extension's sources' weight."""
    folder = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "roots" / "ops" / "library",
        folder / "roots" / "ops" / "library",
        ignore=shutil.ignore_patterns("_C_*", "__pycache__", "csrc"),
    )
    (folder / "roots" / "data").mkdir()
    for name in ("roots/ops/__init__.py", "roots/data/__init__.py"):
        (folder / name).write_text("", encoding="utf-8")
    (folder / "roots" / "__init__.py").write_text('__version__ = "9.8"\n', encoding="utf-8")
    for name in ("configs", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    write_sources(folder / "csrc")
    (folder / "csrc" / "data").mkdir()
    (folder / "csrc" / "data" / "index.cpp").write_text("int empty;\n", encoding="utf-8")
    return folder


def build_ext(
    checkout: Path, *options: str, script: str = "exec(open('setup.py').read())", **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, "-q", "build_ext", *options]
    environment = {**os.environ, "ROOTS_BUILD": "", **variables}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def libraries(package: Path) -> set[str]:
    return {path.name for path in package.glob("_C_*")}


CPU = {"_C_cpu.so", "_C_cpu.json", "_C_cpu.log"}


def test_wheel_gets_the_libraries_and_the_sources(checkout: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "wheel"
    result = build_ext(checkout, "--build-lib", str(wheel), ROOTS_BUILD="cpu")
    assert result.returncode == 0, result.stderr
    package = wheel / "roots" / "ops" / "library"
    assert libraries(package) == CPU
    assert (package / "csrc" / "cpu" / "swiglu.cpp").is_file()
    assert not (package / "csrc" / "data").exists()
    shipped = wheel / "roots" / "_shipped"
    assert (shipped / "configs" / "run" / "quickstart.yaml").is_file()
    assert (shipped / "launch" / "local.sh").is_file()


def test_library_of_an_earlier_build_does_not_get_into_a_wheel(
    checkout: Path, tmp_path: Path
) -> None:
    package = tmp_path / "wheel" / "roots" / "ops" / "library"
    package.mkdir(parents=True)
    (package / "_C_cuda.so").write_text("old", encoding="utf-8")
    assert not build_ext(
        checkout, "--build-lib", str(tmp_path / "wheel"), ROOTS_BUILD="cpu"
    ).returncode
    assert libraries(package) == CPU


def test_wheel_has_its_own_name_the_types_and_what_a_run_starts_from(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "roots" / "py.typed").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    environment = {**os.environ, "ROOTS_BUILD": "none"}
    subprocess.run(
        [*command, "-w", str(tmp_path), str(checkout)], env=environment, check=True, cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("roots_pretrain-9.8-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        entry = content.read("roots_pretrain-9.8.dist-info/entry_points.txt").decode()
        metadata = content.read("roots_pretrain-9.8.dist-info/METADATA").decode()
    assert "roots = roots.cli.main:main" in entry
    assert "Name: roots-pretrain\n" in metadata
    assert "Requires-Dist: roots-pretrain[test]; extra == " in metadata
    assert {
        "roots/py.typed",
        "roots/_shipped/configs/base.yaml",
        "roots/_shipped/launch/local.sh",
        "roots/_shipped/launch/rank.py",
        "roots/ops/library/csrc/cpu/swiglu.cpp",
    } <= names
    assert not [name for name in names if "__pycache__" in name]


def test_editable_install_builds_into_the_checkout(checkout: Path) -> None:
    result = build_ext(checkout, "--inplace", ROOTS_BUILD="cpu")
    assert result.returncode == 0, result.stderr
    assert libraries(checkout / "roots" / "ops" / "library") == CPU
    assert not (checkout / "roots" / "ops" / "library" / "csrc").exists()


def test_cuda_library_is_built_with_a_cpu_torch_where_there_is_nvcc(checkout: Path) -> None:
    result = build_ext(checkout, "--inplace", ROOTS_CUDA_ARCHITECTURES="80;100")
    assert result.returncode == 0, result.stderr
    if "the cuda kernels are left to their first use" in result.stdout:
        pytest.skip(result.stdout.strip())
    package = checkout / "roots" / "ops" / "library"
    assert "_C_cuda.so" in libraries(package)
    stamp = json.loads((package / "_C_cuda.json").read_text(encoding="utf-8"))
    assert stamp["architectures"] == ["80", "100"]


def test_without_nvcc_one_line_says_so(checkout: Path) -> None:
    result = build_ext(checkout, "--inplace", CUDA_HOME="/absent")
    assert result.returncode == 0, result.stderr
    assert libraries(checkout / "roots" / "ops" / "library") == CPU
    assert result.stdout.splitlines()[-1].startswith(
        "setup.py: the cuda kernels are left to their first use: CUDA_HOME=/absent is no toolkit"
    )


def test_without_torch_one_line_says_so_and_the_rest_is_built(checkout: Path) -> None:
    result = build_ext(checkout, "--inplace", script=WITHOUT_TORCH)
    assert result.returncode == 0, result.stderr
    assert libraries(checkout / "roots" / "ops" / "library") == set()
    assert list((checkout / "roots" / "data").glob("_index*.so"))
    assert result.stdout.splitlines()[-2:] == [
        f"setup.py: the {backend} kernels are left to their first use: torch is not installed: run "
        "`pip install torch`."
        for backend in ("cpu", "cuda")
    ]


def test_nothing_is_built_when_that_is_asked_for(checkout: Path) -> None:
    assert not build_ext(checkout, "--inplace", ROOTS_BUILD="none").returncode
    assert libraries(checkout / "roots" / "ops" / "library") == set()


@pytest.mark.parametrize("value", ["90", "80;90a", "80;100;90", "80;80"])
def test_gpus_that_cannot_be_are_told_in_one_line(checkout: Path, value: str) -> None:
    result = build_ext(checkout, "--inplace", ROOTS_CUDA_ARCHITECTURES=value)
    assert result.stderr.splitlines()[-1] == (
        f"setup.py: ROOTS_CUDA_ARCHITECTURES='{value}': must be rising numbers of which the first "
        "is 80, such as 80;90;100"
    )


def test_unknown_choice_and_broken_kernels_end_in_one_line(checkout: Path) -> None:
    result = build_ext(checkout, "--inplace", ROOTS_BUILD="gpu")
    assert result.stderr.splitlines()[-1] == (
        "setup.py: ROOTS_BUILD='gpu' is not known; set it to all (the default: whatever can be "
        "built), cpu or none"
    )
    (checkout / "csrc" / "cpu" / "swiglu.cpp").write_text("int broken = ;\n", encoding="utf-8")
    result = build_ext(checkout, "--inplace", ROOTS_BUILD="cpu")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith(
        "setup.py: the cpu library could not be compiled: "
    )
    assert "Traceback" not in result.stderr
