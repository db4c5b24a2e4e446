"""The checkpoint that a user names, by a path or by a URL, as a folder of this file system."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from roots.checkpoint import folders
from roots.checkpoint.manifest import MANIFEST_NAME, Manifest
from roots.checkpoint.storage import join, storage_at
from roots.checkpoint.stored import StoredCheckpoints, unreachable
from roots.errors import RootsError, problem
from roots.files import is_url

_KEY_BYTES = 8


def resolve_checkpoint(given: str | Path) -> Path:
    """The checkpoint meant by a step folder, a folder of checkpoints, a run's, or the URL of one.

    Of one at a URL, what a model is loaded from is fetched into the user's cache, unless that has
    it already. Raises RootsError if there is none, or if what comes is not what was saved.
    """
    if not is_url(given):
        return folders.resolve_checkpoint(given)
    # It loads torch, which whoever lists folders does not wait for.
    from roots.device import cache_folder

    return fetched(str(given), cache_folder() / "checkpoints", lambda found: found.model_files)


def fetched(
    url: str,
    below: Path,
    wanted: Callable[[Manifest], Iterable[str]],
    subject: str = "checkpoint",
) -> Path:
    """The newest checkpoint at `url`, with the files `wanted` of it, in a folder `below`.

    The folder is named after the URL and the manifest, so that it never holds another checkpoint.
    Raises RootsError as `resolve_checkpoint`, about `subject`.
    """
    stored, names = checkpoints_at(url, subject=subject)
    name = names[-1]
    try:
        text = stored.manifest_text(name)
        key = hashlib.blake2b(url.encode() + text, digest_size=_KEY_BYTES).hexdigest()
        folder = below / key / (name or url.rstrip("/").rpartition("/")[2])
        stored.fetch(name, folder, wanted)
    except OSError as error:
        raise unreachable(subject, url, error) from None
    return folder


def checkpoints_at(
    url: str, *, lost: bool = False, subject: str = "checkpoint"
) -> tuple[StoredCheckpoints, list[str]]:
    """The checkpoints at a URL and their names, oldest first; of one checkpoint the name is "".

    `lost`: with those that have lost their manifest, which nothing can be loaded from.
    Raises RootsError, about `subject`, if there are none, or the URL cannot be read.
    """
    rule = "is no finished checkpoint and holds none"
    fix = "give the URL of a folder like step_00000100, or of the folder of a run"
    try:
        for place in (url, join(url, folders.CHECKPOINTS_FOLDER)):
            stored = StoredCheckpoints(storage_at(place, subject))
            if stored.is_finished(""):
                return stored, [""]
            finished = stored.names()
            torn = stored.lost() if lost or not finished else []
            if finished or (lost and torn):
                return stored, sorted({*finished, *torn}, key=folders.step_named)
            if torn:
                rule = f"holds no finished checkpoint: {torn[-1]} has no {MANIFEST_NAME}"
                fix = "bring that file back from a copy, or use another checkpoint"
                break
    except OSError as error:
        raise unreachable(subject, url, error) from None
    raise RootsError(problem(subject, url, rule, fix))
