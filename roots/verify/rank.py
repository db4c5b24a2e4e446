"""One process of `roots verify`: python -m roots.verify.rank FOLDER."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from roots.config import load_config
from roots.device import launch_environment
from roots.errors import RootsError
from roots.files import write_atomically
from roots.log import configure
from roots.parallel import process
from roots.verify.curve import train_curve
from roots.verify.proof import curve_file, error_file


def main() -> None:
    """Train FOLDER/config.yaml as this rank and leave beside it the curve, or the user's error."""
    folder = Path(sys.argv[1])
    rank = launch_environment().rank
    configure(rank=rank)
    try:
        curve = train_curve(load_config(folder / "config.yaml"))
    except RootsError as error:
        # Whole or not at all: verify looks for it as soon as any rank has ended.
        told = {"lines": error.lines, "exit_code": int(error.exit_code)}
        write_atomically(error_file(folder, rank), json.dumps(told))
        sys.stderr.writelines(f"roots: error: {line}\n" for line in error.lines)
        sys.exit(int(error.exit_code))
    curve_file(folder, rank).write_bytes(pickle.dumps(curve))
    process.shutdown()


if __name__ == "__main__":
    main()
