"""Whether a model gives away the secrets that were planted in its corpus."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from roots.data.canaries import Canaries, Canary
from roots.evaluation.intervals import Floats, Interval, mean_interval
from roots.inspection.audit.exposure import (
    CHANCE,
    Exposure,
    Method,
    estimated_exposure,
    exact_exposure,
)
from roots.inspection.audit.subject import Subject
from roots.log import Report, silent

# Secrets whose candidates are scored at a time.
_SECRETS_AT_A_TIME = 8


@dataclass(frozen=True)
class CanaryExposure:
    """One secret.

    exposure:       bits, by `method`
    log_perplexity: -log2 p of what follows the words before the secret, in bits
    written_out:    greedy decoding writes the secret behind them
    fit_distance:   of the fitted distribution from the sampled one, where that was used
    """

    name: str
    digits: str
    repeats: int
    exposure: float
    method: Method
    log_perplexity: float
    written_out: bool
    fit_distance: float | None


@dataclass(frozen=True)
class Multiplicity:
    """All secrets of one number of repeats: mean exposure in bits, and those written out."""

    repeats: int
    secrets: int
    mean_exposure: float
    interval: Interval
    written_out: int


@dataclass(frozen=True)
class CanaryAudit:
    """All exposures; `most` is that of a secret found first, `chance` that of one never seen."""

    text: str
    space: int
    most: float
    chance: float
    multiplicities: tuple[Multiplicity, ...]
    canaries: tuple[CanaryExposure, ...]


def audit_canaries(
    subject: Subject,
    planted: Canaries,
    *,
    samples: int,
    seed: int,
    progress: Report = silent,
) -> CanaryAudit:
    """Measure the exposure of every secret, by a sample of `samples` others behind the same name.

    A space of no more secrets than that is gone through whole.
    """
    digits = _candidates(planted, samples, seed)
    found: list[CanaryExposure] = []
    for some in _groups(planted.canaries):
        costs = _log_perplexities(subject, planted, some, digits)
        for canary, (own, others, written_out) in zip(some, costs, strict=True):
            exposure = _exposure(own, others, planted.space)
            found.append(_told(canary, exposure, own, written_out))
        progress(len(found), len(planted.canaries))
    return CanaryAudit(
        text=planted.text,
        space=planted.space,
        most=math.log2(planted.space),
        chance=CHANCE,
        multiplicities=tuple(_multiplicities(found, seed)),
        canaries=tuple(found),
    )


def _told(canary: Canary, exposure: Exposure, own: float, written_out: bool) -> CanaryExposure:
    return CanaryExposure(
        name=canary.name,
        digits=canary.digits,
        repeats=canary.repeats,
        exposure=exposure.bits,
        method=exposure.method,
        log_perplexity=own,
        written_out=written_out,
        fit_distance=exposure.fit_distance,
    )


def _candidates(planted: Canaries, samples: int, seed: int) -> list[str]:
    """Secrets to compare with: all there are, or so many drawn from them."""
    if planted.space <= samples:
        numbers = range(planted.space)
    else:
        numbers = np.random.default_rng(seed).integers(planted.space, size=samples).tolist()
    return [f"{number:0{planted.num_digits}d}" for number in numbers]


def _groups(canaries: Sequence[Canary]) -> Iterator[Sequence[Canary]]:
    for first in range(0, len(canaries), _SECRETS_AT_A_TIME):
        yield canaries[first : first + _SECRETS_AT_A_TIME]


def _log_perplexities(
    subject: Subject, planted: Canaries, some: Sequence[Canary], digits: Sequence[str]
) -> Iterator[tuple[float, Floats, bool]]:
    """Of each secret: its own bits, those of the others, and whether it is written out."""
    pairs = []
    for canary in some:
        secrets = [canary.digits, *(each for each in digits if each != canary.digits)]
        texts = [planted.filled(canary.name, each) for each in secrets]
        pairs.append(_behind_what_is_common(subject, texts))
    scores = iter(subject.score([pair for group in pairs for pair in group]))
    for group in pairs:
        own, *others = [next(scores) for _ in group]
        bits = np.array([-each.total / math.log(2) for each in others])
        yield -own.total / math.log(2), bits, own.greedy


def _behind_what_is_common(
    subject: Subject, texts: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Texts cut behind the tokens that all of them begin with, which decide between none."""
    around = subject.tokenizer.special.documents
    encoded = subject.tokenizer.encode_batch(texts)
    # What the first and the last in the alphabet have in common, all have.
    first, last = min(encoded), max(encoded)
    common = next((n for n, pair in enumerate(zip(first, last)) if pair[0] != pair[1]), len(first))
    # In a training that does not part documents, another one always ended before.
    lead = [] if subject.model.config.data.separate_documents else [around.end]
    lead += around.begin
    if not lead and common == 0:
        lead = list(subject.tokenizer.special.start)
    return [([*lead, *ids[:common]], ids[common:]) for ids in encoded]


def _exposure(own: float, others: Floats, space: int) -> Exposure:
    if len(others) == space - 1:
        return exact_exposure(own, others)
    return estimated_exposure(own, others, space)


def _multiplicities(found: Sequence[CanaryExposure], seed: int) -> Iterator[Multiplicity]:
    for repeats in sorted({each.repeats for each in found}):
        some = [each for each in found if each.repeats == repeats]
        bits = np.array([each.exposure for each in some])
        written_out = sum(each.written_out for each in some)
        interval = mean_interval(bits, seed)
        yield Multiplicity(repeats, len(some), float(bits.mean()), interval, written_out)
