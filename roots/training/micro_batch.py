"""From a micro-batch to what a model takes: a rank's share of it, and the fields that are read."""

from __future__ import annotations

from torch import Tensor

from roots.config.model import ModelConfig
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


def model_inputs(model: ModelConfig, batch: Batch) -> tuple[Tensor, ...]:
    """What the forward of the model, or the first stage of a pipeline, takes before the labels."""
    if model.architecture == "encoder":
        return batch.tokens_BT, batch.source_lengths_B, batch.dropout_keys_B
    if model.architecture == "decoder":
        return batch.tokens_BT, batch.document_starts_BT, batch.dropout_keys_B
    return (
        batch.tokens_BT,
        batch.source_BS,
        batch.document_starts_BT,
        batch.source_lengths_B,
        batch.dropout_keys_B,
    )
