"""Where checkpoints lie: step folders, the `latest` pointer, and finding one to load.

What is ROOTS' own here are folders `step_` and the step in eight digits or more, the same with
`.partial` while they are written, `latest`, those set aside, `superseded_step_...` and
`damaged_step_...`, and `removed_...` while they are removed. So what has the name of a checkpoint
was one once: without its manifest it is damaged. Nothing else is touched, and of a link the link
alone is removed or renamed.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path

from roots.checkpoint.manifest import CONFIG_NAME, MANIFEST_NAME, damage_of, read_manifest
from roots.config.load import load_config, parse_config
from roots.config.run import RunConfig
from roots.config.yaml_reader import read_yaml
from roots.errors import ExitCode, RootsError, code_of, cure_of, problem
from roots.files import free_bytes, sync_folder, write_atomically
from roots.log import get_logger

CHECKPOINTS_FOLDER = "checkpoints"
LATEST_NAME = "latest"
# Why a checkpoint was set aside: the run left its course, or it cannot be read.
SUPERSEDED = "superseded"
DAMAGED = "damaged"
PARTIAL_SUFFIX = ".partial"
_REMOVED = "removed"
_STEP_FOLDER = re.compile(r"step_([0-9]{8,})")
_ASIDE_FOLDER = re.compile(rf"({SUPERSEDED}|{DAMAGED})_step_[0-9]{{8,}}(_[0-9]+)?")
_REMOVED_FOLDER = re.compile(rf"{_REMOVED}_.*step_[0-9]{{8,}}.*")
_logger = get_logger(__name__)


def step_name(step: int) -> str:
    """Name of the folder of `step`, which is also DeepSpeed's tag."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    assert is_step_name(path.name), f"{path} is no folder of a step"
    return step_named(path.name)


def is_step_name(name: str) -> bool:
    """Whether `step_name` gives it for some step."""
    return bool(_STEP_FOLDER.fullmatch(name)) and step_name(step_named(name)) == name


def step_named(name: str) -> int:
    """The step in what `step_name` gave."""
    return int(name.removeprefix("step_"))


def finished_checkpoints(root: Path) -> list[Path]:
    """Finished checkpoints below `root` (RUN/checkpoints), oldest first."""
    return [path for path in saved_checkpoints(root) if (path / MANIFEST_NAME).is_file()]


def saved_checkpoints(root: Path) -> list[Path]:
    """Those, and what is damaged so far that it has lost its manifest; oldest first."""
    found = [path for _, path in _ours(root) if path.is_dir() or path.is_symlink()]
    return [path for path in found if not _is_being_copied(path)]


def _is_being_copied(path: Path) -> bool:
    """Whether it is no checkpoint yet, or no more, in the folder of a mirror (stored.py)."""
    mark = path.with_name(f"{path.name}{PARTIAL_SUFFIX}")
    return mark.is_file() and not (path / MANIFEST_NAME).is_file()


def _ours(root: Path) -> list[tuple[int, Path]]:
    """Whatever has the name of a checkpoint, by step, oldest first."""
    return sorted(
        (step_named(path.name), path) for path in root.glob("step_*") if is_step_name(path.name)
    )


def kept_aside(root: Path) -> list[Path]:
    """What was set aside below `root`, by name."""
    found = (path for path in root.glob("*_step_*") if _ASIDE_FOLDER.fullmatch(path.name))
    return sorted(path for path in found if path.is_dir())


def latest_checkpoint(root: Path) -> Path | None:
    """The newest finished checkpoint below `root`, None if there is none.

    The folders decide and not the pointer, which a crash may leave one save behind.
    """
    found = finished_checkpoints(root)
    return found[-1] if found else None


def point_latest(root: Path, checkpoint: Path) -> None:
    """Let `root/latest` name `checkpoint`, in the form DeepSpeed's tools read."""
    write_atomically(root / LATEST_NAME, checkpoint.name)


def discard_unfinished(root: Path) -> list[Path]:
    """Remove and return the remains of saves, and of removals, that did not end."""
    torn = [path for path in root.glob(f"step_*{PARTIAL_SUFFIX}") if _is_partial(path)]
    torn += [path for path in root.glob(f"{_REMOVED}_*") if _REMOVED_FOLDER.fullmatch(path.name)]
    return [path for path in torn if remove(path)]


def partial_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is whole."""
    return root / f"{step_name(step)}{PARTIAL_SUFFIX}"


def final_folder(partial: Path) -> Path:
    """What a folder that is being written is to be called."""
    return partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))


def publish_folder(partial: Path) -> Path:
    """Rename a folder that is whole to what it is to be called, durably; return that."""
    final = final_folder(partial)
    sync_folder(partial)
    os.rename(partial, final)
    sync_folder(final.parent)
    return final


def _is_partial(path: Path) -> bool:
    name = path.name.removesuffix(PARTIAL_SUFFIX)
    return bool(_STEP_FOLDER.fullmatch(name)) and (path.is_dir() or path.is_symlink())


def discard(path: Path) -> None:
    """Give back the space of a save that failed; nothing happens to one that has its name."""
    if path.name.endswith(PARTIAL_SUFFIX):
        shutil.rmtree(path, ignore_errors=True)


def not_written(partial: Path, error: OSError) -> RootsError:
    """The one line, with exit code NOT_SAVED, on a checkpoint that the disk did not take."""
    rule = f"could not be written ({error.strerror or error})"
    if code_of(error) is ExitCode.NOT_SAVED:
        rule += _room(partial.parent)
    fix = f"{cure_of(error)}; the checkpoints before it are untouched"
    line = problem("checkpoint", str(final_folder(partial)), rule, fix)
    return RootsError(line, exit_code=ExitCode.NOT_SAVED)


def _room(root: Path) -> str:
    """How much the newest checkpoint takes, if that is known, and how much room is left."""
    try:
        free = f"{free_bytes(root):,} bytes are free"
        latest = latest_checkpoint(root)
        if latest is None:
            return f"; {free}"
        return f"; {latest.name} has {read_manifest(latest).total_bytes:,} bytes, and {free}"
    except (OSError, RootsError):
        # What is told is why nothing could be written, whatever else there is that fails.
        return ""


def check_room(root: Path, step: int) -> None:
    """Raise RootsError for what would keep a run from saving below `root` after `step`."""
    lines = []
    fix = "move it away: ROOTS does not remove what it has not made"
    for number, path in _ours(root):
        if number > step and not path.is_dir() and not path.is_symlink():
            rule = "is no folder, and bears the name of a checkpoint to come"
            lines.append(problem("checkpoints", str(path), rule, fix))
    latest = root / LATEST_NAME
    if latest.is_dir() and not latest.is_symlink():
        rule = "is a folder, and a file of that name points to the newest checkpoint"
        lines.append(problem("checkpoints", str(latest), rule, fix))
    if not os.access(root, os.W_OK | os.X_OK):
        lines.append(problem("checkpoints", str(root), "cannot be written", "make it writable"))
    if lines:
        raise RootsError(*lines)


def clear_place(root: Path, step: int) -> Path | None:
    """Rename what has come to lie where the checkpoint of `step` goes; return its new path."""
    path = root / step_name(step)
    return set_aside(path, SUPERSEDED) if os.path.lexists(path) else None


def set_aside_after(root: Path, step: int) -> list[Path]:
    """Rename finished checkpoints of steps above `step` to `superseded_*`; return the new paths.

    Under that name nothing resumes from them and retention does not count them.
    """
    finished = set(finished_checkpoints(root))
    return [
        set_aside(path, SUPERSEDED)
        for number, path in _ours(root)
        if number > step and path in finished
    ]


def set_aside(path: Path, why: str) -> Path:
    """Rename `path` to WHY_NAME, or WHY_NAME_1 and so on; return the new path."""
    number, target = 0, path.with_name(f"{why}_{path.name}")
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{why}_{path.name}_{number}")
    return path.rename(target)


def remove(path: Path) -> bool:
    """Remove a checkpoint or a torn one; a warning if it cannot be, which is no reason to end."""
    doomed = path
    try:
        if path.is_symlink():
            path.unlink()
        else:
            if not _REMOVED_FOLDER.fullmatch(path.name):
                # Half removed it must not be taken for a checkpoint, nor for a damaged one.
                doomed = set_aside(path, _REMOVED)
            shutil.rmtree(doomed)
    except OSError as error:
        _logger.warning("cannot remove all of %s (%s)", doomed, error.strerror or error)
        return False
    return True


def resolve_checkpoint(path: str | Path, subject: str = "checkpoint", others: str = "") -> Path:
    """Find the checkpoint meant by a step folder, a folder of checkpoints or a run's folder.

    Raises RootsError, about `subject`, if there is none. `others`: what else might be given.
    """
    given = Path(path)
    if (given / MANIFEST_NAME).is_file():
        return given
    for root in (given, given / CHECKPOINTS_FOLDER):
        found = latest_checkpoint(root)
        if found is not None:
            return found
    rule = "is no finished checkpoint and holds none" if given.exists() else "does not exist"
    fix = "give a folder like RUN/checkpoints/step_00000100, or the folder of a run"
    fix += others
    if given.name == LATEST_NAME and given.is_file():
        rule, fix = "is a file that names a checkpoint", f"give its folder, {given.parent}"
    elif is_step_name(given.name) and given.is_dir():
        rule = f"has no {MANIFEST_NAME}, so nothing tells whether it is whole"
        fix = "bring that file back from a copy, or use another checkpoint"
    elif damaged := [*saved_checkpoints(given), *saved_checkpoints(given / CHECKPOINTS_FOLDER)]:
        rule = f"holds no finished checkpoint: {damaged[-1].name} has no {MANIFEST_NAME}"
        fix = "bring that file back from a copy, or use another checkpoint"
    elif (given / "config.json").is_file():
        rule = "is a model of Hugging Face, not a checkpoint"
        fix = f"bring it in by `roots import {given} --to CHECKPOINT`"
    raise RootsError(problem(subject, str(given), rule, fix))


def read_config(checkpoint: Path) -> RunConfig:
    """The config of the run that wrote `checkpoint`.

    Raises RootsError if the checkpoint is not finished, or the config is not the one it was.
    """
    damage = damage_of(checkpoint, read_manifest(checkpoint), [CONFIG_NAME])
    if damage:
        raise RootsError(*damage)
    path = checkpoint / CONFIG_NAME
    try:
        return _config_in(path.read_bytes())
    except (RootsError, ValueError, TypeError):
        # No text, no config or no mapping: this says of which file that is true.
        return load_config(path)


@functools.lru_cache(maxsize=4)
def _config_in(content: bytes) -> RunConfig:
    """A start asks several times for the configs of checkpoints that mostly have the same one."""
    return parse_config(read_yaml(content.decode("utf-8"), "config file", CONFIG_NAME))
