"""The stamp beside a library: what it was built from and with, as JSON, and hashes over both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .targets import Target
from .toolchain import Toolchain


@dataclass(frozen=True)
class Stamp:
    """What a library was built from (`sources`, a hash) and with. `cuda` is empty on a CPU."""

    backend: str
    sources: str
    torch: str
    cuda: str
    architectures: tuple[str, ...]
    compiler: str

    def key(self) -> str:
        """A hash over everything, by which the cache tells libraries apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def make_stamp(target: Target, tools: Toolchain, csrc: Path) -> Stamp:
    """Describe the build of `target` from `csrc` with `tools`."""
    return Stamp(
        backend=target.backend,
        sources=source_hash(target, csrc),
        torch=tools.torch.version,
        cuda="" if tools.cuda is None else tools.cuda.version,
        architectures=target.architectures,
        compiler=tools.compiler_version,
    )


def source_hash(target: Target, csrc: Path) -> str:
    """A hash over all files that the library depends on, and over the flags; not over the tools."""
    digest = hashlib.sha256()
    for name in target.files:
        content = (csrc / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    for unit in target.units:
        flags = [flag for flag in unit.flags if not flag.startswith("-gencode=")]
        digest.update("\0".join([unit.name, unit.source, unit.compiler, *flags]).encode())
    digest.update("\0".join(target.link).encode())
    return digest.hexdigest()[:16]


def stamp_path(library: Path) -> Path:
    """Where the stamp of a library lies."""
    return library.with_suffix(".json")


def write_stamp(library: Path, stamp: Stamp) -> None:
    """Put the stamp beside the library."""
    stamp_path(library).write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")


def read_stamp(library: Path) -> Stamp | None:
    """The stamp of a library; None where there is none that can be read."""
    try:
        content = json.loads(stamp_path(library).read_text(encoding="utf-8"))
        architectures = tuple(content.pop("architectures"))
        return Stamp(**content, architectures=architectures)
    except (OSError, ValueError, KeyError, TypeError):
        return None
