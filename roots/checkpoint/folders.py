"""Where checkpoints lie: step folders, the `latest` pointer, retention, and finding one to load."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from roots.checkpoint.manifest import CONFIG_NAME, MANIFEST_NAME, read_manifest
from roots.config.load import load_config
from roots.config.run import RunConfig
from roots.errors import RootsError, problem
from roots.files import write_atomically

CHECKPOINTS_FOLDER = "checkpoints"
LATEST_NAME = "latest"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")


def step_name(step: int) -> str:
    """Name of the folder of `step`, which is also DeepSpeed's tag."""
    return f"step_{step:08d}"


def finished_checkpoints(root: Path) -> list[Path]:
    """Finished checkpoints below `root` (RUN/checkpoints), oldest first."""
    found = []
    for path in root.glob("step_*"):
        match = _STEP_FOLDER.fullmatch(path.name)
        if match and (path / MANIFEST_NAME).is_file():
            found.append((int(match.group(1)), path))
    return [path for _, path in sorted(found)]


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
    """Remove and return the remains of saves that did not end: DeepSpeed needs a fresh folder."""
    torn = [path for path in sorted(root.glob("step_*")) if not (path / MANIFEST_NAME).is_file()]
    for path in torn:
        shutil.rmtree(path)
    return torn


def set_aside_after(root: Path, step: int) -> list[Path]:
    """Rename finished checkpoints of steps above `step` to `superseded_*`; return the new paths.

    Under that name nothing resumes from them and retention does not count them.
    """
    renamed = []
    for path in finished_checkpoints(root):
        if int(path.name.removeprefix("step_")) <= step:
            continue
        number, target = 0, root / f"superseded_{path.name}"
        while target.exists():
            number += 1
            target = root / f"superseded_{path.name}_{number}"
        renamed.append(path.rename(target))
    return renamed


def keep_last(root: Path, count: int) -> list[Path]:
    """Remove finished checkpoints but the newest `count` (0: keep all); return those removed."""
    doomed = finished_checkpoints(root)[:-count] if count else []
    for path in doomed:
        # Without its manifest a half-removed folder cannot be taken for a checkpoint.
        (path / MANIFEST_NAME).unlink()
        shutil.rmtree(path)
    return doomed


def resolve_checkpoint(path: str | Path) -> Path:
    """Find the checkpoint meant by a step folder, a folder of checkpoints or a run's folder.

    Raises RootsError if there is none.
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
    raise RootsError(problem("checkpoint", str(given), rule, fix))


def read_config(checkpoint: Path) -> RunConfig:
    """The config of the run that wrote `checkpoint`. Raises RootsError if it is not finished."""
    read_manifest(checkpoint)
    return load_config(checkpoint / CONFIG_NAME)
