"""Verbatim continuations: against greedy decoding, by repeats, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from roots.device import current_device
from roots.errors import RootsError
from roots.generation.generate import GenerationOptions, continue_tokens
from roots.generation.load import load_model
from roots.generation.sampling import SamplingOptions
from roots.inspection.audit.memorisation import (
    Lengths,
    audit_memorisation,
    check_lengths,
    choose_runs,
)
from roots.inspection.audit.subject import Subject

LENGTHS = Lengths((4, 12), 8)


def test_what_is_repeated_is_continued_and_what_is_unseen_is_not(
    corpus: Path, subject: Subject
) -> None:
    indexed, unseen = subject.open(str(corpus / "train")), subject.open(str(corpus / "unseen"))
    chosen = choose_runs(indexed, unseen, LENGTHS, samples=40, seed=1)
    found = audit_memorisation(subject, chosen)
    by_kind = {(each.fewest, each.prefix_tokens): each for each in found.held_in}
    # The first eight texts.
    often, once = by_kind[(16, 12)], by_kind[(1, 12)]
    assert (often.most, once.most) == (31, 1)
    assert often.share > 0.3
    assert often.interval.low > once.interval.high
    assert all(each.fewest == each.most == 0 for each in found.held_out)
    assert found.held_out[1].share < often.share / 2
    assert [each.prefix_tokens for each in found.held_out] == [4, 12]


def test_verbatim_is_what_greedy_decoding_writes(corpus: Path, subject: Subject) -> None:
    indexed = subject.open(str(corpus / "train"))
    chosen = choose_runs(indexed, None, LENGTHS, samples=12, seed=2)
    found = audit_memorisation(subject, chosen)
    decoder = load_model(subject.model.checkpoint, current_device()).decoder
    options = GenerationOptions(max_new_tokens=8, sampling=SamplingOptions(greedy=True))
    for number, prefix in enumerate(LENGTHS.prefixes):
        for occurring, runs in chosen.held_in.items():
            prompts = [run[12 - prefix : 12].tolist() for run in runs]
            written = continue_tokens(decoder, prompts, options, end=())
            same = sum(
                list(each.token_ids) == run[12:].tolist()
                for each, run in zip(written, runs, strict=True)
            )
            share = next(
                each
                for each in found.held_in
                if (each.fewest, each.most) == occurring and each.prefix_tokens == prefix
            )
            assert (share.verbatim, share.runs) == (same, len(runs)), (number, occurring)
    assert found.held_out == ()


def test_held_out_runs_that_occur_in_the_corpus_are_left_out(
    corpus: Path, subject: Subject
) -> None:
    indexed = subject.open(str(corpus / "train"))
    unseen = subject.open(str(corpus / "unseen"))
    chosen = choose_runs(indexed, unseen, Lengths((2,), 3), samples=60, seed=1)
    assert chosen.left_out > 0
    assert chosen.held_out
    with pytest.raises(RootsError, match="runs of 20 tokens drawn from it occur in the data"):
        choose_runs(indexed, indexed, LENGTHS, samples=20, seed=1)


@pytest.mark.parametrize(
    "lengths, line",
    [
        (
            Lengths((0, 4), 8),
            "--prefix-tokens='0,4': must be different numbers of 1 or more; write them as 16,32,64",
        ),
        (
            Lengths((8, 48), 32),
            "--prefix-tokens='8,48': with --continuation-tokens 32 makes 80 tokens, and the model "
            "reads 64 (model.sequence_length); shorten one of the two",
        ),
    ],
)
def test_lengths_that_cannot_be(lengths: Lengths, line: str) -> None:
    with pytest.raises(RootsError) as error:
        check_lengths(lengths, 64)
    assert error.value.lines == (line,)


def test_documents_that_are_too_short(corpus: Path, subject: Subject) -> None:
    indexed = subject.open(str(corpus / "unseen"))
    with pytest.raises(RootsError) as error:
        choose_runs(indexed, None, Lengths((200,), 100), samples=5, seed=1)
    assert error.value.lines == (
        f"data={indexed.prefix!r}: no document has 300 tokens, the longest prefix and its "
        "continuation; shorten --prefix-tokens or --continuation-tokens",
    )
