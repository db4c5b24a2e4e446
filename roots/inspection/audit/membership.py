"""Whether the loss of a document tells that the model was trained on it: membership inference.

Yeom et al. (arXiv:1709.01604) guess that a document was in the training data if its loss is low.
Three scores are compared, each the higher, the more a document looks like one of the data:

- `loss`: the mean log-likelihood of a token;
- `zlib`: the log-likelihood of the document by the bytes that zlib makes of its text, so that what
  is easy for everybody counts less (Carlini et al., arXiv:2012.07805);
- `min_k`: the mean log-likelihood of the 20% least likely tokens (Shi et al., arXiv:2310.16789).

Each has an AUC: the chance that a document of the data scores higher than a held-out one, 0.5 for a
guess; and the share of documents found where 1% of the held-out ones are accused wrongly, which is
what counts for privacy (Carlini et al., arXiv:2112.03570). `no_model` asks zlib alone, bytes for a
token: where its AUC is far from 0.5, the two datasets differ by themselves, and then the others
measure that difference too, and not memory (Duan et al., arXiv:2402.07841).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from roots.data.indexed import IndexedDataset
from roots.errors import RootsError, problem
from roots.evaluation.intervals import Floats, Interval, middle_of
from roots.generation.scoring import Score
from roots.inspection.audit.subject import Subject
from roots.log import Report, silent

# Less text tells nothing, whatever was memorised.
FEWEST_TOKENS = 16
_RESAMPLES = 1000
_LEAST_LIKELY = 0.2
_WRONGLY_ACCUSED = 0.01


@dataclass(frozen=True)
class Attack:
    """How well a score tells documents of the data from held-out ones.

    auc:   chance that one of the data scores higher, and its interval
    found: share of those of the data that are found while 1% of the others are accused wrongly
    """

    score: str
    auc: float
    interval: Interval
    found: float


@dataclass(frozen=True)
class Membership:
    """All attacks on so many documents of each kind; `tokens` is the mean of a document."""

    members: int
    others: int
    member_tokens: float
    other_tokens: float
    attacks: tuple[Attack, ...]


@dataclass(frozen=True)
class _Read:
    """A document as the model read it, and the bytes zlib makes of that text."""

    score: Score
    packed_bytes: int

    @property
    def tokens(self) -> int:
        return len(self.score.log_probabilities)


def audit_membership(
    subject: Subject,
    indexed: IndexedDataset,
    held_out: IndexedDataset,
    *,
    samples: int,
    seed: int,
    progress: Report = silent,
) -> Membership:
    """Compare up to `samples` documents of each dataset, of as many tokens as the model reads.

    Raises RootsError for a dataset with fewer than 2 documents of FEWEST_TOKENS.
    """
    chosen = [_documents(each, samples, seed) for each in (indexed, held_out)]
    texts = [
        each[number][: subject.sequence_length + 1].tolist()
        for each, numbers in zip((indexed, held_out), chosen, strict=True)
        for number in numbers
    ]
    scores = subject.score([(text[:1], text[1:]) for text in texts], progress)
    read = [
        _Read(score, len(zlib.compress(subject.tokenizer.decode(text).encode())))
        for score, text in zip(scores, texts, strict=True)
    ]
    members, others = read[: len(chosen[0])], read[len(chosen[0]) :]
    attacks = [
        _attack(name, np.array(list(map(of, members))), np.array(list(map(of, others))), seed)
        for name, of in SCORES.items()
    ]
    tokens = [float(np.mean([each.tokens for each in some])) for some in (members, others)]
    return Membership(len(members), len(others), *tokens, tuple(attacks))


def _documents(indexed: IndexedDataset, samples: int, seed: int) -> Sequence[int]:
    """Numbers of random documents that are long enough."""
    lengths = np.diff(indexed.document_starts(range(indexed.num_documents)))
    usable = np.flatnonzero(lengths >= FEWEST_TOKENS)
    if len(usable) < 2:
        rule = f"has {len(usable)} documents of {FEWEST_TOKENS} tokens or more, which is too few"
        raise RootsError(problem("data", indexed.prefix, rule, "give a dataset of more text"))
    draws = np.random.default_rng(seed)
    chosen = draws.choice(usable, size=min(samples, len(usable)), replace=False)
    return [int(number) for number in np.sort(chosen)]


def _loss(read: _Read) -> float:
    return read.score.total / read.tokens


def _zlib(read: _Read) -> float:
    return read.score.total / read.packed_bytes


def _min_k(read: _Read) -> float:
    count = max(1, round(_LEAST_LIKELY * read.tokens))
    return float(np.mean(sorted(read.score.log_probabilities)[:count]))


def _no_model(read: _Read) -> float:
    return -read.packed_bytes / read.tokens


SCORES: dict[str, Callable[[_Read], float]] = {
    "loss": _loss,
    "zlib": _zlib,
    "min_k": _min_k,
    "no_model": _no_model,
}


def _attack(name: str, members: Floats, others: Floats, seed: int) -> Attack:
    draws = np.random.default_rng(seed)
    resampled = [
        auc(draws.choice(members, len(members)), draws.choice(others, len(others)))
        for _ in range(_RESAMPLES)
    ]
    bound = np.quantile(others, 1 - _WRONGLY_ACCUSED, method="higher")
    found = float(np.mean(members > bound))
    return Attack(name, auc(members, others), middle_of(np.array(resampled)), found)


def auc(members: Floats, others: Floats) -> float:
    """The chance that a member scores higher than another; of equal scores one half is."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    not_above = np.searchsorted(ordered, members, side="right")
    return float((below + not_above).sum()) / (2 * len(members) * len(others))
