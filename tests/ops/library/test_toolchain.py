"""Tools are found where they can be, and what is missing is named with its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roots.ops.library import toolchain
from roots.ops.library.build import Plan, build, log_path
from roots.ops.library.targets import make_target
from roots.ops.library.toolchain import BuildError, find_compiler, find_cuda, find_toolchain
from tests.ops.library.tiny import write_sources

CUDA_H = "#define CUDA_VERSION 13020\n"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without nvcc, on a machine without a toolkit and without packages."""
    monkeypatch.setattr(toolchain, "SYSTEM_CUDA", tmp_path / "absent")
    monkeypatch.setattr(toolchain, "package_folders", lambda: [])
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin")}


def toolkit(home: Path, libraries: str = "lib64") -> Path:
    """A folder that looks like a toolkit; its nvcc knows --dryrun."""
    for name in ("bin", "include", libraries):
        (home / name).mkdir(parents=True)
    (home / "include" / "cuda.h").write_text(CUDA_H, encoding="utf-8")
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '#$ _HERE_={home}/bin' >&2\n", encoding="utf-8")
    nvcc.chmod(0o755)
    return home


def test_no_compiler_is_one_line(bare: dict[str, str]) -> None:
    with pytest.raises(BuildError) as caught:
        find_toolchain(bare, needs_cuda=False)
    assert str(caught.value) == (
        "there is no C++ compiler (c++) on PATH: run `apt-get install g++`, or set CXX."
    )
    with pytest.raises(BuildError, match=r"there is no C\+\+ compiler \(/absent/c\+\+\) on PATH"):
        find_compiler({"PATH": "/usr/bin", "CXX": "/absent/c++"})


def test_compiler_may_have_arguments(bare: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "ccache").symlink_to("/bin/true")
    environment = {**bare, "CXX": "ccache g++"}
    assert find_compiler(environment) == (str(tmp_path / "bin" / "ccache"), "g++")


def test_no_nvcc_names_the_extra(bare: dict[str, str]) -> None:
    with pytest.raises(BuildError) as caught:
        find_cuda(bare)
    assert str(caught.value) == (
        "no nvcc was found by CUDA_HOME, on PATH, in /usr/local/cuda or among the packages of this "
        "Python: install one with `pip install .[cuda-build]`, or set CUDA_HOME."
    )


def test_cuda_home_must_hold_a_compiler(bare: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^CUDA_HOME=.* is no toolkit .*: unset it or correct it"):
        find_cuda({**bare, "CUDA_HOME": str(tmp_path)})


def test_nvcc_on_path_may_be_a_wrapper(bare: dict[str, str], tmp_path: Path) -> None:
    home = toolkit(tmp_path / "cuda-13.2")
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    found = find_cuda(bare)
    assert (found.home, found.version, found.nvcc) == (home, "13.2", home / "bin" / "nvcc")


def test_cuda_home_wins_over_path(bare: dict[str, str], tmp_path: Path) -> None:
    wanted = toolkit(tmp_path / "wanted")
    (tmp_path / "bin" / "nvcc").symlink_to(toolkit(tmp_path / "other") / "bin" / "nvcc")
    assert find_cuda({**bare, "CUDA_HOME": str(wanted)}).home == wanted


def test_compiler_among_the_packages_keeps_its_libraries_in_lib(
    bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = toolkit(tmp_path / "packages" / "nvidia" / "cu13", libraries="lib")
    monkeypatch.setattr(toolchain, "package_folders", lambda: [tmp_path / "packages"])
    assert (find_cuda(bare).home, find_cuda(bare).library) == (home, home / "lib")


def test_headers_alone_serve_the_simulator(bare: dict[str, str], tmp_path: Path) -> None:
    """A CUDA build of torch brings the headers without the compiler."""
    home = toolkit(tmp_path / "cuda", libraries="lib")
    (home / "bin" / "nvcc").unlink()
    environment = {**bare, "CUDA_HOME": str(home)}
    assert find_cuda(environment, needs_nvcc=False).include == (home / "include",)
    with pytest.raises(BuildError):
        find_cuda(environment)


def test_compiler_of_the_packages_builds_and_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real nvcc of `pip install .[cuda-build]`, with the machine's own out of sight."""
    monkeypatch.setattr(toolchain, "SYSTEM_CUDA", tmp_path / "absent")
    folders = [
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not (Path(folder) / "nvcc").exists()
    ]
    try:
        compiler = find_compiler(os.environ)
        environment = {"PATH": os.pathsep.join(folders), "CXX": compiler[0], "MAX_JOBS": "2"}
        tools = find_toolchain(environment, needs_cuda=True, needs_nvcc=True)
    except BuildError as error:
        pytest.skip(str(error))
    assert tools.cuda is not None
    assert tools.cuda.library.name == "lib"
    csrc = write_sources(tmp_path / "csrc")
    library = build(Plan(make_target("cuda", csrc), tools, csrc), tmp_path / "o", tmp_path / "out")
    said = log_path(library).read_text(encoding="utf-8")
    assert "Compiling entry function '_Z5twicePf' for 'sm_80'" in said
    assert "Compiling entry function '_Z5twicePf' for 'sm_90'" in said
    assert "Compiling entry function '_Z4widePf' for 'sm_90a'" in said
    needed = subprocess.run(
        ["readelf", "-d", library], capture_output=True, text=True, check=True
    ).stdout
    assert "libcudart" not in needed, "the CUDA runtime must be linked statically"


@pytest.mark.parametrize("jobs, expected", [("3", 3), ("0", None), ("many", None), ("", None)])
def test_number_of_jobs(jobs: str, expected: int | None) -> None:
    tools = find_toolchain({**os.environ, "MAX_JOBS": jobs}, needs_cuda=False)
    assert tools.jobs == (expected or len(os.sched_getaffinity(0)))


def test_torch_is_found_without_importing_it() -> None:
    script = (
        "import sys, types, importlib.util, os\n"
        "package = types.ModuleType('library'); package.__path__ = ['roots/ops/library']\n"
        "sys.modules['library'] = package\n"
        "from library.toolchain import find_toolchain\n"
        "print(find_toolchain(os.environ, needs_cuda=False).torch.version, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    import torch

    assert result.stdout.split() == [torch.__version__, "False"]
