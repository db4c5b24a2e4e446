"""The job file of a Slurm run: the #SBATCH lines of launch/slurm.sbatch with others in their place.

It looks at the nodes that it got before ranks start there, and then becomes launch/slurm.sbatch.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_MARK = "#SBATCH "


@dataclass(frozen=True)
class JobFile:
    """Options of sbatch as written in a job file, by name: "--nodes" to "--nodes=2"."""

    script: Path
    options: Mapping[str, str]

    @staticmethod
    def of(script: Path) -> JobFile:
        """What a batch script asks Slurm for."""
        lines = script.read_text(encoding="utf-8").splitlines()
        words = [line.removeprefix(_MARK).strip() for line in lines if line.startswith(_MARK)]
        return JobFile(script, {_name(word): word for word in words})

    def with_options(self, values: Mapping[str, str]) -> JobFile:
        """With `values` by name, in the place of what was there."""
        return self.with_words([f"{name}={value}" for name, value in values.items()])

    def with_words(self, words: Sequence[str]) -> JobFile:
        """With options as #SBATCH lines have them; a short one comes after the long, and wins."""
        return replace(self, options={**self.options, **{_name(word): word for word in words}})

    def with_tasks(self, count: int) -> JobFile:
        """With `count` ranks on each node, and a GPU for each where GPUs are asked for."""
        names = [name for name in ("--ntasks-per-node", "--gpus-per-node") if name in self.options]
        return self.with_options(dict.fromkeys(["--ntasks-per-node", *names], str(count)))

    def without_gpus(self) -> JobFile:
        """Without what asks for GPUs."""
        kept = {name: word for name, word in self.options.items() if "gpu" not in word}
        return replace(self, options=kept)

    @property
    def ranks(self) -> int:
        """Tasks of the job."""
        return self._number("--nodes") * self._number("--ntasks-per-node")

    def _number(self, name: str) -> int:
        _, _, value = self.options.get(name, "").partition("=")
        return int(value) if value.isdecimal() else 1

    def text(self, words: Sequence[str], folder: Path, variables: Mapping[str, str]) -> str:
        """The file: `words` are CONFIG and overrides, which count from `folder`."""
        quoted = shlex.join(words)
        check = [sys.executable, "-m", "roots.launching.allocation", "--folder", str(folder)]
        lines = [
            "#!/usr/bin/env bash",
            *(f"{_MARK}{option}" for option in self.options.values()),
            "#",
            "# Written by `roots launch`; sbatch submits it again. What it asks of Slurm is what",
            "# launch/slurm.sbatch asks, with what the command line said in its place.",
            "set -euo pipefail",
            shlex.join(["cd", str(folder)]),
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f"env -C / {shlex.join(check)} {quoted}",
            f"exec bash {shlex.quote(str(self.script))} {quoted}",
        ]
        return "\n".join(lines) + "\n"


def _name(word: str) -> str:
    return re.split("[= ]", word, maxsplit=1)[0]
