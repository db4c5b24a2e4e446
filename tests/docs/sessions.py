"""Run the pages of the site as a reader would, and compare what is printed.

    python -m tests.docs.sessions [PAGE ...] [--update]

Without pages all are run. --update writes what was printed into the page where it differs: in the
place of an output with one `...`, as many lines as stood before and after it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs.compare import ANY_LINES, matches
from tests.docs.fork_server import serving
from tests.docs.pages import PAGES, Block, Command, Page, all_pages, read_page
from tests.helpers.sources import ROOT

SECONDS_A_COMMAND = 300
# What a page finds in its folder if it is for readers with a checkout.
OF_CHECKOUTS = ("configs", "launch", "docker", "roots", "tests")


@dataclass(frozen=True)
class Difference:
    """A command that did not print what its page says, or ended otherwise."""

    page: Page
    block: Block
    command: Command
    printed: list[str]
    exit_code: int
    expected_code: int

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.page.name}:{self.command.line + 1}: $ {self.command.text}",
                f"exit code {self.exit_code}, expected {self.expected_code}",
                "--- printed",
                *self.printed,
                "--- the page says",
                *self.command.output,
            ]
        )


class Sessions:
    """Runs pages, each in a folder below `folder`, once however many continue it."""

    def __init__(self, folder: Path, commands: Path) -> None:
        self.folder = folder
        self.commands = commands

    def run(self, page: Page) -> list[Difference]:
        """Run a page, after the one it continues, and list what differs. Nothing is run twice."""
        place = self._place(page)
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            work, done = place / "work", place / "done"
            if done.exists():
                return []
            self._prepare(page, work)
            found = [each for block in page.blocks for each in self._run_block(page, block, work)]
            if not found:
                done.touch()
        return found

    def keep(self, page: Page) -> None:
        """Take what a page printed for right, so that others can continue it."""
        (self._place(page) / "done").touch()

    def _place(self, page: Page) -> Path:
        return self.folder / page.name.removesuffix(".md").replace("/", "-")

    def _prepare(self, page: Page, work: Path) -> None:
        """Make the folder of a page: empty, or as the page before it left its own."""
        if work.exists():
            shutil.rmtree(work)
        if page.continues is None:
            work.mkdir()
        else:
            before = read_page(PAGES / page.continues)
            found = self.run(before)
            assert not found, f"{before.name}, which {page.name} continues:\n{found[0]}"
            shutil.copytree(self._place(before) / "work", work, symlinks=True)
        if page.checkout:
            for name in OF_CHECKOUTS:
                if not (work / name).exists():
                    (work / name).symlink_to(ROOT / name)

    def _run_block(self, page: Page, block: Block, work: Path) -> list[Difference]:
        if block.title is not None:
            path = work / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(block.lines) + "\n", encoding="utf-8")
        if block.language != "console" or block.not_run:
            return []
        found = []
        commands = block.commands
        for command in commands:
            expected_code = block.exit_code if command is commands[-1] else 0
            code, printed = self._shell(command.text, work)
            fits = matches(_trimmed(command.output), printed, varies=block.varies)
            if not fits or code != expected_code:
                found.append(Difference(page, block, command, printed, code, expected_code))
        return found

    def _shell(self, text: str, work: Path) -> tuple[int, list[str]]:
        """Exit code of a command and the lines it printed, of both streams."""
        path = [str(self.commands), str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = {
            "PATH": os.pathsep.join(path),
            "HOME": os.environ.get("HOME", ""),
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
            "LC_ALL": "C.UTF-8",
            "ROOTS_VENV": str(Path(sys.executable).parents[1]),
            "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", ""),
        }
        result = subprocess.run(
            ["bash", "-c", text],
            cwd=work,
            env={name: value for name, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS_A_COMMAND,
        )
        return result.returncode, _trimmed(result.stdout.replace(str(work), "~").splitlines())


def _trimmed(lines: Sequence[str]) -> list[str]:
    """Lines without white space at their ends, and without empty ones at the end."""
    kept = [line.rstrip() for line in lines]
    while kept and not kept[-1]:
        kept.pop()
    return kept


def write_outputs(page: Page, differences: Sequence[Difference]) -> None:
    """Put what was printed into the page."""
    lines = page.path.read_text(encoding="utf-8").splitlines()
    for difference in reversed(differences):
        command = difference.command
        first = command.line + command.text.count("\n") + 1
        new = _elided(_trimmed(command.output), difference.printed)
        kept = [(difference.block.indent + line).rstrip() for line in new]
        lines[first : first + len(command.output)] = kept
    page.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _elided(before: list[str], printed: list[str]) -> list[str]:
    """As much of what was printed as the page showed before."""
    if before.count(ANY_LINES) != 1:
        return printed
    head = before.index(ANY_LINES)
    tail = len(before) - head - 1
    if head + tail >= len(printed):
        return printed
    return [*printed[:head], ANY_LINES, *printed[len(printed) - tail :]]


def main() -> None:
    """Run pages from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pages", nargs="*", help="paths below docs/pages; none: all")
    parser.add_argument("--update", action="store_true", help="write what was printed")
    options = parser.parse_args()
    wanted = [read_page(PAGES / name) for name in options.pages] or all_pages()
    code = 0
    with tempfile.TemporaryDirectory() as folder, serving() as commands:
        sessions = Sessions(Path(folder), commands)
        for page in wanted:
            started = time.perf_counter()
            found = sessions.run(page)
            print(f"{page.name}: {time.perf_counter() - started:.1f} s, {len(found)} differ")
            if found and options.update:
                write_outputs(page, found)
                sessions.keep(page)
            elif found:
                print("\n\n".join(map(str, found)))
                code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
