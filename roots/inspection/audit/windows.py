"""Runs of tokens in a dataset that may have billions: some of them, and how often each occurs.

Every run of so many tokens within a document is hashed, and those are kept whose hash is below a
bound. Whether a run is kept depends on its content alone, so what is kept is an even sample of the
different runs, each with all its occurrences: their number is exact, after one pass in bounded
memory. Equal hashes of 64 bits are taken for equal runs; among n different ones two are mistaken
for each other with a probability of n^2 / 2^65.

Legend: N tokens, W runs.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roots.data.indexed import IndexedDataset, Int64s, Tokens
from roots.log import Report, silent

# Runs that are kept, of however many.
KEPT = 1 << 21
_DOCUMENTS_AT_A_TIME = 1 << 16
_TOKENS_AT_A_TIME = 1 << 22
# Of SplitMix64 (Steele, Lea, Flood 2014); the first is odd, as a base of polynomials must be.
_BASE = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = 2**64

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Run:
    """So many tokens that occur `occurrences` times, first from `start` on in the dataset."""

    start: int
    occurrences: int


def sample_runs(
    indexed: IndexedDataset,
    length: int,
    count: int,
    seed: int,
    progress: Report = silent,
    kept: int = KEPT,
) -> dict[int, list[Run]]:
    """Up to `count` runs of each magnitude of occurrences: 0 for 1, 1 for 2 or 3, 2 for 4 to 7...

    No two of a magnitude overlap at their first occurrence. A dataset without a document of so many
    tokens gives none. At most about `kept` runs are held in memory.
    """
    bound = min(_ALL - 1, _ALL * kept // max(kept, indexed.num_tokens))
    starts, hashes = [], []
    for starts_W, hashes_W in hashed_runs(indexed, length):
        # Another seed keeps others.
        low_W = mixed(hashes_W ^ np.uint64(seed)) <= np.uint64(bound)
        starts.append(starts_W[low_W])
        hashes.append(hashes_W[low_W])
        if len(starts_W):
            progress(int(starts_W[-1]), indexed.num_tokens)
    if not starts:
        return {}
    _, firsts, counts = np.unique(np.concatenate(hashes), return_index=True, return_counts=True)
    firsts = np.concatenate(starts)[firsts]
    magnitudes = np.frexp(counts)[1] - 1
    draws = np.random.default_rng(seed)
    found: dict[int, list[Run]] = {}
    for magnitude in np.unique(magnitudes).tolist():
        some = np.flatnonzero(magnitudes == magnitude)
        runs = [Run(int(firsts[n]), int(counts[n])) for n in draws.permutation(some)]
        found[magnitude] = _apart(runs, length, count)
    return found


def occurrences(indexed: IndexedDataset, runs: list[Tokens]) -> list[int]:
    """How often each run, all of one length, occurs in a dataset."""
    if not runs:
        return []
    length = len(runs[0])
    wanted, places = np.unique(
        np.concatenate([run_hashes(run, length) for run in runs]), return_inverse=True
    )
    counts = np.zeros(len(wanted), dtype=np.int64)
    for _, hashes_W in hashed_runs(indexed, length):
        at_W = np.minimum(np.searchsorted(wanted, hashes_W), len(wanted) - 1)
        counts += np.bincount(at_W[wanted[at_W] == hashes_W], minlength=len(wanted))
    return [int(number) for number in counts[places]]


def hashed_runs(indexed: IndexedDataset, length: int) -> Iterator[tuple[Int64s, Hashes]]:
    """Starts and hashes of all runs of `length` tokens that lie within a document, in order."""
    for document in range(0, indexed.num_documents, _DOCUMENTS_AT_A_TIME):
        stop = min(document + _DOCUMENTS_AT_A_TIME, indexed.num_documents)
        bounds = indexed.document_starts(range(document, stop))
        end = int(bounds[-1])
        for first in range(int(bounds[0]), end - length + 1, _TOKENS_AT_A_TIME):
            tokens = indexed.tokens[first : min(first + _TOKENS_AT_A_TIME + length - 1, end)]
            hashes_W = run_hashes(tokens, length)
            starts_W = first + np.arange(len(hashes_W))
            ends_W = bounds[np.searchsorted(bounds, starts_W, side="right")]
            within_W = starts_W + length <= ends_W
            yield starts_W[within_W], hashes_W[within_W]


def run_hashes(tokens_N: Tokens, length: int) -> Hashes:
    """The hash of every run of `length` tokens: a polynomial in 2^64 of their mixed ids.

    Runs of a power of two are put together from halves, any others from such runs.
    """
    count = len(tokens_N) - length + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    block = mixed(tokens_N.astype(np.uint64))
    power, size = np.full(1, _BASE, dtype=np.uint64), 1
    whole, done = np.zeros(len(block), dtype=np.uint64), 0
    while True:
        if length & size:
            reach = len(tokens_N) - done - size + 1
            whole = whole[:reach] * power + block[done : done + reach]
            done += size
        if done == length:
            return mixed(whole)
        block = block[:-size] * power + block[size:]
        power, size = power * power, 2 * size


def mixed(values: NDArray[np.uint64]) -> Hashes:
    """Every bit of each value in every bit of the result (the finaliser of SplitMix64)."""
    state = values + np.uint64(_BASE)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    result: NDArray[Any] = state ^ (state >> np.uint64(31))
    return result


def _apart(runs: list[Run], length: int, count: int) -> list[Run]:
    """The first `count` runs of which no two overlap, so that each says something of its own."""
    taken: list[int] = []
    chosen = []
    for run in runs:
        place = bisect.bisect(taken, run.start)
        near = taken[max(0, place - 1) : place + 1]
        if all(abs(start - run.start) >= length for start in near):
            taken.insert(place, run.start)
            chosen.append(run)
        if len(chosen) == count:
            break
    return chosen
