"""Membership by loss: the AUC by its definition, and a model that gives its training away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from roots.errors import RootsError
from roots.inspection.audit.membership import auc, audit_membership
from roots.inspection.audit.subject import Subject
from tests.helpers.trained import write_texts


def test_auc_is_the_share_of_pairs_in_order() -> None:
    draws = np.random.default_rng(1)
    # Of so few values that many are equal.
    members, others = draws.integers(0, 6, size=40), draws.integers(0, 5, size=30)
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert auc(members.astype(float), others.astype(float)) == pytest.approx(np.mean(pairs))


def test_documents_of_the_training_are_told_from_others(corpus: Path, subject: Subject) -> None:
    indexed, unseen = subject.open(str(corpus / "train")), subject.open(str(corpus / "unseen"))
    found = audit_membership(subject, indexed, unseen, samples=60, seed=1)
    assert (found.members, found.others) == (60, 60)
    by_score = {each.score: each for each in found.attacks}
    assert list(by_score) == ["loss", "zlib", "min_k", "no_model"]
    for name in ("loss", "zlib", "min_k"):
        assert by_score[name].interval.low > 0.55
        assert by_score[name].interval.low <= by_score[name].auc <= by_score[name].interval.high
        # Those that were read thirty times.
        assert by_score[name].found > 0.3


def test_a_dataset_is_not_told_from_itself(corpus: Path, subject: Subject) -> None:
    indexed = subject.open(str(corpus / "train"))
    found = audit_membership(subject, indexed, indexed, samples=10_000, seed=1)
    assert [each.auc for each in found.attacks] == [0.5] * 4


def test_dataset_of_too_few_documents(corpus: Path, subject: Subject, tmp_path: Path) -> None:
    prefix = write_texts(tmp_path / "short", ["short", "also short", "long enough for a document"])
    with pytest.raises(RootsError) as error:
        audit_membership(
            subject,
            subject.open(str(prefix)),
            subject.open(str(corpus / "train")),
            samples=9,
            seed=1,
        )
    assert error.value.lines == (
        f"data={str(prefix)!r}: has 1 documents of 16 tokens or more, which is too few; "
        "give a dataset of more text",
    )
