"""Environments of other versions: one for each torch, and beside it a folder for each DeepSpeed.

    CACHE/torch-2.15.0/              a virtual environment: torch, and what DeepSpeed and ROOTS need
    CACHE/deepspeed-0.19.8/          DeepSpeed alone, which is Python, for PYTHONPATH

What is there is used again: a stamp tells that an installation has ended. pip takes its usual
configuration, so PIP_CONFIG_FILE, PIP_FIND_LINKS and their like decide what can be had.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.sources import ROOT

CONSTRAINTS = ROOT / "docker" / "constraints.txt"
# Versions that follow from torch's.
_FREE = re.compile(r"(torch|deepspeed|triton|setuptools|filelock|fsspec|cuda-.*|nvidia-.*)==")
_NEEDED = (
    # DeepSpeed's, and what builds it
    *("einops", "hjson", "msgpack", "ninja", "numpy", "packaging", "psutil", "py-cpuinfo", "tqdm"),
    *("setuptools", "wheel"),
    # ROOTS' and its tests'
    *("pydantic", "PyYAML", "typer", "rich", "tokenizers", "safetensors", "tensorboard"),
    *("pybind11", "pytest", "pytest-timeout"),
)
_STAMP = ".complete"


class NotToBeHad(Exception):
    """pip could not install a version; the message is what it said."""


@dataclass(frozen=True)
class Environment:
    """The interpreter with a torch, and the folder of a DeepSpeed."""

    torch: str
    deepspeed: str
    python: Path
    deepspeed_folder: Path

    def variables(self) -> dict[str, str]:
        """The variables of its processes: this checkout before the packages."""
        return {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{self.deepspeed_folder}",
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            # One for each torch: kernels and operators compiled against another do not count.
            "TORCH_EXTENSIONS_DIR": str(self.python.parents[1] / "extensions"),
        }


def environment(cache: Path, torch: str, deepspeed: str) -> Environment:
    """Make what is missing of the pair. Raises NotToBeHad."""
    folder = cache / f"torch-{torch}"
    python = folder / "bin" / "python"
    if not (folder / _STAMP).exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        constraints = cache / "constraints.txt"
        lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        constraints.write_text("\n".join(line for line in lines if not _FREE.match(line)))
        _pip(python, "--no-compile", "-c", str(constraints), f"torch=={torch}", *_NEEDED)
        (folder / _STAMP).touch()
    target = cache / f"deepspeed-{deepspeed}"
    if not (target / _STAMP).exists():
        # An isolated build would fetch a torch of its own.
        _pip(
            *(python, "--no-deps", "--no-build-isolation", "--no-compile", "--upgrade"),
            *("--target", str(target), f"deepspeed=={deepspeed}"),
        )
        (target / _STAMP).touch()
    return Environment(torch, deepspeed, python, target)


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotToBeHad((errors or done.stderr.splitlines() or ["pip failed"])[0])
