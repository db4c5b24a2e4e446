"""The configs and launch scripts that come with ROOTS: beside the package, or in it once installed.

A wheel carries them in `roots/_shipped` (setup.py puts them there); in a checkout they stand where
the repository has them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import roots
from roots.config.load import files_of
from roots.errors import RootsError, problem

LAUNCH = "launch"
# Task files of `roots evaluate --tasks`, which include one another.
EVALUATION = "evaluation"


def shipped_folder() -> Path:
    """The folder that holds `configs` and `launch`. Raises RootsError where it is not there."""
    package = Path(roots.__file__).resolve().parent
    for folder in (package / "_shipped", package.parent):
        if (folder / "configs" / "base.yaml").is_file():
            return folder
    fix = "install ROOTS again, by `pip install .` in a checkout"
    raise RootsError(problem("configs", str(package), "are not part of this installation", fix))


def config_names() -> dict[str, str]:
    """Every shipped config by its name, such as model/tiny, with what it says first.

    Those of evaluation/ are task files of lm_eval.
    """
    folder = shipped_folder() / "configs"
    return {
        path.relative_to(folder).with_suffix("").as_posix(): _first_sentence(path)
        for path in sorted(folder.rglob("*.yaml"))
    }


def copy_shipped(name: str, to: Path) -> list[Path]:
    """Copy a config with all that it extends to `to`/configs, or the launch scripts to `to`/launch.

    With one task file go all of them, and their examples. Returns the files that are new. Raises
    RootsError, before anything is written, for a name that is none and for a file that is there
    with other content.
    """
    source = shipped_folder()
    files = list(_launch_scripts(source) if name == LAUNCH else _config_files(source, name))
    targets = {path: to / path.relative_to(source) for path in dict.fromkeys(files)}
    new = {path: target for path, target in targets.items() if not target.exists()}
    fix = "move it away, or name another folder by --to"
    lines = [
        problem(str(target), None, "is there with other content", fix)
        for path, target in targets.items()
        if path not in new and (not target.is_file() or target.read_bytes() != path.read_bytes())
    ]
    if lines:
        raise RootsError(*lines)
    for path, target in new.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        if path.suffix == ".sh":
            target.chmod(target.stat().st_mode | 0o111)
    return list(new.values())


def _config_files(source: Path, name: str) -> Iterator[Path]:
    """A config and all files that it extends, or all task files."""
    known = config_names()
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    if plain not in known:
        rule = "is no config that comes with ROOTS"
        raise RootsError(problem("NAME", name, rule, "`roots config list` prints their names"))
    if plain.startswith(f"{EVALUATION}/"):
        folder = source / "configs" / EVALUATION
        yield from sorted(path for path in folder.rglob("*.*") if path.parent.name != "__pycache__")
    else:
        yield from files_of(source / "configs" / f"{plain}.yaml")


def _launch_scripts(source: Path) -> Iterator[Path]:
    for path in sorted((source / LAUNCH).iterdir()):
        if path.is_file():
            yield path


def _first_sentence(path: Path) -> str:
    """What the comment on top of a config says first."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]
