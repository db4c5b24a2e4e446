"""Files of a folder that somebody else made: which of them are opened, and how they are copied.

A name that the folder's own files give must be plain, and a link must end inside the folder, or in
the `blobs` of the hub's cache, whose folders `snapshots/REVISION` hold links to `../../blobs/HASH`.
Otherwise an import could be made to read, and an export to publish, any file of whoever runs it.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from roots.errors import RootsError, problem


def file_in(folder: Path, name: str) -> Path | None:
    """The regular file `name` of `folder`, None where there is none.

    Raises RootsError for a name that is not plain, for a link that leads out of the folder, and for
    what is no regular file.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        rule = f"is no plain name of a file of {folder}"
        raise RootsError(problem("file name", name, rule, "name files of the folder itself"))
    path = folder / name
    if path.is_symlink() and not _stays_inside(path, folder):
        rule = f"is a link that leads out of {folder}"
        fix = "copy the file into the folder, if it belongs to the model"
        raise RootsError(problem("file", str(path), rule, fix))
    if not path.exists():
        return None
    if not stat.S_ISREG(path.stat().st_mode):
        rule = "is no regular file"
        raise RootsError(problem("file", str(path), rule, "put the file itself there"))
    return path


def copy_file(source: Path, target: Path) -> None:
    """Copy contents; who may not read `source` may not read the copy either."""
    shutil.copyfile(source, target)
    allowed = stat.S_IMODE(source.stat().st_mode) | stat.S_IRUSR | stat.S_IWUSR
    target.chmod(stat.S_IMODE(target.stat().st_mode) & allowed)


def _stays_inside(path: Path, folder: Path) -> bool:
    target, home = path.resolve(), folder.resolve()
    places = [home]
    if home.parent.name == "snapshots":
        places.append(home.parent.parent / "blobs")
    return any(place in target.parents for place in places)
