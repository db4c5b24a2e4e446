"""Make the corpus of the quickstart from what every Python brings: the standard library's own text.

    python launch/quickstart_corpus.py FOLDER

Writes FOLDER/train.jsonl and FOLDER/valid.jsonl, one {"name": ..., "text": ...} a line. A document
is the source of a module, or, for modules in C, its docstrings. Which of them are held out depends
on a hash of their names alone, about one in sixteen; a second machine holds out the same ones.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT_ONE_IN = 16
# Tests, installed packages, and tables of numbers in the shape of Python files.
LEFT_OUT_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idle_test",
    "lib-dynload",
    "site-packages",
    "test",
    "tests",
}
# Modules in C whose docstrings are worth reading. Importing them has no effect on the machine.
MODULES_IN_C = ("array", "builtins", "cmath", "errno", "gc", "itertools", "math", "time", "zlib")


def main(folder: Path) -> None:
    """Write both files and say how much they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"train": 0, "valid": 0}
    with (
        open(folder / "train.jsonl", "w", encoding="utf-8") as train,
        open(folder / "valid.jsonl", "w", encoding="utf-8") as valid,
    ):
        files = {"train": train, "valid": valid}
        for name, text in documents():
            part = "valid" if is_held_out(name) else "train"
            files[part].write(json.dumps({"name": name, "text": text}) + "\n")
            sizes[part] += len(text)
    megabytes = {part: size / 1e6 for part, size in sizes.items()}
    print(f"{megabytes['train']:.1f} MB of text, and {megabytes['valid']:.1f} MB held out")


def documents() -> Iterator[tuple[str, str]]:
    """All (name, text), sources in the order of their paths, then docstrings."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if LEFT_OUT_FOLDERS.intersection(name.parts) or name.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            print(f"left out {path}: {error}", file=sys.stderr)
            continue
        if text.strip():
            yield name.as_posix(), text
    for module_name in MODULES_IN_C:
        yield f"{module_name} (docstrings)", docstrings(module_name)


def docstrings(module_name: str) -> str:
    """The docstrings of a module and of what it defines, each under its name."""
    module = importlib.import_module(module_name)
    parts = [f"{module_name}\n\n{inspect.getdoc(module) or ''}"]
    for name, member in sorted(vars(module).items()):
        text = inspect.getdoc(member) if callable(member) else None
        if text and not name.startswith("_"):
            parts.append(f"{module_name}.{name}\n\n{text}")
    return "\n\n\n".join(parts) + "\n"


def is_held_out(name: str) -> bool:
    """Decide by name, so that the answer is the same on every machine and in every run."""
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: quickstart_corpus.py FOLDER")
    main(Path(sys.argv[1]))
