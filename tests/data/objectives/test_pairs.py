"""Pairs as samples: shifted targets, cuts, padding, and an order that is a pure function."""

from __future__ import annotations

import logging

import pytest
import torch

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.data.objectives.pairs import open_pairs
from roots.errors import RootsError

BEGIN, END = 7, 0


@pytest.fixture
def write_pairs(write_dataset, tmp_path):
    """Write pairs [(source, target), ...] and return the prefix; texts get their end here."""

    def write(pairs, name="p", vocab_size=1000):
        for place, side in enumerate(("source", "target")):
            documents = [[*pair[place], END] for pair in pairs]
            write_dataset(documents, f"{name}.{side}", vocab_size)
        return str(tmp_path / name)

    return write


def numbered(count):
    """Pairs that say which they are: a source of n + 1 tokens, a target of two, all ids n + 10."""
    return [([n + 10] * (n % 3 + 1), [n + 10, n + 10]) for n in range(count)]


def data_of(prefix, *, plan=(1, 4, 1), rank=0, steps=3, model=(), **data):
    config = parse_config(
        {
            "model": {
                "architecture": "encoder_decoder",
                "sequence_length": 6,
                "source_length": 5,
                "vocab_size": 1000,
                **dict(model),
            },
            "training": {"steps": steps, "micro_batch_size": plan[1], "global_batch_size": 4},
            "evaluation": {"every_steps": 0},
            "data": {"objective": "pairs", "train": prefix, "begin_token": BEGIN, **data},
        }
    )
    batch_plan = plan_batch(config, plan[0])
    return build_data(config, batch_plan, rank).train


def rows_of(batches):
    """Every sample as one comparable value."""
    return [
        tuple(tuple(field[row].reshape(-1).tolist()) for field in batch)
        for batch in batches
        for row in range(len(batch.tokens_BT))
    ]


def test_target_is_read_after_begin_and_predicted_with_its_end(write_pairs):
    pairs = [([11, 12, 13], [21, 22, 23]), ([14], [24, 25, 26, 27, 28, 29, 30, 31])]
    ((batches, _),) = data_of(write_pairs(pairs), steps=1).iterate()
    (batch,) = batches
    seen = {int(row[0]): number for number, row in enumerate(batch.source_BS)}
    assert set(seen) == {11, 14}
    short, cut = seen[11], seen[14]
    assert batch.source_BS[short].tolist() == [11, 12, 13, END, 0]
    assert batch.source_lengths_B[short] == 4
    assert batch.tokens_BT[short].tolist() == [BEGIN, 21, 22, 23, 0, 0]
    assert batch.labels_BT[short].tolist() == [21, 22, 23, END, 0, 0]
    assert batch.loss_weights_BT[short].tolist() == [0.25] * 4 + [0.0] * 2
    # Cut at the model's length, without an end that is not there.
    assert batch.labels_BT[cut].tolist() == [24, 25, 26, 27, 28, 29]
    assert batch.tokens_BT[cut].tolist() == [BEGIN, 24, 25, 26, 27, 28]
    assert batch.loss_weights_BT.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert batch.document_starts_BT.abs().sum() == 0
    assert all(a.dtype == b.dtype for a, b in zip(batch, batch._replace())), "fields"


def test_cuts_are_counted_once(write_pairs, caplog):
    prefix = write_pairs([([11] * n, [12] * (n + 3)) for n in range(2, 8)])
    with caplog.at_level(logging.INFO, logger="roots"):
        list(data_of(prefix, steps=4).iterate())
    assert [record.message for record in caplog.records] == [
        f"{prefix}.source: 3 of 6 texts are longer than 5 tokens and are cut",
        f"{prefix}.target: 5 of 6 texts are longer than 6 tokens and are cut",
    ]


def test_every_epoch_has_all_pairs_in_an_order_of_its_own(write_pairs):
    prefix = write_pairs(numbered(12))
    steps = [rows_of(batches) for batches, _ in data_of(prefix, steps=9).iterate()]
    firsts = [row[1][0] - 10 for rows in steps for row in rows]
    epochs = [firsts[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("multiple, group", [(None, 1), (2, 1), (2, 3)])
def test_samples_do_not_depend_on_the_layout_or_a_restart(write_pairs, multiple, group):
    prefixes = [write_pairs(numbered(11), "a"), write_pairs(numbered(5), "b")]
    train = [{"prefix": prefixes[0], "weight": 2}, prefixes[1]]

    def read(plan, rank, start=0):
        lengths = {"pad_multiple": multiple, "group_batches": group}
        source = data_of(train, plan=plan, rank=rank, steps=5, **lengths)
        return [rows_of(batches) for batches, _ in source.iterate(start)]

    whole = read((1, 4), 0)
    ranks = [read((2, 1), rank) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*ranks)] == [sorted(rows) for rows in whole]
    assert read((1, 2), 0) == whole
    assert read((1, 4), 0, start=2) == whole[2:]


def test_padding_reaches_the_longest_of_the_global_batch(write_pairs):
    pairs = [([11] * 2, [12] * 1), ([13] * 1, [14] * 2)] * 2
    for rank in (0, 1):
        source = data_of(write_pairs(pairs), plan=(2, 1), rank=rank, steps=1, pad_multiple=2)
        for batches, _ in source.iterate():
            for batch in batches:
                assert batch.source_BS.shape == (1, 4)
                assert batch.tokens_BT.shape == (1, 4)
    pairs = [([11] * 9, [12] * 9)] * 4
    ((batches, _),) = data_of(write_pairs(pairs), steps=1, pad_multiple=4).iterate()
    assert (batches[0].source_BS.shape[1], batches[0].tokens_BT.shape[1]) == (5, 6)


def test_groups_hold_the_same_samples_in_batches_of_equal_lengths(write_pairs):
    """Two groups of four batches: less padding, nothing lost, batches in no order of length."""
    prefix = write_pairs([([n % 4 + 10] * (n % 4 + 1), [n + 10] * 2) for n in range(32)])
    plain = [
        b for batches, _ in data_of(prefix, steps=8, pad_multiple=1).iterate() for b in batches
    ]
    source = data_of(prefix, steps=8, pad_multiple=1, group_batches=4)
    grouped = [b for batches, _ in source.iterate() for b in batches]
    for start in (0, 4):
        assert sorted(
            b.labels_BT[row, 0].item() for b in grouped[start : start + 4] for row in range(4)
        ) == sorted(
            b.labels_BT[row, 0].item() for b in plain[start : start + 4] for row in range(4)
        )
    sizes = [[batch.source_BS.numel() for batch in batches] for batches in (plain, grouped)]
    assert sum(sizes[1]) < sum(sizes[0])
    assert sizes[1] != sorted(sizes[1])


def test_sides_of_different_lengths(write_dataset, tmp_path):
    write_dataset([[1, 0]] * 3, "p.source")
    write_dataset([[1, 0]] * 4, "p.target")
    with pytest.raises(RootsError) as caught:
        open_pairs(str(tmp_path / "p"))
    assert caught.value.lines == (
        f"{tmp_path}/p.source: holds 3 documents, and {tmp_path}/p.target 4; "
        "run `roots preprocess --pairs` again, or copy all files again",
    )


def test_missing_side_is_named(write_dataset, tmp_path):
    write_dataset([[1, 0]] * 3, "p.source")
    with pytest.raises(RootsError) as caught:
        data_of(str(tmp_path / "p"))
    assert caught.value.lines == (
        f"data.train[0].prefix: {tmp_path}/p.target.idx: no such file; "
        "check data.train and data.valid, or run `roots preprocess`",
    )


def test_token_beyond_the_vocabulary_of_either_side(write_pairs):
    prefix = write_pairs([([1], [90])] * 4)
    with pytest.raises(RootsError) as caught:
        data_of(prefix, model={"vocab_size": 64})
    assert caught.value.lines == (
        f"{prefix}.target token id=90: model.vocab_size is 64, so ids go from 0 to 63; "
        "set model.vocab_size to 91 or more, or use the data of another tokenizer",
    )


def test_begin_is_the_end_of_document_unless_named(write_pairs):
    ((batches, _),) = data_of(write_pairs(numbered(4)), steps=1, begin_token=None).iterate()
    assert torch.equal(batches[0].tokens_BT[:, 0], torch.full((4,), END))
