"""Build of the compiled parts; metadata and dependencies are in pyproject.toml.

- roots.data._index from csrc/data/index.cpp, with pybind11 and numpy only;
- the kernels, roots/ops/library/_C_cpu.so and _C_cuda.so, by roots.ops.library, imported by its
  path. The CUDA library is built wherever nvcc is found, with or without a CUDA torch;
  ROOTS_BUILD=cpu leaves it out, ROOTS_BUILD=none leaves both to be compiled at their first use;
  ROOTS_CUDA_ARCHITECTURES="80;90;100" has machine code for other GPUs than by default;
- roots/_shipped: configs and launch scripts, which a wheel carries too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

try:
    from pybind11.setup_helpers import Pybind11Extension
except ModuleNotFoundError:
    sys.exit(
        "setup.py: pybind11 is not installed and csrc/data needs it; run `pip install pybind11`"
    )

LIBRARY = Path("roots", "ops", "library")
CSRC = Path("csrc")
SHIPPED = ("configs", "launch")
BUILD_CHOICES = {"": ("cpu", "cuda"), "all": ("cpu", "cuda"), "cpu": ("cpu",), "none": ()}


class BuildExtensions(build_ext):
    """Build the index extension, then the kernels; every failure is one line."""

    def run(self) -> None:
        """Compile everything into the package: of this checkout, or of the wheel in the making."""
        choice = os.environ.get("ROOTS_BUILD", "")
        if choice not in BUILD_CHOICES:
            known = "all (the default: whatever can be built), cpu or none"
            sys.exit(f"setup.py: ROOTS_BUILD={choice!r} is not known; set it to {known}")
        architectures = cuda_architectures()
        super().run()
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = LIBRARY if in_place else Path(self.build_lib) / LIBRARY
        if not in_place:
            for left_over in package.glob("_C_*"):
                left_over.unlink()
            copy_sources(package / "csrc")
            copy_shipped(Path(self.build_lib, "roots", "_shipped"))
        build_kernels(package, BUILD_CHOICES[choice], architectures)

    def build_extensions(self) -> None:
        """Ask for a C++ compiler before setuptools fails on it with a page of output."""
        compiler = self.compiler
        if compiler.compiler_type == "unix":
            command = getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_cxx
            if shutil.which(command[0]) is None:
                sys.exit(
                    f"setup.py: C++ compiler {command[0]!r} is not on PATH and csrc/data needs "
                    "C++17; run `apt-get install g++` (or set CXX to your compiler)"
                )
        super().build_extensions()


def cuda_architectures() -> tuple[str, ...]:
    """ROOTS_CUDA_ARCHITECTURES; empty for those of roots.ops.library.targets."""
    text = os.environ.get("ROOTS_CUDA_ARCHITECTURES", "")
    found = tuple(text.split(";")) if text else ()
    numbers = [int(each) if each.isdecimal() else 0 for each in found]
    if numbers and (numbers[0] != 80 or numbers != sorted(set(numbers))):
        rule = "must be rising numbers of which the first is 80, such as 80;90;100"
        sys.exit(f"setup.py: ROOTS_CUDA_ARCHITECTURES={text!r}: {rule}")
    return found


def build_kernels(
    package: Path, backends: tuple[str, ...], architectures: tuple[str, ...] = ()
) -> None:
    """Put the kernel libraries into `package`; what cannot be built here is said in one line.

    Missing tools only put the compilation off to the first use. Sources that do not compile end
    the installation.
    """
    build, targets, toolchain = (import_by_path(name) for name in ("build", "targets", "toolchain"))
    for backend in backends:
        cuda = backend == "cuda"
        try:
            tools = toolchain.find_toolchain(os.environ, needs_cuda=cuda, needs_nvcc=cuda)
        except toolchain.BuildError as error:
            print(f"setup.py: the {backend} kernels are left to their first use: {error}")
            continue
        objects = Path("build", "kernels", f"setup-{backend}").resolve()
        chosen = architectures or targets.ARCHITECTURES
        target = targets.make_target(backend, CSRC, architectures=chosen)
        plan = build.Plan(target, tools, CSRC)
        try:
            build.build(plan, objects, package)
        except toolchain.BuildError as error:
            sys.exit(f"setup.py: {error}")


def copy_sources(folder: Path) -> None:
    """Copy the kernels' sources: an installed package can compile them at their first use."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CSRC, folder, ignore=shutil.ignore_patterns("data", ".*"))


def copy_shipped(folder: Path) -> None:
    """Copy configs and launch scripts: `roots config list` and `copy` find them when installed."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in SHIPPED:
        shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def import_by_path(name: str) -> Any:
    """Import a module of roots.ops.library without importing roots, which needs torch."""
    package = "roots_library"
    if package not in sys.modules:
        location = str((LIBRARY / "__init__.py").resolve())
        folders = [str(LIBRARY.resolve())]
        spec = importlib.util.spec_from_file_location(
            package, location, submodule_search_locations=folders
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


setup(
    ext_modules=[
        Pybind11Extension(
            "roots.data._index",
            ["csrc/data/index.cpp"],
            cxx_std=17,
            # A fused multiply-add would round the blend's shortfall differently per processor.
            extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"],
        )
    ],
    cmdclass={"build_ext": BuildExtensions},
)
