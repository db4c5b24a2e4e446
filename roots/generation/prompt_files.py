"""Prompts from a file, and the file that what is written after them goes to."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roots.errors import RootsError, problem
from roots.files import cannot_write

STANDARD_INPUT = Path("-")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, of .jsonl their `prompt`; "-": lines of standard input.

    Raises RootsError if it cannot be read, for a line without a prompt, and without any.
    """
    try:
        if path == STANDARD_INPUT:
            lines = sys.stdin.read().splitlines()
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise RootsError(problem("--file", str(path), rule, "name a file of prompts")) from error
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 (byte {error.start})"
        raise RootsError(problem("--file", str(path), rule, "convert it to UTF-8")) from error
    if path.suffix == ".jsonl":
        prompts = [
            _prompt_of(path, number, line) for number, line in enumerate(lines, 1) if line.strip()
        ]
    else:
        prompts = lines
    if not prompts:
        raise RootsError(problem("--file", str(path), "holds no prompts", "write one a line"))
    return prompts


def _prompt_of(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        value = error.msg
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        rule = 'must be an object with a text "prompt"'
        raise RootsError(problem(f"{path}:{number}", line[:60], rule, "mend or remove that line"))
    return prompt


class ResultFile:
    """.jsonl of what was written, one line a prompt, in their order; it is gone on with.

    done: prompts of `prompts`, from the first on, that it has already
    """

    def __init__(self, path: Path, prompts: Sequence[str]) -> None:
        """Look at what is there. Raises RootsError if that is not of these prompts."""
        self.path = path
        self.done = 0
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise cannot_write(path, error) from error
        # A line that was cut off by the end of its process is written anew.
        self._size = content.rfind(b"\n") + 1
        lines = content[: self._size].splitlines()
        for number, line in enumerate(lines):
            if number >= len(prompts) or _known_prompt(line) != prompts[number]:
                rule = f"line {number + 1} is not of prompt {number + 1}"
                fix = "name another file, or remove this one"
                raise RootsError(problem("--to", str(path), rule, fix))
        self.done = len(lines)

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the next lines. Raises RootsError if they cannot be."""
        text = "".join(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records)
        data = text.encode("utf-8", "surrogatepass")
        try:
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.seek(self._size)
                file.truncate()
                file.write(data)
        except OSError as error:
            raise cannot_write(self.path, error, len(data)) from error
        self._size += len(data)


def _known_prompt(line: bytes) -> object:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value.get("prompt") if isinstance(value, dict) else None
