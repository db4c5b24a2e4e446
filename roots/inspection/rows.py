"""What is read for an inspection: one text, or windows of a dataset, a row each.

Legend: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from roots.data.indexed import IndexedDataset
from roots.data.objectives.choice import document_rules
from roots.data.windows import iterate_windows
from roots.errors import RootsError, problem
from roots.evaluation.perplexity import check_made_by
from roots.generation.load import LoadedModel
from roots.generation.prompts import encode_prompts
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import Tokenizer


class Row(NamedTuple):
    """Tokens of a row and where the document of each begins in it, int64 [1, T]; and which of them
    are predicted from those before, bool [T]."""

    tokens_1T: Tensor
    starts_1T: Tensor
    predicted_T: Tensor

    @classmethod
    def of_document(cls, tokens_1T: Tensor) -> Row:
        """One document from its first token on, from which all others are predicted."""
        predicted_T = torch.ones(tokens_1T.shape[1], dtype=torch.bool, device=tokens_1T.device)
        predicted_T[0] = False
        return cls(tokens_1T, torch.zeros_like(tokens_1T), predicted_T)

    def logits(self, decoder: Decoder) -> Tensor:
        """logits_1TV of the token behind each."""
        keys_1 = torch.zeros(1, dtype=torch.int64, device=self.tokens_1T.device)
        logits_1TV: Tensor = decoder(self.tokens_1T, self.starts_1T, keys_1)
        return logits_1TV


def text_row(
    model: LoadedModel, tokenizer: Tokenizer, text: str, *, special_tokens: bool = True
) -> Row:
    """A text as a prompt is read, behind what the tokenizer puts in front of one.

    Raises RootsError for a text of less than two tokens, in which nothing is predicted.
    """
    (ids,) = encode_prompts(tokenizer, [text], special_tokens=special_tokens)
    if not text or len(ids) < 2:
        rule = "holds no token that is predicted from another"
        raise RootsError(problem("--text", text, rule, "give a longer text"))
    return Row.of_document(torch.tensor([ids], device=_device(model)))


def dataset_rows(
    model: LoadedModel, tokenizer: Tokenizer, indexed: IndexedDataset, *, first: int, count: int
) -> Iterator[Row]:
    """Windows `first` to `first` + `count` of a dataset, documents taken apart as in the training.

    Raises RootsError for a dataset of another tokenizer, or with ids beyond the vocabulary.
    """
    check_made_by(indexed, tokenizer)
    config = model.config.model
    windows = iterate_windows(
        indexed,
        sequence_length=config.sequence_length,
        batch_size=1,
        vocab_size=config.vocab_size,
        rules=document_rules(model.config.data),
    )
    device = _device(model)
    for window in islice(windows, first, first + count):
        batch = window.batch
        predicted_T = torch.zeros(batch.tokens_BT.shape[1], dtype=torch.bool)
        # A label is the next token; that of the last lies behind the row.
        predicted_T[1:] = batch.loss_weights_BT[0, :-1] > 0
        yield Row(
            batch.tokens_BT.to(device), batch.document_starts_BT.to(device), predicted_T.to(device)
        )


def _device(model: LoadedModel) -> torch.device:
    return model.network.embedding.tokens.weight.device
