"""Files that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import os
from pathlib import Path


def publish(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final` once its content is on disk, and make the rename durable."""
    sync_file(temporary)
    os.replace(temporary, final)
    sync_folder(final.parent)


def sync_file(path: Path) -> None:
    """Wait until the content of `path` is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
