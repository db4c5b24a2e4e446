"""One process of `roots verify`: python -m roots.training.verify_rank FOLDER."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from roots.config import load_config
from roots.device import launch_environment
from roots.log import configure
from roots.parallel import process
from roots.training.verify import curve_file
from roots.training.verify_curve import train_curve


def main() -> None:
    """Train FOLDER/config.yaml as this rank and leave the curve beside it."""
    folder = Path(sys.argv[1])
    rank = launch_environment().rank
    configure(rank=rank)
    curve = train_curve(load_config(folder / "config.yaml"))
    curve_file(folder, rank).write_bytes(pickle.dumps(curve))
    process.shutdown()


if __name__ == "__main__":
    main()
