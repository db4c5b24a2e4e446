"""From a batch to what a model takes: which fields an architecture reads."""

from __future__ import annotations

from torch import Tensor

from roots.config.model import ModelConfig
from roots.data.batch import Batch


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
