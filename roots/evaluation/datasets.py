"""A trained decoder on a dataset, by the conventions of its training."""

from __future__ import annotations

from collections.abc import Callable

from roots.data.indexed import IndexedDataset
from roots.data.objectives.choice import document_rules
from roots.evaluation.perplexity import Perplexity, evaluate_perplexity
from roots.generation.load import LoadedModel
from roots.tokenizer.tokenizer import Tokenizer


def evaluate_dataset(
    model: LoadedModel,
    indexed: IndexedDataset,
    *,
    tokenizer: Tokenizer | None,
    batch_size: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Predict every token of `indexed`, with documents taken apart as in the model's training.

    tokenizer:  counts the bytes of the text; None: no bits per byte
    batch_size: windows at a time; 0: as many as in training
    progress:   called with the number of tokens done

    Raises RootsError for a model that is no decoder, and for data that do not fit it.
    """
    return evaluate_perplexity(
        model.decoder,
        indexed,
        rules=document_rules(model.config.data),
        batch_size=batch_size or model.config.training.micro_batch_size,
        tokenizer=tokenizer,
        progress=progress,
    )
