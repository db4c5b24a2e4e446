"""Next-token prediction on packed text: what decoders are trained with."""

from __future__ import annotations

from roots.data.batch import Batch, DocumentRules, make_batch
from roots.data.blend import Blend
from roots.data.sampler import dropout_keys


class CausalBatches:
    """Micro-batches of packed text, each token the label of the one before it."""

    def __init__(
        self, blend: Blend, *, global_batch_size: int, rules: DocumentRules, seed: int
    ) -> None:
        """Keep what stays the same over the steps; nothing is read yet."""
        self._blend = blend
        self._global_batch_size = global_batch_size
        self._rules = rules
        self._seed = seed

    def make(self, step: int, places: tuple[int, ...]) -> Batch:
        """Read the samples at `places` of step `step`."""
        first = step * self._global_batch_size
        return make_batch(
            [self._blend[first + place] for place in places],
            dropout_keys(self._seed, step, places),
            self._rules,
        )
