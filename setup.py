"""Build of the compiled part: roots.data._index from csrc/data/index.cpp (pybind11 and numpy only).

Metadata and dependencies are in pyproject.toml. Nothing here needs torch.
"""

from __future__ import annotations

import shutil
import sys

from setuptools import setup
from setuptools.command.build_ext import build_ext

try:
    from pybind11.setup_helpers import Pybind11Extension
except ModuleNotFoundError:
    sys.exit(
        "setup.py: pybind11 is not installed and csrc/data needs it; run `pip install pybind11`"
    )


class BuildExtensions(build_ext):
    """Ask for a C++ compiler before setuptools fails on it with a page of output."""

    def build_extensions(self) -> None:
        """Compile, or end with one line that says what to install."""
        compiler = self.compiler
        if compiler.compiler_type == "unix":
            command = getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_cxx
            if shutil.which(command[0]) is None:
                sys.exit(
                    f"setup.py: C++ compiler {command[0]!r} is not on PATH and csrc/data needs "
                    "C++17; run `apt-get install g++` (or set CXX to your compiler)"
                )
        super().build_extensions()


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
