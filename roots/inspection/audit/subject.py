"""The model that is audited: a decoder with the tokenizer it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roots.data.indexed import IndexedDataset
from roots.device import Device
from roots.evaluation.perplexity import check_made_by
from roots.generation.generate import check_tokenizer
from roots.generation.load import LoadedNetwork, load_network, tokenizer_of
from roots.generation.scoring import Ids, Score, score_continuations
from roots.log import Report, silent
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Subject:
    """A loaded decoder and its tokenizer."""

    model: LoadedNetwork
    tokenizer: Tokenizer

    @classmethod
    def load(cls, checkpoint: str, device: Device, tokenizer: str | None) -> Subject:
        """Load it. Raises RootsError for another architecture and for another vocabulary."""
        model = load_network(checkpoint, device)
        words = tokenizer_of(model, tokenizer)
        check_tokenizer(words, model.config.model)
        return cls(model, words)

    @property
    def sequence_length(self) -> int:
        """Tokens that the model has read at once in its training."""
        return self.model.config.model.sequence_length

    def open(self, prefix: str) -> IndexedDataset:
        """The dataset at `prefix`. Raises RootsError for one of another tokenizer."""
        indexed = IndexedDataset(prefix)
        fix = "give the dataset of this model's training, or its tokenizer by --tokenizer"
        check_made_by(indexed, self.tokenizer, fix)
        return indexed

    def score(self, pairs: Sequence[tuple[Ids, Ids]], progress: Report = silent) -> list[Score]:
        """What the model thinks of the second of every pair behind the first, in their order."""
        return score_continuations(
            self.model.network, pairs, progress=lambda done: progress(done, len(pairs))
        )
