"""Files that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def publish(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final` once its content is on disk, and make the rename durable."""
    sync_file(temporary)
    os.replace(temporary, final)
    sync_folder(final.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader sees the old or the new content, never a part of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with removed_on_error(temporary):
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)


@contextlib.contextmanager
def removed_on_error(temporary: Path) -> Iterator[None]:
    """Leave no half-written temporary file behind."""
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
