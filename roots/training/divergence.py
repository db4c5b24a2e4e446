"""When training has diverged: too many bad steps in a row, and state that is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from roots.data.sampler import SampleRange
from roots.errors import ExitCode, RootsError, problem
from roots.ops import check_finite
from roots.training.callbacks.metrics import StepRecord

# A skipped step leaves the weights as they are, and without a loss scale that goes down the next
# one differs by its data alone. Three batches with a fault of their own in a row are no accident.
MOST_SKIPPED_IN_A_ROW = 3

_FIX = "resume from an earlier checkpoint with a lower optimizer.learning_rate"


class SkipStreak:
    """Counts the steps in a row that were skipped because their numbers were bad."""

    def __init__(self, speaks: bool) -> None:
        self._speaks = speaks
        self._skipped: list[StepRecord] = []
        self._samples: list[SampleRange] = []

    def see(self, record: StepRecord, samples: SampleRange) -> None:
        """Count a step made on `samples`; a good one begins anew."""
        if record.anomaly is None:
            self._skipped.clear()
            self._samples.clear()
        else:
            self._skipped.append(record)
            self._samples.append(samples)

    def check(self) -> None:
        """Raise RootsError with exit code DIVERGED at MOST_SKIPPED_IN_A_ROW."""
        if len(self._skipped) < MOST_SKIPPED_IN_A_ROW:
            return
        first, last = self._skipped[0], self._skipped[-1]
        kinds = {record.anomaly for record in self._skipped}
        rule = (
            f"{_what_all_have(kinds, first)}, on samples {_in_words(self._samples)}, so training "
            "has diverged; nothing more is saved"
        )
        fix = f"{_FIX}, or use training.precision=bf16" if kinds == {"floor"} else _FIX
        line = problem(f"steps {first.step} to {last.step}", None, rule, fix)
        raise RootsError(line, exit_code=ExitCode.DIVERGED, speaks=self._speaks)


def _in_words(ranges: Sequence[SampleRange]) -> str:
    """Ranges that go up, as "24 to 47"; what was jumped over between them is left out."""
    spans: list[SampleRange] = []
    for begin, end in ranges:
        if spans and spans[-1][1] == begin:
            begin = spans.pop()[0]
        spans.append((begin, end))
    return ", ".join(f"{begin} to {end - 1}" for begin, end in spans)


def _what_all_have(kinds: set[str | None], first: StepRecord) -> str:
    if kinds == {"floor"}:
        scale = f"the lowest loss scale, loss_scale.minimum={first.loss_scale:g}"
        return f"all have gradients that overflow at {scale}, first that of {first.overflow}"
    if kinds == {"gradient"}:
        return f"all have gradients that are not finite, first that of {first.overflow}"
    if kinds == {"loss"}:
        return f"all have losses that are not finite, with a gradient of {first.overflow} first"
    if kinds == {"spike"}:
        return "all have losses far above those before (anomaly.spike_zscore)"
    return "all have bad numbers: " + ", ".join(sorted(str(kind) for kind in kinds))


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
