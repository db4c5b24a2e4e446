"""Secrets of a trained model: exposure by repeats, and the same figures in other ways."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from roots.data.canaries import Canaries, read_canaries
from roots.device import current_device
from roots.generation.load import load_model
from roots.inspection.audit.canaries import CanaryAudit, audit_canaries
from roots.inspection.audit.subject import Subject


@pytest.fixture(scope="module")
def planted(corpus: Path) -> Canaries:
    return read_canaries(corpus / "train")


@pytest.fixture(scope="module")
def exact(planted: Canaries, subject: Subject) -> CanaryAudit:
    return audit_canaries(subject, planted, samples=1000, seed=1)


def test_exposure_rises_with_the_times_a_secret_was_planted(exact: CanaryAudit) -> None:
    audit = exact
    never, once, often = audit.multiplicities
    assert [each.repeats for each in audit.multiplicities] == [0, 1, 20]
    assert [each.secrets for each in audit.multiplicities] == [4, 4, 4]
    # Four exposures, whose standard deviation is their mean.
    assert abs(never.mean_exposure - audit.chance) < 3 * audit.chance / 2
    assert never.mean_exposure < often.mean_exposure
    assert often.mean_exposure > 6.0
    assert often.interval.low > never.interval.high
    assert once.written_out <= often.written_out
    assert audit.most == math.log2(1000)


def test_rank_is_that_among_all_secrets_scored_by_hand(
    planted: Canaries, exact: CanaryAudit, subject: Subject
) -> None:
    found = exact.canaries[5]
    assert found.method == "exact"
    decoder = load_model(subject.model.checkpoint, current_device()).decoder
    texts = [planted.filled(found.name, f"{number:03d}") for number in range(1000)]
    tokens = torch.tensor([list(text.encode()) for text in texts])
    with torch.no_grad():
        logits = decoder(tokens, torch.zeros_like(tokens), torch.zeros(1000, dtype=torch.int64))
    logs = logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].double()
    # The words before the secret are the same for all.
    costs = -logs[:, -3:].sum(-1) / math.log(2)
    own = costs[int(found.digits)]
    assert found.log_perplexity == pytest.approx(float(own), rel=1e-5)
    rank = 1 + int((costs < own - 1e-5).sum())
    assert found.exposure == pytest.approx(math.log2(1000) - math.log2(rank), abs=0.02)


def test_estimate_from_a_sample_is_near_the_exact_one(
    planted: Canaries, exact: CanaryAudit, subject: Subject
) -> None:
    told: list[tuple[int, int]] = []
    sampled = audit_canaries(
        subject, planted, samples=400, seed=1, progress=lambda *done: told.append(done)
    )
    assert told == [(8, 12), (12, 12)]
    for each, other in zip(exact.canaries, sampled.canaries):
        if other.method == "sampled":
            assert other.exposure == pytest.approx(each.exposure, abs=1.0)
    assert {each.method for each in sampled.canaries} == {"sampled", "fitted"}
    assert all(each.exposure <= sampled.most for each in sampled.canaries)
