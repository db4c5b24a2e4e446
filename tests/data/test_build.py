"""The data of a run, from its config."""

from __future__ import annotations

import pytest

from roots.config import parse_config
from roots.config.batch import plan_batch
from roots.data.build import build_data
from roots.errors import RootsError
from roots.tokenizer.tokenizer import load_tokenizer
from tests.helpers.words import write_words


def config_of(data, **sections):
    tree = {
        "model": {"sequence_length": 8, "vocab_size": 1000},
        "training": {"steps": 3, "micro_batch_size": 2, "global_batch_size": 4},
        "evaluation": {"every_steps": 1, "steps": 2},
        "data": data,
    }
    for name, fields in sections.items():
        tree[name] = {**tree.get(name, {}), **fields}
    return parse_config(tree)


def build(config, **options):
    return build_data(config, plan_batch(config, 1), 0, **options)


def tokens_of(steps):
    return {
        token
        for batches in steps
        for batch in batches
        for token in batch.tokens_BT.reshape(-1).tolist()
    }


def test_train_and_valid_share_no_document(numbered):
    indexed = numbered([10] * 20)
    config = config_of({"train": indexed.prefix, "split": "80,20,0"}, training={"steps": 40})
    data = build(config)
    train = tokens_of(batches for batches, _ in data.train.iterate())
    assert train == set(range(160))
    assert tokens_of(data.valid.batches()) <= set(range(160, 200))


def test_separate_validation_data_leaves_all_training_data(numbered):
    prefixes = [numbered([10] * 4, name).prefix for name in ("a", "b")]
    config = config_of({"train": prefixes[0], "valid": prefixes[1]}, training={"steps": 40})
    data = build(config)
    assert tokens_of(batches for batches, _ in data.train.iterate()) == set(range(40))
    assert len(list(data.valid.batches(2))) == 2


def test_no_evaluation_needs_no_validation_data(numbered):
    indexed = numbered([50])
    config = config_of({"train": indexed.prefix}, evaluation={"every_steps": 0})
    data = build(config)
    assert data.valid is None
    assert len(list(data.train.iterate())) == 3


def test_stage_without_data_reads_and_caches_nothing(numbered, tmp_path):
    indexed = numbered([10] * 20)
    config = config_of({"train": indexed.prefix, "split": "80,20,0"})
    data = build(config, needs_data=False)
    assert [batches for batches, _ in data.train.iterate()] == [[], [], []]
    assert list(data.valid.batches(2)) == [[], []]
    assert not (tmp_path / "index-cache").exists()


def test_document_rules_reach_the_batches(numbered):
    indexed = numbered([5] * 40)
    plain = {"train": indexed.prefix, "split": "80,20,0"}
    for rules, zero_starts, masks in [
        ({}, False, False),
        ({"separate_documents": False}, True, False),
        ({"mask_document_end": True}, False, True),
    ]:
        batches, _ = next(build(config_of({**plain, **rules})).train.iterate())
        starts = sum(int(batch.document_starts_BT.sum()) for batch in batches)
        assert (starts == 0) == zero_starts
        assert any(bool((batch.loss_weights_BT == 0).any()) for batch in batches) == masks


def test_no_training_data():
    with pytest.raises(RootsError) as caught:
        build(config_of({}))
    assert str(caught.value) == (
        "data.train: names no data to train on; add `data.train=PREFIX`, made by `roots preprocess`"
    )


def test_all_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(RootsError) as caught:
        build(config_of({"train": [f"{tmp_path}/a", f"{tmp_path}/b"]}))
    fix = "no such file; check data.train and data.valid, or run `roots preprocess`"
    assert caught.value.lines == (
        f"data.train[0].prefix: {tmp_path}/a.idx: {fix}",
        f"data.train[1].prefix: {tmp_path}/b.idx: {fix}",
    )


def test_split_that_leaves_nothing_to_evaluate_on(numbered):
    indexed = numbered([50, 60])
    with pytest.raises(RootsError) as caught:
        build(config_of({"train": indexed.prefix}))
    assert str(caught.value) == (
        f"data.split='969,30,1': leaves no document of {indexed.prefix} (2) for valid; "
        "change the split, or give data.valid a dataset of its own"
    )


def test_token_beyond_the_vocabulary(numbered):
    indexed = numbered([50, 60])
    config = config_of(
        {"train": indexed.prefix}, model={"vocab_size": 64}, evaluation={"every_steps": 0}
    )
    with pytest.raises(RootsError) as caught:
        build(config)
    assert str(caught.value) == (
        f"{indexed.prefix} token id=109: model.vocab_size is 64, so ids go from 0 to 63; "
        "set model.vocab_size to 110 or more, or use the data of another tokenizer"
    )


def test_datasets_of_different_tokenizers(write_dataset):
    prefixes = [
        str(write_dataset([[1, 2, 0]] * 9, name, tokenizer=name)) for name in ("one", "two")
    ]
    with pytest.raises(RootsError) as caught:
        build(config_of({"train": prefixes}))
    assert str(caught.value) == (
        f"{prefixes[1]}: was made with another tokenizer than {prefixes[0]}; "
        "preprocess the text with the same one"
    )


def test_datasets_whose_documents_end_otherwise(write_dataset, tmp_path):
    words = write_words(tmp_path / "words")
    prefixes = []
    for name, end in (("one", "<turn>"), ("two", "<eos>")):
        tokenizer = load_tokenizer(words, end_token=end)
        made = {"tokenizer": tokenizer.fingerprint, "end": tokenizer.end_of_document}
        prefixes.append(str(write_dataset([[1, 2, 0]] * 99, name, **made)))
    # What preprocess was told ends a document need not be what the tokenizer says by itself.
    config = {"train": prefixes[0], "tokenizer": str(words)}
    assert len(list(build(config_of(config)).train.iterate())) == 3
    for data in ({"train": prefixes}, {"train": prefixes, "tokenizer": str(words)}):
        with pytest.raises(RootsError) as caught:
            build(config_of(data))
        assert str(caught.value) == (
            f"{prefixes[1]} end_of_document=2: must be 3, as in {prefixes[0]}; "
            "preprocess the text with the same --end-token"
        )


def test_dataset_of_another_tokenizer_than_the_configured_one(write_dataset):
    config = {"train": str(write_dataset([[1, 2, 0]] * 99)), "tokenizer": "bytes"}
    with pytest.raises(RootsError) as caught:
        build(config_of(config))
    assert str(caught.value) == (
        f"{config['train']}: was made with another tokenizer than data.tokenizer bytes; "
        "preprocess the text with the same one"
    )
    write_dataset([[1, 2, 0]] * 99, tokenizer="bytes")
    assert len(list(build(config_of(config)).train.iterate())) == 3


def test_a_phase_reads_the_same_files_in_an_order_of_its_own(numbered):
    """What it is measured on stays."""
    indexed = numbered([10] * 20)

    def rows(phase):
        data = build(config_of({"train": indexed.prefix, "split": "80,20,0", "phase": phase}))
        steps = [batches for batches, _ in data.train.iterate()]
        return (
            [batch.tokens_BT.tolist() for batches in steps for batch in batches],
            [batch.dropout_keys_B.tolist() for batches in steps for batch in batches],
            [batch.tokens_BT.tolist() for batches in data.valid.batches() for batch in batches],
        )

    plain, first, second = (rows(phase) for phase in (0, 1, 2))
    assert first == rows(1)
    for place in range(2):
        assert plain[place] != first[place] != second[place] != plain[place]
    assert plain[2] == first[2] == second[2]
    config = config_of({"train": indexed.prefix, "split": "80,20,0"})
    (again, *_), _ = next(build(config).train.iterate())
    assert again.tokens_BT.tolist() == plain[0][0]
