"""When training has diverged: too many skipped steps in a row, and state that is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from roots.errors import ExitCode, RootsError, problem
from roots.ops import check_finite
from roots.training.callbacks.metrics import StepRecord

# A skipped step leaves the weights as they are, and without a loss scale that goes down the next
# one differs by its data alone. Three batches with a fault of their own in a row are no accident.
MOST_SKIPPED_IN_A_ROW = 3

_FIX = "resume from an earlier checkpoint with a lower optimizer.learning_rate"


class SkipStreak:
    """Counts the steps skipped in a row, for a run without loss scaling, which has its floor."""

    def __init__(self, precision: str, speaks: bool) -> None:
        self._counts = precision != "fp16"
        self._speaks = speaks
        self._skipped: list[StepRecord] = []

    def see(self, record: StepRecord) -> None:
        """Raise RootsError with exit code DIVERGED at MOST_SKIPPED_IN_A_ROW."""
        if not record.skipped or not self._counts:
            self._skipped.clear()
            return
        self._skipped.append(record)
        if len(self._skipped) < MOST_SKIPPED_IN_A_ROW:
            return
        first = self._skipped[0]
        steps = f"{first.step} to {record.step}"
        rule = (
            f"all have gradients that are not finite, first that of {first.overflow}, so training "
            "has diverged; nothing more is saved"
        )
        line = problem(f"steps {steps}", None, rule, _FIX)
        raise RootsError(line, exit_code=ExitCode.DIVERGED, speaks=self._speaks)


def refuse_what_is_not_finite(
    named: Iterable[tuple[str, Sequence[Tensor]]], step: int, rank: int
) -> None:
    """Raise RootsError with exit code DIVERGED for the first name of which a tensor is not finite.

    For what is about to be saved: nobody could go on from it. Tensors of integers pass.
    """
    for name, tensors in named:
        floats = [each.detach() for each in tensors if each.is_floating_point() and each.numel()]
        for device in {each.device for each in floats}:
            here = [each for each in floats if each.device == device]
            if int(check_finite(here)) >= 0:
                rule = (
                    f"is not finite on rank {rank} after step {step}, so training has diverged; "
                    "nothing is saved"
                )
                line = problem(name, None, rule, _FIX)
                raise RootsError(line, exit_code=ExitCode.DIVERGED)
