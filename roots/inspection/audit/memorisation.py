"""Which share of a corpus a model continues verbatim, after Carlini et al. (arXiv:2202.07646).

A run of tokens of the corpus counts as memorised behind p tokens if greedy decoding, given the p
tokens before its last ones, writes exactly those. One pass over the true text shows it: greedy
decoding writes them if each is the likeliest behind those before it. The same last tokens are asked
for behind every length of prefix, so that lengths can be compared; a run that occurs n times in the
corpus does so with the longest prefix. Runs of texts that the model never saw show how much of this
is no memory but what can be guessed; those that occur in the corpus too are left out of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from roots.data.indexed import IndexedDataset, Tokens
from roots.errors import RootsError, problem
from roots.evaluation.intervals import Interval, share_interval
from roots.inspection.audit.subject import Subject
from roots.inspection.audit.windows import Run, occurrences, sample_runs
from roots.log import Report, silent


@dataclass(frozen=True)
class Lengths:
    """Tokens of every prefix that is tried, and of what is to be written behind it."""

    prefixes: tuple[int, ...]
    continuation: int

    @property
    def run(self) -> int:
        """Tokens of a whole run: the longest prefix and the continuation."""
        return max(self.prefixes) + self.continuation


@dataclass(frozen=True)
class Share:
    """Of `runs` that occur `fewest` to `most` times, so many are written verbatim."""

    prefix_tokens: int
    fewest: int
    most: int
    runs: int
    verbatim: int
    interval: Interval

    @property
    def share(self) -> float:
        """The share that is written verbatim."""
        return self.verbatim / self.runs


@dataclass(frozen=True)
class Memorisation:
    """Shares of the corpus by prefix and occurrences, and those of held-out texts by prefix.

    left_out: held-out runs that occur in the corpus
    """

    continuation_tokens: int
    held_in: tuple[Share, ...]
    held_out: tuple[Share, ...]
    left_out: int


@dataclass(frozen=True)
class Chosen:
    """Runs to ask for: of the corpus by the fewest and most times that they occur, and held-out.

    left_out: held-out runs that occur in the corpus
    """

    lengths: Lengths
    held_in: dict[tuple[int, int], list[Tokens]]
    held_out: list[Tokens]
    left_out: int

    @property
    def all(self) -> Iterator[Tokens]:
        """All runs, in the order of their kinds."""
        return chain(chain.from_iterable(self.held_in.values()), self.held_out)


def choose_runs(
    indexed: IndexedDataset,
    held_out: IndexedDataset | None,
    lengths: Lengths,
    *,
    samples: int,
    seed: int,
    progress: Report = silent,
) -> Chosen:
    """Choose up to `samples` runs of every magnitude of occurrences, and as many held-out ones.

    Raises RootsError for a dataset without a document of so many tokens, and for held-out texts
    that all occur in the corpus.
    """
    found = sample_runs(indexed, lengths.run, samples, seed, progress)
    if not found:
        raise RootsError(_too_short(indexed, lengths))
    held_in = {
        (2**magnitude, 2 ** (magnitude + 1) - 1): [_tokens(indexed, run, lengths) for run in runs]
        for magnitude, runs in sorted(found.items())
    }
    others, left_out = [], 0
    if held_out is not None:
        others, left_out = _unseen(indexed, held_out, lengths, samples, seed)
    return Chosen(lengths, held_in, others, left_out)


def audit_memorisation(subject: Subject, chosen: Chosen, progress: Report = silent) -> Memorisation:
    """Ask the model to continue every chosen run, behind each prefix."""
    lengths = chosen.lengths
    written = iter(_written(subject, list(chosen.all), lengths, progress))
    held_in = []
    for occurring, runs in chosen.held_in.items():
        held_in += _shares(lengths, occurring, [next(written) for _ in runs])
    held_out = _shares(lengths, (0, 0), list(written)) if chosen.held_out else []
    return Memorisation(lengths.continuation, tuple(held_in), tuple(held_out), chosen.left_out)


def check_lengths(lengths: Lengths, sequence_length: int) -> None:
    """Raise RootsError for lengths that cannot be."""
    prefixes = ",".join(map(str, lengths.prefixes))
    if min(lengths.prefixes) < 1 or len(set(lengths.prefixes)) < len(lengths.prefixes):
        rule = "must be different numbers of 1 or more"
        fix = "write them as 16,32,64"
        raise RootsError(problem("--prefix-tokens", prefixes, rule, fix))
    if lengths.run > sequence_length:
        rule = (
            f"with --continuation-tokens {lengths.continuation} makes {lengths.run} tokens, and "
            f"the model reads {sequence_length} (model.sequence_length)"
        )
        raise RootsError(problem("--prefix-tokens", prefixes, rule, "shorten one of the two"))


def _too_short(indexed: IndexedDataset, lengths: Lengths) -> str:
    rule = f"no document has {lengths.run} tokens, the longest prefix and its continuation"
    fix = "shorten --prefix-tokens or --continuation-tokens"
    return problem("data", indexed.prefix, rule, fix)


def _tokens(indexed: IndexedDataset, run: Run, lengths: Lengths) -> Tokens:
    return indexed.tokens[run.start : run.start + lengths.run]


def _unseen(
    indexed: IndexedDataset, held_out: IndexedDataset, lengths: Lengths, samples: int, seed: int
) -> tuple[list[Tokens], int]:
    """Held-out runs that do not occur in the corpus, and how many were drawn that do."""
    found = sample_runs(held_out, lengths.run, samples, seed)
    if not found:
        raise RootsError(_too_short(held_out, lengths))
    # Those that occur once are nearly all; repeated ones would be another kind of text.
    texts = [_tokens(held_out, run, lengths) for run in found.get(0, [])]
    counts = occurrences(indexed, texts)
    unseen = [text for text, count in zip(texts, counts, strict=True) if count == 0]
    if not unseen:
        rule = f"all {len(texts)} runs of {lengths.run} tokens drawn from it occur in the data"
        fix = "give texts that the model was not trained on"
        raise RootsError(problem("--held-out", held_out.prefix, rule, fix))
    return unseen, len(texts) - len(unseen)


def _written(
    subject: Subject, texts: Sequence[Tokens], lengths: Lengths, progress: Report
) -> list[list[bool]]:
    """For every run, whether it is written verbatim behind each prefix."""
    longest = max(lengths.prefixes)
    pairs = [
        (text[longest - prefix : longest].tolist(), text[longest:].tolist())
        for text in texts
        for prefix in lengths.prefixes
    ]
    greedy = iter(score.greedy for score in subject.score(pairs, progress))
    return [[next(greedy) for _ in lengths.prefixes] for _ in texts]


def _shares(
    lengths: Lengths, occurring: tuple[int, int], written: Sequence[Sequence[bool]]
) -> list[Share]:
    """What each prefix brings forth of the runs that occur so often."""
    shares = []
    for number, tokens in enumerate(lengths.prefixes):
        verbatim = sum(some[number] for some in written)
        interval = share_interval(verbatim, len(written))
        shares.append(Share(tokens, *occurring, len(written), verbatim, interval))
    return shares
