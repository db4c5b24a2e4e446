"""What one context rank takes of a micro-batch: some tokens of every sample."""

from __future__ import annotations

from roots.data.batch import Batch
from roots.parallel.placement import Placement


def share_of(batch: Batch, place: Placement) -> Batch:
    """This context rank's tokens, labels and loss weights of a micro-batch of whole samples.

    Document starts stay whole, because attention asks for those of all tokens. The weights of a
    sample add up to 1 over all its ranks, and gradients and losses are averaged over the replica
    axis, to which they belong; therefore weights are multiplied by the number of context ranks.
    """
    if place.context.size == 1:
        return batch
    return batch._replace(
        tokens_BT=place.take(batch.tokens_BT, 1),
        labels_BT=place.take(batch.labels_BT, 1),
        loss_weights_BT=place.take(batch.loss_weights_BT, 1) * place.context.size,
    )
