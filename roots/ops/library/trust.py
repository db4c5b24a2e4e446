"""Whose files are loaded as programs: those that nobody but trusted users can have written.

Trusted are this user, root, and whoever owns this installation of ROOTS, since that user's files
run here anyway. A group counts as others, unless it is the user's private one, as on Ubuntu.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path


def distrust(paths: Iterable[Path]) -> str:
    """Why the first of `paths` that is not trusted is not, as a clause; "" if all are.

    A folder that all may write, but only remove their own files from, as /tmp, is no reason.
    """
    for path in paths:
        status = path.stat()
        owner = status.st_uid
        if owner not in _trusted_users():
            return f"{path} belongs to {_user_name(owner)}"
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        by_all = status.st_mode & stat.S_IWOTH and not sticky
        by_group = status.st_mode & stat.S_IWGRP and not sticky
        if by_all or (by_group and not _is_private(status.st_gid, owner)):
            return f"{path} may be written by others"
    return ""


def _trusted_users() -> set[int]:
    return {os.getuid(), 0, Path(__file__).stat().st_uid}


def _user_name(user: int) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"user {user}"


def _is_private(group: int, owner: int) -> bool:
    """Whether the group holds its owner alone, by the custom that both have one name."""
    try:
        found, name = grp.getgrgid(group), pwd.getpwuid(owner).pw_name
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}
