#!/usr/bin/env python3
"""List every package of an image with a hash of its files: two images with one list hold the same.

    roots-packages [--root /] [--environment FOLDER]

A line is `debian NAME:ARCHITECTURE VERSION SHA256` or `python NAME VERSION SHA256`. The first hash
is that of the list of checksums that dpkg keeps, the second that of the lines of RECORD that tell
of what the package brought: neither what Python compiles nor what pip notes about an installation.
"-" stands for a package without such a list. The standard library alone is needed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

# Notes of the installer, in the folder of a distribution.
NOTES = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json"}


def main(arguments: list[str]) -> int:
    """Print the list; 2 where there is nothing to list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path("/"), help="where dpkg's lists are below")
    parser.add_argument(
        "--environment",
        type=Path,
        default=Path(os.environ.get("VIRTUAL_ENV", "/opt/roots")),
        help="the Python environment",
    )
    options = parser.parse_args(arguments)
    lines = sorted([*debian(options.root), *python(options.environment)])
    if not lines:
        print(
            f"roots-packages: --root={options.root}, --environment={options.environment}: hold no "
            "packages",
            file=sys.stderr,
        )
        return 2
    print("\n".join(lines))
    return 0


def debian(root: Path) -> Iterator[str]:
    """A line for every package that is installed below `root`; none where dpkg is not at home."""
    folder = root / "var" / "lib" / "dpkg"
    status = folder / "status"
    if not status.is_file():
        return
    for stanza in status.read_text(encoding="utf-8").split("\n\n"):
        fields = HeaderParser().parsestr(stanza)
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        name, architecture = fields["Package"], fields["Architecture"]
        lists = [folder / "info" / f"{n}.md5sums" for n in (name, f"{name}:{architecture}")]
        yield _line(f"debian {name}:{architecture} {fields['Version']}", lists)


def python(environment: Path) -> Iterator[str]:
    """A line for every distribution in the site-packages of `environment`."""
    for folder in environment.glob("lib/python3*/site-packages/*.dist-info"):
        fields = HeaderParser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))
        yield _line(f"python {fields['Name']} {fields['Version']}", [folder / "RECORD"])


def _line(head: str, lists: list[Path]) -> str:
    """`head` with the hash of the first list that is there."""
    found = [path for path in lists if path.is_file()]
    if not found:
        return f"{head} -"
    text = found[0].read_text(encoding="utf-8")
    rows = _of_the_package(text) if found[0].name == "RECORD" else text.splitlines()
    digest = hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()
    return f"{head} {digest}"


def _of_the_package(record: str) -> list[str]:
    """The lines of a RECORD that are the same wherever and however the package is installed."""
    rows = [row for row in csv.reader(record.splitlines()) if row]
    return [
        ",".join(row)
        for row in rows
        if not row[0].endswith(".pyc")
        and not (Path(row[0]).parent.name.endswith(".dist-info") and Path(row[0]).name in NOTES)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
