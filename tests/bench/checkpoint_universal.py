"""DeepSpeed's ds_to_universal with its default workers, and how long that took without imports.

python -m tests.bench.checkpoint_universal SAVED UNIVERSAL
"""

from __future__ import annotations

import sys
import time

from deepspeed.checkpoint import ds_to_universal


def main() -> None:
    """Convert, then print the seconds as the last word."""
    source, target = sys.argv[1:]
    sys.argv[1:] = ["--input_folder", source, "--output_folder", target]
    arguments = ds_to_universal.parse_arguments()
    started = time.perf_counter()
    ds_to_universal.main(arguments)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
