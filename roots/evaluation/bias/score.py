"""A model's likelihoods of the texts of a probe, tokenized as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from roots.evaluation.bias.probe import Findings, Probe, Text
from roots.generation.network import Network
from roots.generation.scoring import Ids, score_continuations
from roots.log import Report, silent
from roots.tokenizer.tokenizer import Tokenizer


def score_probe(
    network: Network,
    tokenizer: Tokenizer,
    probe: Probe,
    progress: Report = silent,
) -> Findings:
    """What a model prefers in every example of a probe."""
    pairs = [token_pair(tokenizer, text) for text in probe.texts]
    scores = score_continuations(network, pairs, progress=lambda done: progress(done, len(pairs)))
    return probe.findings(scores)


def token_pair(tokenizer: Tokenizer, text: Text) -> tuple[Ids, Sequence[int]]:
    """Ids of a context and of what follows it, cut where the context alone would end.

    A text without a context follows what begins a text. As lm_eval does it, so that a word and the
    space before it are one token.
    """
    special = tokenizer.special
    whole = tokenizer.encode(text.context + text.continuation)
    if not text.context:
        return special.start, whole
    cut = len(tokenizer.encode(text.context))
    return [*special.documents.begin, *whole[:cut]], whole[cut:]
