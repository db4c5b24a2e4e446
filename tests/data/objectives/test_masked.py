"""Masked language modelling: shares, positions, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.data.objectives.masked import mask_tokens

MASK, END = 999, 0


def test_shares_are_those_of_the_paper():
    """6000 chosen tokens: five binomial deviations around 80%, 10% (less chance hits) and 10%."""
    masked = changed = kept = 0
    for key in range(400):
        tokens = np.random.default_rng(key).integers(1, 500, size=100)
        tokens[::25] = END
        result, chosen = mask_tokens(tokens, key, density=0.15, mask=MASK, end=END, text_size=500)
        assert len(chosen) == len(set(chosen.tolist())) == 15
        assert (tokens[chosen] != END).all()
        untouched = np.setdiff1d(np.arange(100), chosen)
        assert np.array_equal(result[untouched], tokens[untouched])
        masked += int((result[chosen] == MASK).sum())
        kept += int((result[chosen] == tokens[chosen]).sum())
        changed += int(((result[chosen] != MASK) & (result[chosen] != tokens[chosen])).sum())
    total = 6000
    assert masked + changed + kept == total
    for count, share in ((masked, 0.8), (changed, 0.1), (kept, 0.1)):
        assert abs(count - share * total) < 5 * (share * (1 - share) * total) ** 0.5


def test_chosen_positions_are_spread_and_follow_from_the_key():
    tokens = np.arange(1, 21)
    options = {"density": 0.15, "mask": MASK, "end": END, "text_size": 500}
    seen = [mask_tokens(tokens, key, **options)[1].tolist() for key in range(400)]
    assert mask_tokens(tokens, 7, **options)[1].tolist() == seen[7]
    counts = np.bincount(np.concatenate(seen), minlength=20)
    # 1200 draws over 20 positions, without replacement of 3 in a row of 20: mean 60.
    assert counts.min() > 60 - 5 * 60**0.5
    assert counts.max() < 60 + 5 * 60**0.5


def test_row_of_ends_alone_predicts_nothing():
    result, chosen = mask_tokens(
        np.zeros(8, dtype=np.int64), 1, density=0.5, mask=MASK, end=END, text_size=9
    )
    assert (result.tolist(), chosen.tolist()) == ([END] * 8, [])


@pytest.mark.parametrize("mask_token", [None, 3])
def test_batches_of_a_run(numbered, mask_token):
    indexed = numbered([13, 27, 8, 16])
    config = parse_config(
        {
            "model": {"architecture": "encoder", "sequence_length": 16, "vocab_size": 1000},
            "training": {"steps": 5, "micro_batch_size": 4, "global_batch_size": 4},
            "evaluation": {"every_steps": 0},
            "data": {"train": indexed.prefix, "mask_token": mask_token},
        }
    )
    steps = [batches for batches, _ in build_data(config, plan_batch(config, 1), 0).train.iterate()]
    batch = steps[0][0]
    expected = MASK if mask_token is None else mask_token
    predicted = batch.loss_weights_BT > 0
    assert predicted.sum(1).tolist() == [2] * 4
    assert batch.loss_weights_BT.sum(1).tolist() == pytest.approx([1.0] * 4)
    changed = batch.tokens_BT != batch.labels_BT
    assert (predicted | ~changed).all()
    assert (batch.tokens_BT == expected).sum() >= 4
    assert batch.source_lengths_B.tolist() == [16] * 4
    assert batch.source_BS.shape == (4, 0)
    # In every step other places are hidden.
    hidden = [(batch.loss_weights_BT > 0).tolist() for (batch,) in steps]
    assert all(hidden.count(each) == 1 for each in hidden)
    # The text comes whole: consecutive samples share no token of the stream.
    first_epoch = [row for batches in steps[:1] for b in batches for row in b.labels_BT.tolist()]
    assert len({token for row in first_epoch for token in row}) == 4 * 16
