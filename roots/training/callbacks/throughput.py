"""Speed of a run: tokens/s, TFLOP/s and MFU of a step, and the line that explains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roots.config.model import ModelConfig
from roots.data.batch import Batch
from roots.planner.flops import mfu, training_flops_per_token
from roots.training.callbacks.peak import TERA, Peak


@dataclass(frozen=True)
class Rates:
    """Speed of a step: tokens/s of the whole run, model TFLOP/s of one device, MFU (share of 1).

    Tokens are those of the rows that a model predicts in, padding included and sources left out.
    """

    tokens_per_second: float
    tflops: float
    mfu: float


@dataclass(frozen=True)
class Throughput:
    """What is constant over a run: the model and what the devices could do.

    `peak` is that of one device (the mean over ranks where they were measured), `num_devices` the
    world size.
    """

    model: ModelConfig
    peak: Peak
    num_devices: int

    def rates(self, samples: int, micro_batches: Sequence[Batch], seconds: float) -> Rates:
        """Rates of a step that took the `samples` of the global batch in `seconds`.

        `micro_batches` are this rank's of them.
        """
        length, source_length = padded_lengths(self.model, micro_batches)
        flops_per_token = training_flops_per_token(self.model, length, source_length)
        per_second = samples * length / seconds
        total_peak = self.peak.flops_per_second * self.num_devices
        return Rates(
            tokens_per_second=per_second,
            tflops=per_second * flops_per_token / self.num_devices / TERA,
            mfu=mfu(per_second, flops_per_token, total_peak),
        )

    def describe(self) -> str:
        """What MFU is measured against, to be said once at the start; MFU_FORMULA defines it."""
        return (
            f"{training_flops_per_token(self.model):.4g} FLOPs a token; MFU 100% is "
            f"{self.num_devices} x {self.peak.flops_per_second / TERA:.4g} TFLOP/s "
            f"({self.peak.source})"
        )


def padded_lengths(model: ModelConfig, micro_batches: Sequence[Batch]) -> tuple[int, int]:
    """Tokens of every row of a step and of its source, with the padding that the batches hold.

    All batches of a step have the same, on every rank (data.pad_multiple pads to the longest of the
    global batch). A stage amid a pipeline reads no batches, and there all rows are full.
    """
    if not micro_batches:
        return model.sequence_length, model.source_tokens
    return micro_batches[0].tokens_BT.shape[1], micro_batches[0].source_BS.shape[1]
