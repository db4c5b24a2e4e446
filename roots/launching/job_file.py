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

from roots.errors import problem

_MARK = "#SBATCH "
# Where the ranks of a job meet, as launch/slurm.sbatch says it.
_PORT = re.compile(r'MASTER_PORT="(\$\{MASTER_PORT:-[^"]*\})"')
# What is for that script, and not for sbatch.
_OF_SCRIPT = ("--sweep", "--container", "--mount")
_CONTAINER = re.compile("(pyxis|apptainer|podman):.+")


@dataclass(frozen=True)
class JobFile:
    """Options of sbatch as written in a job file, by name: "--nodes" to "--nodes=2".

    `of_script` are words for the script; `port` is where ranks meet, as an expression of the shell.
    """

    script: Path
    options: Mapping[str, str]
    of_script: tuple[str, ...] = ()
    port: str = ""

    @staticmethod
    def of(script: Path) -> JobFile:
        """What a batch script asks Slurm for."""
        text = script.read_text(encoding="utf-8")
        lines, port = text.splitlines(), _PORT.search(text)
        words = [line.removeprefix(_MARK).strip() for line in lines if line.startswith(_MARK)]
        return JobFile(
            script, {_name(word): word for word in words}, port="" if port is None else port[1]
        )

    def with_options(self, values: Mapping[str, str]) -> JobFile:
        """With `values` by name, in the place of what was there."""
        return self.with_words([f"{name}={value}" for name, value in values.items()])

    def with_words(self, words: Sequence[str]) -> JobFile:
        """With options as #SBATCH lines have them; a short one comes after the long, and wins.

        Those of the script become its words: `--container=KIND:IMAGE`, or with a space between.
        """
        ours = [word for word in words if _name(word) in _OF_SCRIPT]
        split = [part for word in ours for part in re.split("[= ]", word, maxsplit=1)]
        theirs = {_name(word): _quoted(word) for word in words if word not in ours}
        return replace(
            self, options={**self.options, **theirs}, of_script=(*self.of_script, *split)
        )

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
        """Ranks of the job."""
        return self._number("--nodes") * self.tasks

    @property
    def tasks(self) -> int:
        """Ranks on each node."""
        return self._number("--ntasks-per-node")

    def _number(self, name: str) -> int:
        _, _, value = self.options.get(name, "").partition("=")
        # `6-8` nodes are at least six.
        found = re.match("[0-9]+", value)
        return int(found[0]) if found else 1

    def text(self, words: Sequence[str], folder: Path, variables: Mapping[str, str]) -> str:
        """The file: `words` are CONFIG and overrides, which count from `folder`."""
        quoted = shlex.join(words)
        start = shlex.join(["bash", str(self.script), *self.of_script])
        lines = [
            "#!/usr/bin/env bash",
            *(f"{_MARK}{option}" for option in self.options.values()),
            "#",
            "# Written by `roots launch`; sbatch submits it again. What it asks of Slurm is what",
            "# launch/slurm.sbatch asks, with what the command line said in its place.",
            "set -euo pipefail",
            shlex.join(["cd", str(folder)]),
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            *([] if "--container" in self.of_script else [f"{self._check(folder)} {quoted}"]),
            f"exec {start} {quoted}",
        ]
        return "\n".join(lines) + "\n"

    def _check(self, folder: Path) -> str:
        """What looks at the nodes; a container has another Python, and does not run yet."""
        words = ["env", "-C", "/", sys.executable, "-m", "roots.launching.allocation"]
        port = f' --port "{self.port}"' if self.port else ""
        return shlex.join([*words, "--folder", str(folder)]) + port


def _name(word: str) -> str:
    return re.split("[= ]", word, maxsplit=1)[0]


def _quoted(word: str) -> str:
    """An option with its value as one word for sbatch; what already is one stays as it is."""
    name, mark, value = re.fullmatch(r"([^= ]*)(=| *)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    if not value or _is_one(value):
        return word
    escaped = value.replace("\\", r"\\").replace('"', r"\"")
    return f'{name}{mark}"{escaped}"'


def _is_one(value: str) -> bool:
    """Whether sbatch reads it as one word, with nothing lost behind a #."""
    try:
        return len(shlex.split(value)) == 1 and shlex.split(value) == shlex.split(value, True)
    except ValueError:
        return False


def option_problem(option: str, value: str) -> str:
    """Why that cannot be a line `#SBATCH value`; "" where it can."""
    if len(value.splitlines()) > 1 or value.endswith("\n"):
        return problem(option, value, "must be on one line", "leave the line break out")
    if option == "--option" and not re.match("--?[a-zA-Z]", value):
        rule = "is no option of sbatch"
        return problem(option, value, rule, "write --option=--NAME=VALUE")
    name, *given = re.split("[= ]", value, maxsplit=1)
    if name in _OF_SCRIPT and not any(given):
        return problem(option, value, "its value is missing", f"write --option={name}=VALUE")
    if name == "--container" and not _CONTAINER.fullmatch(given[0]):
        fix = f"write --option={name}=KIND:IMAGE with KIND pyxis, apptainer or podman"
        return problem(option, value, "names no container", fix)
    if re.match("--?[a-zA-Z]", value) and re.search(r"^[^'\"]*\s--?[a-zA-Z]", value):
        rule = "is more than one option of sbatch"
        return problem(option, value, rule, "give each an --option of its own, or quote its value")
    return ""
