"""A bare checkout and a PATH of chosen tools: a machine that lacks things, for the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.sources import ROOT

TOOLS = (
    "awk",
    "basename",
    "bash",
    "cat",
    "cut",
    "df",
    "dirname",
    "env",
    "find",
    "grep",
    "head",
    "mkdir",
    "mktemp",
    "nproc",
    "paste",
    "rm",
    "sha256sum",
    "sort",
    "tail",
    "tr",
    "uname",
    "wc",
)


class Machine:
    """A folder with the launch scripts and nothing built, and the tools that are on its PATH."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.tools = folder / "tools"
        self.tools.mkdir(parents=True)
        for name in ("launch", "configs"):
            shutil.copytree(ROOT / name, self.checkout / name)
        (self.checkout / "docker").mkdir()
        shutil.copy(ROOT / "docker" / "constraints.txt", self.checkout / "docker")
        for name in TOOLS:
            found = shutil.which(name)
            assert found, f"the test needs {name}"
            (self.tools / name).symlink_to(found)
        self.tool("python3", f'exec {sys.executable} "$@"')

    def tool(self, name: str, script: str) -> None:
        """Put a shell script on PATH under `name`, in place of what was there."""
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{self.tools / 'bash'}\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the checkout with bash; `environment` is all it gets besides PATH."""
        return subprocess.run(
            [str(self.tools / "bash"), *map(str, command)],
            cwd=self.checkout,
            env={"PATH": str(self.tools), "HOME": str(self.checkout), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def files(self) -> set[Path]:
        """Everything in the checkout, to see that nothing was changed."""
        return set(self.checkout.rglob("*"))


def environment_with(**values: str) -> dict[str, str]:
    """This process's environment with some values replaced."""
    return {**os.environ, **values}
