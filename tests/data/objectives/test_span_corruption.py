"""Span corruption: the text can be put together again, and the shares are those asked for."""

from __future__ import annotations

import numpy as np
import pytest

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.config.spans import SpanPlan, plan_spans
from roots.data.build import build_data
from roots.data.objectives.span_corruption import corrupt_spans
from roots.errors import RootsError

VOCAB, END = 500, 499
FIRST = VOCAB - 1


def restored(source, target, spans, first=FIRST):
    """The text that source and target were made from, by the definition in the paper."""
    pieces = {}
    for token in target[:-1]:
        if first - spans < token <= first:
            pieces[token] = current = []
        else:
            current.append(token)
    assert list(pieces) == [first - k for k in range(spans)], "sentinels in order"
    text = []
    for token in source[:-1]:
        text += pieces.pop(token) if token in pieces else [token]
    assert not pieces
    return text


@pytest.mark.parametrize(
    "plan", [SpanPlan(2, 1, 1), SpanPlan(20, 3, 1), SpanPlan(100, 15, 5), SpanPlan(9, 4, 4)]
)
def test_text_can_be_restored(plan):
    text = np.arange(plan.text_length)
    for key in range(50):
        source, target = corrupt_spans(text, plan, key, first_sentinel=FIRST, end=END - 100)
        assert (source[-1], target[-1]) == (END - 100, END - 100)
        assert (len(source), len(target)) == (plan.source_length, plan.target_length)
        assert restored(source.tolist(), target.tolist(), plan.spans) == text.tolist()


def test_draws_follow_from_the_key_and_cover_all_cuts():
    plan = SpanPlan(6, 2, 2)
    text = np.arange(6)
    made = [corrupt_spans(text, plan, key, first_sentinel=FIRST, end=END)[0] for key in range(200)]
    again = corrupt_spans(text, plan, 3, first_sentinel=FIRST, end=END)[0]
    assert np.array_equal(made[3], again)
    # Two stretches of together four tokens: 1 + 3, 2 + 2, 3 + 1.
    assert len({tuple(source) for source in made}) == 3


def test_plan_is_the_paper_s():
    """T5's 512 tokens of source come from 568 of text, with 114 of target (mesh-tensorflow)."""
    plan = plan_spans(512, 114, 0.15, 3.0)
    assert (plan.text_length, plan.source_length, plan.target_length) == (568, 512, 114)
    assert plan.noise_tokens == round(568 * 0.15)
    assert plan_spans(10_000, 114, 0.15, 3.0).target_length == 114


def test_nothing_fits_into_two_tokens():
    with pytest.raises(RootsError, match="must leave room for a token, a sentinel and the end"):
        plan_spans(2, 8, 0.15, 3.0)


def data_of(prefix, plan=(1, 4), rank=0, vocab_size=VOCAB, **data):
    config = parse_config(
        {
            "model": {
                "architecture": "encoder_decoder",
                "source_length": 20,
                "sequence_length": 8,
                "vocab_size": vocab_size,
            },
            "training": {"steps": 6, "micro_batch_size": plan[1], "global_batch_size": 4},
            "evaluation": {"every_steps": 0},
            "data": {"train": prefix, **data},
        }
    )
    return build_data(config, plan_batch(config, plan[0]), rank).train


def rows_of(batches):
    return [
        tuple(tuple(field[row].reshape(-1).tolist()) for field in batch)
        for batch in batches
        for row in range(len(batch.tokens_BT))
    ]


def test_batches_of_a_run(numbered):
    """Consecutive stretches of the text; equal on every layout; other spans in another step."""
    indexed = numbered([13, 40, 8, 22])
    steps = [rows_of(batches) for batches, _ in data_of(indexed.prefix).iterate()]
    ranks = [
        [rows_of(b) for b, _ in data_of(indexed.prefix, plan=(2, 2), rank=r).iterate()]
        for r in (0, 1)
    ]
    assert [a + b for a, b in zip(*ranks)] == steps
    ((batches, _), *_) = data_of(indexed.prefix).iterate(2)
    assert rows_of(batches) == steps[2]
    plan = plan_spans(20, 8, 0.15, 3.0)
    batch = batches[0]
    assert batch.source_lengths_B.tolist() == [plan.source_length] * 4
    assert batch.tokens_BT[:, 0].tolist() == [0] * 4, "begin is the end of document"
    assert batch.loss_weights_BT.sum(1).tolist() == pytest.approx([1.0] * 4)
    for row in range(4):
        source = batch.source_BS[row, : plan.source_length].tolist()
        target = batch.labels_BT[row, : plan.target_length].tolist()
        text = restored(source, target, plan.spans)
        assert len(text) == plan.text_length


def test_text_must_leave_the_sentinels_alone(numbered):
    indexed = numbered([40, 60])
    spans = plan_spans(20, 8, 0.15, 3.0).spans
    with pytest.raises(RootsError) as caught:
        data_of(indexed.prefix, vocab_size=100)
    assert caught.value.lines == (
        f"{indexed.prefix} token id=99: model.vocab_size is 100 and the last {spans} hide text, "
        f"so ids go from 0 to {99 - spans}; set model.vocab_size to {100 + spans} or more, "
        "or use the data of another tokenizer",
    )
    assert len(list(data_of(indexed.prefix, vocab_size=100 + spans).iterate())) == 6


def test_sentinels_go_down_from_the_one_that_is_named(write_dataset):
    """As in T5: text below the sentinels, rows above that no text uses, and may use here."""
    documents = [[*range(1, 90), 0], [*range(110, 200), 0]]
    prefix = write_dataset(documents, vocab_size=200)
    plan = plan_spans(20, 8, 0.15, 1.0)
    assert plan.spans == 3
    ((batch, *_), _) = next(iter(data_of(str(prefix), sentinel_token=109, mean_span=1).iterate()))
    assert batch.source_BS.max() > 109
    for row in range(4):
        source = batch.source_BS[row, : plan.source_length].tolist()
        target = batch.labels_BT[row, : plan.target_length].tolist()
        assert [token for token in target if 90 <= token < 110] == [109, 108, 107]
        assert len(restored(source, target, plan.spans, first=109)) == plan.text_length


def test_text_must_leave_sentinels_in_the_middle_alone(numbered):
    indexed = numbered([40, 60])
    spans = plan_spans(20, 8, 0.15, 1.0).spans
    with pytest.raises(RootsError) as caught:
        list(data_of(indexed.prefix, sentinel_token=70, mean_span=1).iterate())
    (line,) = caught.value.lines
    found = int(line.split("token id=")[1].split(":")[0])
    assert 70 - spans < found <= 70
    assert line == (
        f"{indexed.prefix} token id={found}: is one of the ids {71 - spans} to 70 that hide text; "
        "set data.sentinel_token to the tokenizer's first sentinel, or use other data"
    )


@pytest.mark.parametrize("use", ["ends a document", "begins a target"])
def test_sentinels_have_no_other_use(write_dataset, use):
    """The end of document is known from the data; the config asks of sentinels that it names."""
    prefix = write_dataset([[*range(50, 90), 0]])
    spans = plan_spans(20, 8, 0.15, 1.0).spans
    tokens = {"sentinel_token": spans - 1} if use == "ends a document" else {"begin_token": FIRST}
    with pytest.raises(RootsError) as caught:
        data_of(str(prefix), mean_span=1, **tokens)
    last = tokens.get("sentinel_token", FIRST)
    token = tokens.get("begin_token", 0)
    assert caught.value.lines == (
        f"data.sentinel_token={last}: makes {last + 1 - spans} to {last} hide spans, of which "
        f"{token} {use}; set it to the first sentinel of the tokenizer",
    )
