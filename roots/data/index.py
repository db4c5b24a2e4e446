"""Which tokens make sample i of one dataset, and which dataset sample i of a blend comes from.

The stream of a dataset is its documents, epoch after epoch, each epoch in an order of its own.
Sample s reads the T + 1 tokens from stream position s * T, so that consecutive samples overlap by
one token, as in Megatron's GPTDataset. A sample belongs to the epoch in which it starts; samples
are shuffled within their epoch. Hence the first n samples are the same however many follow: a
longer run continues a shorter one, and epoch e begins only when epoch e - 1 is used up.

The counting is done by csrc/data/index.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from roots.data.indexed import IndexedDataset, Int64s
from roots.errors import RootsError, problem
from roots.seeding import derive_key

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class EpochPlan:
    """How many epochs a number of samples needs.

    `bounds[e]` is the first sample that starts in epoch e, `bounds[-1]` the number of all samples;
    `stream_epochs` covers the end of the last one, which may lie in a later epoch.
    """

    bounds: Int64s
    stream_epochs: int

    @property
    def num_samples(self) -> int:
        """Samples of all planned epochs together."""
        return int(self.bounds[-1])


@dataclass(frozen=True)
class SampleIndices:
    """The index arrays of one dataset, int64.

    `order` [documents of all epochs; 0 is the first of the split], `samples` [num_samples + 1, 2]
    (position in `order`, offset
    in the document) and `shuffle` [num_samples], from the number of a sample to its row.
    """

    order: Int64s
    samples: Int64s
    shuffle: Int64s


def plan_epochs(epoch_tokens: int, sequence_length: int, num_samples: int) -> EpochPlan:
    """Plan whole epochs that hold at least `num_samples` samples."""
    assert min(epoch_tokens, sequence_length, num_samples) > 0, "nothing to plan"
    # Sample s starts in epoch (s * T) // tokens, so the last one needed says how many there are.
    epochs = (num_samples - 1) * sequence_length // epoch_tokens + 1
    bounds = [-(-epoch * epoch_tokens // sequence_length) for epoch in range(epochs + 1)]
    stream_tokens = bounds[-1] * sequence_length + 1
    return EpochPlan(np.array(bounds, dtype=np.int64), -(-stream_tokens // epoch_tokens))


def build_sample_indices(
    dataset: IndexedDataset, documents: range, sequence_length: int, plan: EpochPlan, seed: int
) -> SampleIndices:
    """Compute the index arrays for the documents of one split. A pure function of its arguments."""
    extension = _extension()
    dataset.check_index()
    lengths = np.diff(dataset.document_starts(documents))
    key = derive_key(seed, "documents")
    order = extension.document_order(len(documents), plan.stream_epochs, key)
    samples = extension.sample_index(lengths, order, sequence_length, plan.num_samples)
    shuffle = extension.shuffle_index(plan.bounds, derive_key(seed, "samples"))
    return SampleIndices(order, samples, shuffle)


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
