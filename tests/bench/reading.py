"""How far a reader has to go for one forward and backward of a plain decoder.

    python -m tests.bench.reading

Counts the files and functions of roots/ that the pass enters on one process, and the files that
importing roots.models.decoder loads. A direction to keep, not a limit.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.helpers.decoders import random_inputs, small_decoder, small_model
from tests.helpers.sources import ROOT

PACKAGE = str(ROOT / "roots")
_IMPORTED = """
import sys, roots.models.decoder
print(sum(name.split(".")[0] == "roots" for name in sys.modules))
"""


def main() -> None:
    """Print the two counts, and the functions that are entered, file by file."""
    model = small_model(
        position="rotary", norm="rms_norm", activation="swiglu", bias=False, tied_embeddings=False
    )
    decoder = small_decoder(model)
    inputs = random_inputs(model, rows=2)

    def step() -> None:
        decoder(*inputs).backward()

    step()  # what happens once only, such as looking for kernels, is no part of a pass
    entered = functions_entered(step)
    files = Counter(file for file, _ in entered)
    print(f"a pass enters {len(files)} files and {len(entered)} functions of roots/")
    for file, count in sorted(files.items()):
        names = ", ".join(sorted(name for where, name in entered if where == file))
        print(f"  {file.removeprefix(PACKAGE + '/')}  {count}: {names}")
    command = [sys.executable, "-c", _IMPORTED]
    imported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    print(f"roots.models.decoder imports {imported.stdout.strip()} files of roots/")


def functions_entered(action: Callable[[], None]) -> set[tuple[str, str]]:
    """(file, qualified name) of every function of roots/ that `action` calls, on any thread."""
    entered: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            entered.add((code.co_filename, code.co_qualname))

    # A CPU's backward pass runs on the thread that asked for it.
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return entered


if __name__ == "__main__":
    main()
