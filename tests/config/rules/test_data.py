"""Rules of what is learned from the data, each with the exact line it gives."""

from __future__ import annotations

from typing import Any

import pytest

from roots.config import parse_config
from roots.config.rules.data import DATA_RULES
from roots.errors import RootsError
from tests.helpers.refusals import refusals

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "objective_fits_architecture": (
        {"data": {"objective": "masked"}},
        "data.objective='masked': must be causal with model.architecture=decoder; "
        "set it to causal, or model.architecture=encoder",
    ),
    "special_tokens_in_vocabulary": (
        {"model": {"architecture": "encoder", "vocab_size": 300}, "data": {"mask_token": 300}},
        "data.mask_token=300: must be below model.vocab_size=300; "
        "set it to a token of the tokenizer, or raise model.vocab_size",
    ),
    "padding_of_pairs": (
        {
            "model": {"architecture": "encoder_decoder"},
            "data": {"objective": "pairs", "pad_multiple": 8},
            "parallel": {"pipeline": 2},
        },
        "data.pad_multiple=8: must be null with parallel.pipeline=2, whose stages agree on the "
        "shapes of batches once; set data.pad_multiple=null, or parallel.pipeline=1",
    ),
    "grouping_needs_padding": (
        {"model": {"architecture": "encoder_decoder"}, "data": {"group_batches": 4}},
        "data.group_batches=4: has no effect while data.pad_multiple=null; "
        "set data.pad_multiple to 8, or data.group_batches=1",
    ),
    "room_for_spans": (
        {"model": {"architecture": "encoder_decoder", "source_length": 2}},
        "model.source_length=2: must be at least 3 with data.objective=span_corruption; "
        "set it to 3 or more",
    ),
    "sentinels_mean_nothing_else": (
        {
            "model": {"architecture": "encoder_decoder", "vocab_size": 32128},
            "data": {"sentinel_token": 32099, "begin_token": 32090},
        },
        "data.begin_token=32090: is one of the tokens 32086 to 32099 that hide spans; "
        "set it to another token, or data.sentinel_token to the tokenizer's first sentinel",
    ),
}


@pytest.mark.parametrize("rule", [rule.__name__ for rule in DATA_RULES])
def test_violated_rule_says_field_value_rule_and_fix(rule: str) -> None:
    tree, line = CASES[rule]
    assert refusals(tree) == (line,)


def test_sentinels_are_in_the_vocabulary() -> None:
    for token, line in (
        (
            50257,
            "data.sentinel_token=50257: must be below model.vocab_size=50257; "
            "set it to a token of the tokenizer, or raise model.vocab_size",
        ),
        (
            12,
            "data.sentinel_token=12: must be 13 or more, because a sample has 14 spans and each is "
            "hidden by a token below that of the one before; "
            "set it to the first sentinel of the tokenizer, or to null",
        ),
    ):
        model = {"architecture": "encoder_decoder"}
        with pytest.raises(RootsError) as caught:
            parse_config({"model": model, "data": {"sentinel_token": token}})
        assert caught.value.lines == (line,)
    parse_config({"model": model, "data": {"sentinel_token": 13}})
    # Pairs have no spans.
    parse_config({"model": model, "data": {"sentinel_token": 12, "objective": "pairs"}})
