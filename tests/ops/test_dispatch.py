"""The choice of implementations: order, reasons, exact messages, log, table."""

from __future__ import annotations

import logging

import pytest
import torch

from roots.errors import RootsError
from roots.ops import table
from roots.ops.dispatch import Implementation, Request, always_supported, select, status_of

REQUEST = Request(torch.float32, "cpu")


def refuse(request: Request) -> list[str]:
    return ["It needs a GPU.", "It needs a head size below 8."]


FUSED = Implementation("fused", lambda: "fused", refuse)
PLAIN = Implementation("plain", lambda: "plain", always_supported)
LAST = Implementation("last", lambda: "last", always_supported)
ALL = (FUSED, PLAIN, LAST)


def test_auto_picks_the_first_without_reasons() -> None:
    assert select("first", ALL, REQUEST) is PLAIN
    assert select("first", (LAST, PLAIN), REQUEST) is LAST


def test_a_wish_that_can_be_met_is_met() -> None:
    assert select("wish", ALL, REQUEST, "last") is LAST


def test_auto_passes_over_what_is_reluctant_but_a_wish_is_met() -> None:
    def slow(request: Request) -> str:
        return "" if "documents" in request.features else "plain is 1.2 times as fast."

    own = Implementation("own", lambda: "own", always_supported, slow)
    assert select("reluctant", (own, PLAIN), REQUEST) is PLAIN
    assert select("reluctant", (own, PLAIN), REQUEST, "own") is own
    documents = REQUEST._replace(features=frozenset(["documents"]))
    assert select("reluctant", (own, PLAIN), documents) is own
    plain, with_documents = status_of("reluctant", (own, PLAIN), ["cpu"], ["", "documents"])[::3]
    assert plain.others == (("own", ("runs when asked for by name: plain is 1.2 times as fast.",)),)
    assert with_documents.chosen == "own"


def test_a_wish_that_cannot_be_met_gives_every_reason() -> None:
    with pytest.raises(RootsError) as caught:
        select("gelu", ALL, REQUEST, "fused")
    assert str(caught.value) == (
        "ops.gelu='fused': cannot run here: It needs a GPU. It needs a head size below 8; "
        'use "auto"'
    )


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RootsError) as caught:
        select("gelu", ALL, REQUEST, "apex")
    assert str(caught.value) == (
        "ops.gelu='apex': is no implementation of this op; use auto, fused, plain, last"
    )


def test_the_choice_is_made_and_logged_once_per_op_dtype_and_device() -> None:
    asked: list[Request] = []

    def count(request: Request) -> list[str]:
        asked.append(request)
        return []

    counted = (Implementation("counted", lambda: None, count),)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("roots.ops")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        for head_size in (64, 64, 128, 64):
            select("only_here", counted, Request(torch.float32, "cpu", head_size=head_size))
        select("only_here", counted, Request(torch.bfloat16, "cpu"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(asked) == 3
    assert lines == [
        "ops.only_here: counted for float32 on cpu",
        "ops.only_here: counted for bfloat16 on cpu",
    ]


def test_table_has_every_op_dtype_and_device_with_reasons_in_sentences() -> None:
    rows = table(("cpu", "cuda"))
    ops = {row.op for row in rows}
    assert ops == {
        "attention", "layer_norm", "rms_norm", "rotary", "bias_gelu", "swiglu", "cross_entropy",
        "dropout", "bias_dropout_add", "scaled_masked_softmax", "check_finite",
        "linear_few_rows", "attention_rows",
    }  # fmt: skip
    for op in ops:
        plain = [(row.dtype, row.device) for row in rows if row.op == op and row.case == ""]
        assert sorted(plain) == sorted(
            (dtype, device)
            for dtype in ("float32", "bfloat16", "float16")
            for device in ("cpu", "cuda")
        )
    for row in rows:
        assert row.chosen not in dict(row.others)
        for name, reasons in row.others:
            assert name
            assert all(reason[0].isalpha() for reason in reasons)
            assert all(reason.endswith(".") for reason in reasons)


def test_table_tells_why_fused_attention_is_not_used_with_dropout() -> None:
    row = next(row for row in table() if (row.op, row.case) == ("attention", "dropout"))
    assert row.chosen == "roots"
    assert dict(row.others)["torch_sdpa"] == (
        "torch draws attention dropout from a generator, so the mask would change with the layout, "
        "with recompute and after a resume.",
    )
