"""The proof behind `roots verify`: a small copy of a config, in its layout and on one process.

Both are trained for ten steps with real processes of this machine (launch.py) and compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roots.config.run import RunConfig
from roots.config.shrink import (
    VOCABULARY,
    Precision,
    in_fp32,
    not_at_work,
    one_process,
    reduced_degrees,
    shrink,
)
from roots.data.indexed import IndexedWriter
from roots.device import device_count
from roots.log import Report, silent
from roots.verify.compare import Comparison, Curve, compare
from roots.verify.half import in_16_bits
from roots.verify.launch import launch

TOLERANCE = 1e-5
_DOCUMENTS, _LONGEST_DOCUMENT = 200, 40


@dataclass(frozen=True)
class Verdict:
    """What was compared, and what came out. `reduced` says which degrees were made smaller,
    `not_shown` what of the layout was not at work.

    comparison:   the layout against one process, in the same precision
    against_fp32: in 16 bits one process, and the layout, against one process in fp32
    """

    config: RunConfig
    ranks: int
    device: str
    comparison: Comparison
    reference: Curve
    seconds: float
    reduced: tuple[str, ...] = ()
    not_shown: tuple[str, ...] = ()
    against_fp32: tuple[Comparison, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether everything is within its bound."""
        return all(each.equal for each in (self.comparison, *self.against_fp32))


def verify(
    config: RunConfig,
    ranks: int,
    folder: Path,
    report: Report = silent,
    precision: Precision = "fp32",
) -> Verdict:
    """Train the small copy of `config` on one process and on `ranks` in `precision`, and compare.

    In 16 bits a process in fp32 is trained too, against which both are held. `folder` gets configs,
    data, curves, and a log of every rank. Raises RootsError where no small copy is legal, or where
    a rank fails, as `launch` does.
    """
    started = time.monotonic()
    small = shrink(config, ranks, write_data(folder), precision)
    on_gpus = device_count() >= ranks
    alone = [one_process(small)]
    if precision != "fp32":
        alone.append(in_fp32(alone[0]))
    # Counted in processes: those of the references, then those of the layout.
    before, total = len(alone), len(alone) + ranks
    references = []
    for number, each in enumerate(alone):
        (curve,) = launch(each, 1, folder / f"one-process-{each.training.precision}", on_gpus)
        references.append(curve)
        report(number + 1, total)
    curves = launch(
        small, ranks, folder / "layout", on_gpus, lambda ended: report(before + ended, total)
    )
    seconds = time.monotonic() - started
    comparison, against_fp32 = compare_all(references, curves)
    return Verdict(
        small,
        ranks,
        "cuda" if on_gpus else "cpu",
        comparison,
        references[0],
        seconds,
        reduced_degrees(config, small, ranks),
        not_at_work(config, small, ranks),
        against_fp32,
    )


def compare_all(
    references: Sequence[Curve], curves: Sequence[Curve]
) -> tuple[Comparison, tuple[Comparison, ...]]:
    """The comparisons of a verdict. references: of one process, the second, if any, in fp32."""
    if len(references) == 1:
        return compare(references[0], curves, TOLERANCE), ()
    return in_16_bits(references[0], references[1], curves)


def write_data(folder: Path) -> dict[str, list[str]]:
    """Synthetic data in `folder`, as the fields of `data` that name them."""
    names = {"train": _DOCUMENTS, "valid": _DOCUMENTS // 4}
    for seed, (name, documents) in enumerate(names.items()):
        # The last ids hide tokens where those are to be guessed.
        _write_documents(folder / name, VOCABULARY * 3 // 4, documents, seed)
    return {name: [str(folder / name)] for name in names}


def _write_documents(prefix: Path, vocab_size: int, documents: int, seed: int) -> None:
    """Documents that can be learned: each counts up from a random token."""
    generator = np.random.default_rng(seed)
    with IndexedWriter(prefix, vocab_size) as writer:
        for _ in range(documents):
            length = int(generator.integers(5, _LONGEST_DOCUMENT))
            first = int(generator.integers(1, vocab_size))
            tokens = 1 + (first + np.arange(length)) % (vocab_size - 1)
            writer.add(np.append(tokens, 0))
        writer.finish(tokenizer="verify", end_of_document=0)


def most_ranks() -> int:
    """Processes that this machine takes: its GPUs, or else a few for each core, at most 8."""
    return device_count() or min(8, 4 * (os.cpu_count() or 1))
