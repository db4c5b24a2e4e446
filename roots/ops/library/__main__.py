"""Building kernels by hand, for their authors:

    python -m roots.ops.library build cpu|cuda|simulator ... [--ops rms_norm,swiglu] [--out DIR]
                                      [--sanitize] [--csrc DIR]

Builds incrementally and prints the warnings and the time of every unit. Without options the library
goes where `pip install` puts it. With --ops only the sources whose names begin so are built, and
with --sanitize ASan and UBSan are in; both go to build/kernels, and ROOTS_KERNELS=DIR makes ROOTS
use what is in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

from roots.device import build_environment
from roots.errors import RootsError
from roots.lock import Place, file_lock
from roots.ops.library.build import Plan, build, log_path
from roots.ops.library.load import PACKAGE, sources_folder
from roots.ops.library.ninja import unit_seconds
from roots.ops.library.targets import BACKENDS, Backend, Target, make_target
from roots.ops.library.toolchain import BuildError, find_toolchain

_TIMEOUT_SECONDS = 1800.0
_PLACE = Place("build folder", "kernels are built there", "give another with --out")


def main() -> None:
    """Parse the command line, build, report; exit code 2 where something cannot be built."""
    options = _parser().parse_args()
    try:
        for backend in options.backends:
            _build(backend, options)
    except (BuildError, RootsError) as error:
        sys.exit(f"roots.ops.library: error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m roots.ops.library")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="compile kernel libraries")
    command.add_argument("backends", nargs="+", choices=BACKENDS, metavar="|".join(BACKENDS))
    command.add_argument("--ops", default="", help="stems of sources, with commas: rms_norm,swiglu")
    command.add_argument("--out", type=Path, help="the folder of the libraries")
    command.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    command.add_argument("--csrc", type=Path, help="other sources than those of this checkout")
    return parser


def _build(backend: Backend, options: argparse.Namespace) -> None:
    csrc = options.csrc or sources_folder()
    if csrc is None:
        raise BuildError("there is no folder csrc beside the package roots: give it with --csrc.")
    csrc = csrc.resolve()
    ops = [stem for stem in options.ops.split(",") if stem]
    target = make_target(backend, csrc, ops=ops, sanitize=options.sanitize)
    tools = find_toolchain(
        build_environment(), needs_cuda=backend != "cpu", needs_nvcc=backend == "cuda"
    )
    folder = csrc.parent / "build" / "kernels"
    special = bool(ops) or options.sanitize or options.csrc is not None
    out = options.out or (folder if special else PACKAGE)
    # One folder of objects for each set of options, so that builds do not undo one another.
    variant = hashlib.sha256(f"{ops} {options.sanitize} {csrc}".encode()).hexdigest()[:8]
    objects = folder / f"objects-{backend}-{variant}"
    start = time.monotonic()
    with file_lock(objects.with_suffix(".lock"), _TIMEOUT_SECONDS, _PLACE) as held:
        assert held is not None
        library = build(Plan(target, tools, csrc), objects, out, keep_open=(held,))
    _report(target, objects, library, time.monotonic() - start)
    if out != PACKAGE:
        print(f"ROOTS_KERNELS={out.resolve()} makes ROOTS use it")


def _report(target: Target, objects: Path, library: Path, seconds: float) -> None:
    for line in log_path(library).read_text(encoding="utf-8").splitlines():
        # Of our own lines: gcc warns about its AVX-512 headers, too.
        if "warning" in line and "/csrc/" in line:
            print(line)
    for name, unit in unit_seconds(target, objects).items():
        print(f"{unit:7.1f} s  {name}")
    print(f"{seconds:7.1f} s  {library}")


if __name__ == "__main__":
    main()
