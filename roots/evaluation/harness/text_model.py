"""What a harness asks of a model, in ids: how likely texts are, and what it writes.

A decoder continues contexts, an encoder-decoder writes the targets of sources; to a harness both
are pairs of a context and a continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from roots.data.objectives.choice import begin_token
from roots.errors import RootsError, problem
from roots.generation.beam import BeamOptions
from roots.generation.continue_beams import continue_by_beams
from roots.generation.generate import check_tokenizer
from roots.generation.layout import copies, of_all_copies
from roots.generation.load import LoadedModel, LoadedNetwork
from roots.generation.network import Network
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.generation.scoring import Ids, Report, Score, score_continuations, score_targets
from roots.generation.text_batch import TextEvent
from roots.generation.texts import tokens_of, write_own
from roots.generation.write import write_targets
from roots.models.decoder import Decoder
from roots.models.encoder_decoder import EncoderDecoder
from roots.parallel.mesh import Mesh
from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How texts are written.

    max_new_tokens: tokens at most
    until:          texts that end one; what is written may hold the first of them
    sampling:       how each token is chosen, where num_beams is 1
    num_beams:      texts that beam search keeps; 1: none searches
    length_penalty: exponent of the length that the scores of beams are divided by
    seed:           of the choice
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(greedy=True))
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int = 1234

    @property
    def beams(self) -> BeamOptions:
        """What beam search is told."""
        return BeamOptions(
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            max_new_tokens=self.max_new_tokens,
        )


class TextModel(Protocol):
    """A model as a harness sees it. All ranks of its layout call alike and have the same results.

    kind:       `causal`: continuations follow contexts; `seq2seq`: they are targets of sources
    max_length: tokens of a context with its continuation, or of a target
    """

    kind: Literal["causal", "seq2seq"]
    max_length: int

    def score(self, pairs: Sequence[tuple[Ids, Ids]], progress: Report) -> list[Score]:
        """How likely the second of every pair is behind the first, which is never empty."""

    def write(
        self, contexts: Sequence[Ids], how: Writing, progress: Report
    ) -> list[tuple[int, ...]]:
        """What follows every context, up to a token that ends texts or one of `how.until`."""

    def room(self, how: Writing) -> int:
        """Tokens that a context may have. Raises RootsError where that is none."""


class DecoderTexts:
    """A decoder's, on this rank's part of a layout; without `decoder` no beams search."""

    kind: Literal["causal", "seq2seq"] = "causal"

    def __init__(self, network: Network, words: Tokenizer, decoder: Decoder | None = None) -> None:
        self.max_length = network.model.sequence_length
        self._network = network
        self._words = words
        self._decoder = decoder

    def score(self, pairs: Sequence[tuple[Ids, Ids]], progress: Report) -> list[Score]:
        """As the protocol says."""
        return score_continuations(self._network, pairs, progress=progress)

    def write(
        self, contexts: Sequence[Ids], how: Writing, progress: Report
    ) -> list[tuple[int, ...]]:
        """As the protocol says. Raises RootsError for beams over pipeline stages."""
        if how.num_beams > 1:
            return self._search(contexts, how)
        options = GenerationOptions(
            max_new_tokens=how.max_new_tokens,
            sampling=how.sampling,
            seed=how.seed,
            stop=how.until,
        )
        mesh = self._network.mesh
        _, count = copies(mesh)
        ended: list[int] = []

        def hear(number: int, event: TextEvent) -> None:
            if event.stopped_by is not None:
                ended.append(number)
                progress(min(len(contexts), len(ended) * count))

        told = write_own(self._network, self._words, contexts, options, hear)
        return of_all_copies(mesh, {number: tokens_of(events) for number, events in told.items()})

    def _search(self, contexts: Sequence[Ids], how: Writing) -> list[tuple[int, ...]]:
        if self._decoder is None:
            rule = "is for models without pipeline stages"
            raise RootsError(problem("num_beams", how.num_beams, rule, "start fewer processes"))
        found = continue_by_beams(self._decoder, contexts, how.beams, end=self._words.special.stops)
        return [tuple(each.token_ids) for each in found]

    def room(self, how: Writing) -> int:
        """As the protocol says."""
        if how.max_new_tokens < self.max_length:
            return self.max_length - how.max_new_tokens
        rule = f"must be below the model's sequence_length of {self.max_length}: nothing else fits"
        fix = "set it in the task's generation_kwargs"
        raise RootsError(problem("max_gen_toks", how.max_new_tokens, rule, fix))


class EncoderDecoderTexts:
    """An encoder-decoder's. `begin` is the token that its decoder writes after."""

    kind: Literal["causal", "seq2seq"] = "seq2seq"

    def __init__(self, model: EncoderDecoder, words: Tokenizer, begin: int) -> None:
        self.max_length = model.model.sequence_length
        self._model = model
        self._begin = begin
        self._ends = words.special.stops

    def score(self, pairs: Sequence[tuple[Ids, Ids]], progress: Report) -> list[Score]:
        """As the protocol says."""
        return score_targets(self._model, pairs, begin=self._begin, progress=progress)

    def write(
        self, contexts: Sequence[Ids], how: Writing, progress: Report
    ) -> list[tuple[int, ...]]:
        """As the protocol says. Raises RootsError where texts are to be drawn."""
        if not how.sampling.greedy:
            rule = "asks an encoder-decoder to draw its texts, but it writes by beam search alone"
            raise RootsError(problem("do_sample", True, rule, "set do_sample: false in the task"))
        written: list[tuple[int, ...]] = []
        for start in range(0, len(contexts), 32):
            some = contexts[start : start + 32]
            found = write_targets(self._model, some, how.beams, begin=self._begin, end=self._ends)
            written += [tuple(each.token_ids) for each in found]
            progress(len(written))
        return written

    def room(self, how: Writing) -> int:
        """As the protocol says."""
        return self._model.model.source_tokens


def text_model_of(
    model: LoadedModel | LoadedNetwork, words: Tokenizer, mesh: Mesh | None = None
) -> TextModel:
    """The model of a checkpoint, built on `mesh` (None: on this process alone).

    Raises RootsError for an encoder, which writes nothing, and a tokenizer of another vocabulary.
    """
    check_tokenizer(words, model.config.model)
    if isinstance(model, LoadedNetwork):
        return DecoderTexts(model.network, words)
    if model.config.model.architecture == "encoder_decoder":
        begin = begin_token(model.config.data, words.end_of_document)
        return EncoderDecoderTexts(model.encoder_decoder, words, begin)
    return DecoderTexts(Network.of(model.decoder, mesh), words, model.decoder)
