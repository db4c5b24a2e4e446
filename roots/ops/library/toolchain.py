"""The tools of a build: C++ compiler, ninja, torch's headers, and CUDA with its nvcc.

The environment comes in as a mapping, so that everything here is a function of its arguments.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MACHINE = "x86_64"
SYSTEM_CUDA = Path("/usr/local/cuda")
CUDA_ADVICE = "install one with `pip install .[cuda-build]`, or set CUDA_HOME"
COMPILER_ADVICE = "run `apt-get install g++`, or set CXX"
NINJA_ADVICE = "run `pip install ninja`"
TORCH_ADVICE = "run `pip install torch`"


class BuildError(Exception):
    """Why a library cannot be built, as one full sentence."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, found without importing it."""

    version: str
    include: Path
    library: Path


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit with a compiler: the machine's, or the one of the PyPI wheels."""

    home: Path
    version: str
    include: tuple[Path, ...]
    library: Path

    @property
    def nvcc(self) -> Path:
        """The compiler itself, not a wrapper of it."""
        return self.home / "bin" / "nvcc"


@dataclass(frozen=True)
class Toolchain:
    """Everything that a build runs or reads besides the sources. `cuda` only where it is needed."""

    compiler: tuple[str, ...]
    compiler_version: str
    ninja: str
    torch: Torch
    cuda: Cuda | None
    jobs: int


def find_toolchain(
    environment: Mapping[str, str], *, needs_cuda: bool, needs_nvcc: bool = False
) -> Toolchain:
    """Find all tools, or raise BuildError naming the first that is missing and how to get it."""
    machine = os.uname().machine
    if machine != MACHINE:
        raise BuildError(f"the kernels are written for {MACHINE}, and this machine is {machine}.")
    compiler = find_compiler(environment)
    return Toolchain(
        compiler=compiler,
        compiler_version=_first_line([*compiler, "--version"]),
        ninja=_find_ninja(environment),
        torch=_find_torch(),
        cuda=find_cuda(environment, needs_nvcc=needs_nvcc) if needs_cuda else None,
        jobs=_jobs(environment),
    )


def find_compiler(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The C++ compiler with its arguments: CXX, or the first of c++ and g++ on PATH."""
    wanted = environment.get("CXX", "")
    candidates = [shlex.split(wanted)] if wanted else [["c++"], ["g++"]]
    for command in candidates:
        path = shutil.which(command[0], path=environment.get("PATH"))
        if path is not None:
            return (path, *command[1:])
    name = candidates[0][0]
    raise BuildError(f"there is no C++ compiler ({name}) on PATH: {COMPILER_ADVICE}.")


def find_cuda(environment: Mapping[str, str], *, needs_nvcc: bool = True) -> Cuda:
    """The first CUDA toolkit: CUDA_HOME, nvcc on PATH, /usr/local/cuda, then the PyPI wheels.

    Raises BuildError where there is none, and for a CUDA_HOME that holds none.
    """
    for home in _cuda_homes(environment):
        nvcc = home / "bin" / "nvcc"
        found = _cuda_at(home)
        if found is not None and (nvcc.is_file() or not needs_nvcc):
            return found
        if environment.get("CUDA_HOME"):
            parts = "bin/nvcc, include/cuda.h, lib64 or lib"
            raise BuildError(f"CUDA_HOME={home} is no toolkit ({parts}): unset it or correct it.")
    raise BuildError(
        "no nvcc was found by CUDA_HOME, on PATH, in /usr/local/cuda or among the packages of this "
        f"Python: {CUDA_ADVICE}."
    )


def _cuda_homes(environment: Mapping[str, str]) -> Iterator[Path]:
    if environment.get("CUDA_HOME"):
        yield Path(environment["CUDA_HOME"])
        return
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    home = None if nvcc is None else _home_of(nvcc)
    if home is not None:
        yield home
    yield SYSTEM_CUDA
    for packages in package_folders():
        yield from sorted((packages / "nvidia").glob("cu[0-9]*"), reverse=True)


def _home_of(nvcc: str) -> Path | None:
    """The toolkit behind an nvcc, which may be a wrapper: what the compiler itself says."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"_HERE_=(.+)$", result.stdout + result.stderr, re.MULTILINE)
    return Path(match[1].strip()).resolve().parent if match else None


def _cuda_at(home: Path) -> Cuda | None:
    header = home / "include" / "cuda.h"
    libraries = [home / name for name in ("lib64", "lib") if (home / name).is_dir()]
    if not header.is_file() or not libraries:
        return None
    match = re.search(r"#define\s+CUDA_VERSION\s+(\d+)", header.read_text(encoding="utf-8"))
    if match is None:
        return None
    number = int(match[1])
    include = [home / "include"]
    if (home / "include" / "cccl").is_dir():
        include.append(home / "include" / "cccl")
    version = f"{number // 1000}.{number % 1000 // 10}"
    return Cuda(home.resolve(), version, tuple(include), libraries[0])


def package_folders() -> list[Path]:
    """Where packages may be: of this interpreter, and on the path (an isolated build has both)."""
    paths = sysconfig.get_paths()
    names = dict.fromkeys([paths["purelib"], paths["platlib"], *sys.path])
    return [Path(name) for name in names if name and Path(name).is_dir()]


def _find_ninja(environment: Mapping[str, str]) -> str:
    beside = Path(sys.executable).parent / "ninja"
    if beside.is_file():
        return str(beside)
    found = shutil.which("ninja", path=environment.get("PATH"))
    if found is not None:
        return found
    for folder in package_folders():
        packaged = folder / "ninja" / "data" / "bin" / "ninja"
        if packaged.is_file():
            return str(packaged)
    raise BuildError(f"ninja is not installed: {NINJA_ADVICE}.")


def _find_torch() -> Torch:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"torch is not installed: {TORCH_ADVICE}.")
    folder = Path(next(iter(spec.submodule_search_locations)))
    text = (folder / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    version = match[1] if match else "unknown"
    return Torch(version, folder / "include", folder / "lib")


def _first_line(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (result.stdout or result.stderr).splitlines()
    if result.returncode != 0 or not lines:
        raise BuildError(f"`{shlex.join(command)}` fails: {COMPILER_ADVICE}.")
    return lines[0]


def _jobs(environment: Mapping[str, str]) -> int:
    text = environment.get("MAX_JOBS", "")
    return int(text) if text.isdigit() and int(text) > 0 else len(os.sched_getaffinity(0))
