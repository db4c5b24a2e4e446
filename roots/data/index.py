"""Which tokens make sample i of one dataset, and which dataset sample i of a blend comes from.

The stream of a dataset is its documents, epoch after epoch, each epoch in an order of its own.
Sample s reads the T + 1 tokens from stream position s * T, so that consecutive samples overlap by
one token, as in Megatron's GPTDataset. A sample belongs to the epoch in which it starts; samples
are shuffled within their epoch. Hence the first n samples are the same however many follow: a
longer run continues a shorter one, and epoch e begins only when epoch e - 1 is used up.

No array grows with the number of samples. The arrays of an epoch follow from its number alone, and
where a sample lies in the stream is arithmetic; epochs of a small dataset are made many at a time
(see `EpochPlan.block`). The counting is done by csrc/data/index.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from roots.data.indexed import Int64s
from roots.errors import RootsError, problem
from roots.seeding import derive_key

if TYPE_CHECKING:
    from types import ModuleType


# Entries of the arrays of one block, where an epoch has fewer: some ten megabytes.
BLOCK_ENTRIES = 1 << 20
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # the step of the streams of csrc/data/index.cpp


@dataclass(frozen=True)
class EpochPlan:
    """Which epoch of a dataset a sample belongs to: arithmetic, for any number of samples.

    epoch_tokens: tokens of the documents of one epoch; num_epochs: whole epochs that hold the
    samples that were asked for; epochs_per_block: whose arrays are made together.
    """

    epoch_tokens: int
    sequence_length: int
    num_epochs: int
    epochs_per_block: int = 1

    @property
    def num_samples(self) -> int:
        """Samples of all planned epochs together."""
        return self.first_sample(self.num_epochs)

    def first_sample(self, epoch: int) -> int:
        """The first sample that starts in `epoch` or later."""
        return -(-epoch * self.epoch_tokens // self.sequence_length)

    def epoch_of(self, sample: int) -> int:
        """The epoch in which the sample at that place of the stream starts."""
        return sample * self.sequence_length // self.epoch_tokens

    def block(self, number: int) -> range:
        """The epochs of block `number`."""
        first = number * self.epochs_per_block
        return range(first, first + self.epochs_per_block)


@dataclass(frozen=True)
class EpochArrays:
    """The index arrays of E consecutive epochs of D documents, int64.

    order [E * D]   the documents of every epoch, 0 is the first of the split
    ends [E * D]    tokens of the epoch up to the end of that document
    shuffle [S]     from the number of a sample to its place in the stream, both counted from the
                    first sample that starts in these epochs, of which there are S
    """

    order: Int64s
    ends: Int64s
    shuffle: Int64s


def plan_epochs(
    epoch_tokens: int, sequence_length: int, num_samples: int, num_documents: int = 1
) -> EpochPlan:
    """Plan whole epochs that hold at least `num_samples` samples."""
    assert min(epoch_tokens, sequence_length, num_samples, num_documents) > 0, "nothing to plan"
    # Sample s starts in epoch (s * T) // tokens, so the last one needed says how many there are.
    num_epochs = (num_samples - 1) * sequence_length // epoch_tokens + 1
    entries = num_documents + epoch_tokens // sequence_length + 1
    together = max(1, BLOCK_ENTRIES // entries)
    return EpochPlan(epoch_tokens, sequence_length, num_epochs, together)


def build_epochs(lengths: Int64s, plan: EpochPlan, epochs: range, seed: int) -> EpochArrays:
    """Compute the arrays of consecutive epochs of documents that have `lengths` tokens.

    A pure function of its arguments; the arrays of an epoch do not depend on which are made with
    it.
    """
    extension = _extension()
    count, first = len(epochs), epochs.start
    order = extension.document_order(
        len(lengths), count, _from_epoch(derive_key(seed, "documents"), first)
    )
    ends = np.cumsum(lengths[order].reshape(count, -1), axis=1).reshape(-1)
    tokens, size = plan.epoch_tokens, plan.sequence_length
    # In tokens behind the first sample of these epochs, so that no product grows with their number.
    late = plan.first_sample(first) * size - first * tokens
    bounds = -((late - np.arange(count + 1, dtype=np.int64) * tokens) // size)
    shuffle = extension.shuffle_index(bounds, _from_epoch(derive_key(seed, "samples"), first))
    return EpochArrays(order, ends, shuffle)


def _from_epoch(key: int, epoch: int) -> int:
    """The key under which the extension's epoch 0 is `epoch` of `key`.

    Its random numbers are a stream of equal steps from the key (SplitMix64), so an epoch is a
    matter of where to begin.
    """
    state = (key + epoch * _GOLDEN_GAMMA) % 2**64
    return state - 2**64 if state >= 2**63 else state


def build_blend_index(
    weights: Sequence[float], num_samples: int
) -> tuple[NDArray[np.int32], Int64s]:
    """Return, for every sample of a blend, which dataset it comes from and which sample of it.

    Greedy: each sample comes from the dataset furthest behind its share, as in Megatron.
    """
    dataset, sample = _extension().blend_index(np.array(weights, dtype=np.float64), num_samples)
    return dataset, sample


def _extension() -> ModuleType:
    try:
        from roots.data import _index
    except ImportError as error:
        rule = f"the compiled extension cannot be loaded ({error})"
        fix = "run `python setup.py build_ext --inplace`, or install the package again"
        raise RootsError(problem("roots.data._index", None, rule, fix)) from None
    return _index
