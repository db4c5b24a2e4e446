"""attention_rows against the formula of each row in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roots.errors import RootsError
from roots.ops import attention_rows
from roots.ops.few_rows.attention_rows import attention_rows_reference
from tests.ops.accuracy import (
    all_implementations,
    all_kernels,
    assert_close_as_baseline,
    random_inputs,
)

both_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)
# heads, key heads, head size, lengths, counts, what else
CASES: dict[str, tuple[int, int, int, list[int], list[int], dict[str, Any]]] = {
    "one token each": (4, 4, 64, [1, 7, 64, 65, 200], [1] * 5, {}),
    "grouped": (6, 2, 40, [130, 3], [1, 1], {}),
    "some tokens": (4, 2, 32, [9, 70, 5, 0], [3, 6, 5, 0], {}),
    "window": (2, 2, 16, [150, 4, 90], [1, 2, 70], {"window": 66}),
    "cross": (3, 3, 72, [5, 129], [2, 4], {"causal": False}),
    "scale": (2, 1, 9, [33], [2], {"scale": 0.7}),
    "bias": (4, 2, 24, [80, 3], [3, 1], {"bias_nL": 80}),
}
all_cases = pytest.mark.parametrize("case", CASES)


def operands(case: str, seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor], dict[str, Any]]:
    """q, keys and values in float64, and the options."""
    heads, key_heads, size, lengths, counts, more = CASES[case]
    shapes = [(length, key_heads, size) for length in lengths]
    q, *rest = random_inputs((sum(counts), heads, size), *shapes, *shapes, seed=seed)
    options = {**more, "lengths": lengths, "counts": counts}
    if "bias_nL" in more:
        slopes = torch.arange(1, heads + 1) / heads
        options["bias_nL"] = -slopes[:, None] * torch.arange(more["bias_nL"])
    return q, rest[: len(lengths)], rest[len(lengths) :], options


def plain(q: Tensor, keys: list[Tensor], values: list[Tensor], options: dict[str, Any]) -> Tensor:
    """Token by token, key by key."""
    outputs, token = [], 0
    scale = options.get("scale", 1 / math.sqrt(q.shape[-1]))
    for k, v, length, count in zip(
        keys, values, options["lengths"], options["counts"], strict=True
    ):
        for t in range(count):
            position = length - count + t
            hi = position + 1 if options.get("causal", True) else length
            lo = max(0, hi - options["window"]) if options.get("window") else 0
            for n in range(q.shape[1]):
                group = n // (q.shape[1] // k.shape[1])
                scores = scale * (k[lo:hi, group] @ q[token, n])
                if "bias_nL" in options:
                    distances = position - torch.arange(lo, hi)
                    scores = scores + options["bias_nL"][n, distances].to(scores.dtype)
                outputs.append(scores.softmax(0) @ v[lo:hi, group])
            token += 1
    return torch.stack(outputs).view(q.shape)


def cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [each.to(dtype) for each in tensors]


@both_dtypes
@all_implementations
@all_cases
def test_is_as_accurate_as_the_baseline(dtype: torch.dtype, implementation: str, case: str) -> None:
    ours, baseline, gold = [], [], []
    for seed in range(3):
        q, keys, values, options = operands(case, seed)
        q, keys, values = q.to(dtype), cast(keys, dtype), cast(values, dtype)
        ours.append(attention_rows(q, keys, values, **options, implementation=implementation))
        baseline.append(plain(q, keys, values, options))
        wide = (q.double(), cast(keys, torch.float64), cast(values, torch.float64))
        gold.append(plain(*wide, options))
    assert ours[0].dtype == dtype
    assert_close_as_baseline(case, *map(torch.stack, (ours, baseline, gold)), dtype)


@both_dtypes
def test_a_token_depends_on_its_own_row_alone(dtype: torch.dtype) -> None:
    q, keys, values, options = operands("window")
    q, keys, values = q.to(dtype), cast(keys, dtype), cast(values, dtype)
    together = attention_rows(q, keys, values, **options)
    token = 0
    for r, (length, count) in enumerate(zip(options["lengths"], options["counts"], strict=True)):
        for t in range(count):
            alone = attention_rows(
                q[token : token + 1],
                [keys[r]],
                [values[r]],
                lengths=[length - count + t + 1],
                window=options["window"],
            )
            assert torch.equal(alone[0], together[token]), (r, t)
            token += 1


def test_threads_do_not_change_a_bit() -> None:
    q, keys, values, options = operands("one token each")
    q, keys, values = q.float(), cast(keys, torch.float32), cast(values, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = attention_rows(q, keys, values, **options)
        torch.set_num_threads(3)
        assert torch.equal(attention_rows(q, keys, values, **options), expected)
    finally:
        torch.set_num_threads(before)


@all_implementations
def test_room_behind_the_keys_is_not_read(implementation: str) -> None:
    """Caches with room to grow, as views of a larger tensor, and a q that is a view too."""
    q, keys, values, options = operands("some tokens")
    q, keys, values = q.float(), cast(keys, torch.float32), cast(values, torch.float32)

    def roomy(each: Tensor) -> Tensor:
        wide = torch.full((each.shape[0] + 5, each.shape[1] + 1, each.shape[2]), torch.nan)
        wide[: each.shape[0], :-1] = each
        return wide[:, :-1]

    expected = attention_rows(q, keys, values, **options, implementation=implementation)
    actual = attention_rows(
        q.transpose(0, 1).contiguous().transpose(0, 1),
        [roomy(each) for each in keys],
        [roomy(each) for each in values],
        **options,
        implementation=implementation,
    )
    torch.testing.assert_close(actual, expected)


@all_implementations
def test_nothing_to_see_gives_zeros_and_no_tokens_nothing(implementation: str) -> None:
    empty = torch.zeros(0, 2, 8)
    o = attention_rows(
        torch.ones(3, 2, 8),
        [empty],
        [empty],
        counts=[3],
        causal=False,
        implementation=implementation,
    )
    assert torch.equal(o, torch.zeros(3, 2, 8))
    none = attention_rows(torch.ones(0, 2, 8), [], [], implementation=implementation)
    assert none.shape == (0, 2, 8)


@all_implementations
def test_what_is_not_finite_stays_in_its_row(implementation: str) -> None:
    q = torch.ones(3, 2, 8)
    keys = [torch.ones(70, 2, 8) for _ in range(3)]
    values = [torch.ones(70, 2, 8) for _ in range(3)]
    keys[0][66, 0, 3] = torch.nan
    values[2][1, 1, 7] = torch.inf
    o = attention_rows(q, keys, values, implementation=implementation)
    assert not o[0, 0].isfinite().any()
    wrong = torch.zeros(3, 2, 8, dtype=torch.bool)
    wrong[0, 0] = wrong[2, 1, 7] = True
    assert torch.equal(~o.isfinite(), wrong)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(st.integers(1, 150), st.integers(0, 5)), min_size=1, max_size=4),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    size=st.integers(1, 140),
    window=st.integers(0, 90),
)
def test_kernel_of_any_shape(
    rows: list[tuple[int, int]], key_heads: int, groups: int, size: int, window: int
) -> None:
    lengths = [length for length, _ in rows]
    counts = [min(count, length) for length, count in rows]
    shapes = [(length, key_heads, size) for length in lengths]
    q, *rest = random_inputs((sum(counts), key_heads * groups, size), *shapes, *shapes)
    rest = cast(rest, torch.float32)
    given_operands = (q.float(), rest[: len(rows)], rest[len(rows) :])
    options = {"lengths": lengths, "counts": counts, "window": window}
    expected = attention_rows(*given_operands, **options, implementation="reference")
    torch.testing.assert_close(attention_rows(*given_operands, **options), expected)


@all_kernels
def test_opcheck(namespace: str, device: str) -> None:
    q, keys, values, options = operands("bias")
    arguments = (options["lengths"], options["counts"], 0.3, True, 0, options["bias_nL"])
    torch.library.opcheck(
        getattr(torch.ops, namespace).attention_rows,
        (q.float(), cast(keys, torch.float32), cast(values, torch.float32), *arguments),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_reference_is_the_plain_formula() -> None:
    q, keys, values, options = operands("bias")
    actual = attention_rows(q, keys, values, **options)
    torch.testing.assert_close(actual, plain(q, keys, values, options))
    assert attention_rows_reference.__module__ == "roots.ops.few_rows.attention_rows"


def test_wrong_operands_are_refused() -> None:
    q, k = torch.zeros(2, 4, 8), torch.zeros(5, 2, 8)
    two = [k, k]
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((q, two, [k]), {}, "rows of attention_rows=[2, 1, 2, 2]: must be as many keys as values"),
        (
            (q, two, two),
            {"counts": [1, 2]},
            "q of attention_rows=[2, 4, 8]: must be [tokens of",
        ),
        ((q, [k, k[:, :, :3]], two), {}, "keys of attention_rows=[5, 2, 3]: must be [tokens, key"),
        ((q, two, [k, k.half()]), {}, "values of attention_rows=[5, 2, 8]: must be [tokens, key"),
        ((q, two, two), {"lengths": [5, 6]}, "length of attention_rows=6: must be within the 5"),
        (
            (q, two, two),
            {"lengths": [5, 0]},
            "count of attention_rows=1: must be at most the",
        ),
        (
            (q, two, two),
            {"causal": False, "window": 3},
            "causal of attention_rows='False': has",
        ),
        ((q, two, two), {"bias_nL": k[0]}, "bias of attention_rows=[2, 8]: must be [4 heads, 5"),
        ((q.clone().requires_grad_(), two, two), {}, "requires_grad of attention_rows='True': has"),
    ]
    for given_operands, options, message in cases:
        with pytest.raises(RootsError) as caught:
            attention_rows(*given_operands, **options)
        assert str(caught.value).startswith(message)


@all_kernels
def test_kernel_messages(namespace: str, device: str) -> None:
    op = getattr(torch.ops, namespace).attention_rows
    q, k, bias = torch.zeros(2, 4, 8), torch.zeros(5, 2, 8), torch.zeros(4, 5)
    rest = ([5], [2], 1.0, True, 0, None)
    cases = [
        ((q.half(), [k], [k], *rest), "q must be float32 or bfloat16."),
        ((q[0], [k], [k], *rest), "q [4, 8] must have the 3 dims [token, head, head size]."),
        ((q, [k], [], *rest), "there are 1 keys, 0 values, 1 lengths and 1 counts;"),
        ((q, [k[..., :4]], [k], *rest), "keys [5, 2, 4] must be [keys, key heads, head size]"),
        ((q, [k], [k.bfloat16()], *rest), "values and q must have the same dtype."),
        ((q, [k], [k], [6], *rest[1:]), "a length is 6; keys [5, 2, 8] must have as many tokens."),
        ((q, [k], [k], [1], *rest[1:]), "a row has 2 tokens and 1 keys;"),
        ((q, [k], [k], [5], [1], *rest[2:]), "the rows have 1 tokens; q has 2."),
        ((q, [k], [k], [5], [2], 1.0, False, 0, bias), "bias needs causal rows:"),
        ((q, [k], [k], [5], [2], 1.0, True, 0, bias[:, :4]), "bias [4, 4] must be [heads, dist"),
    ]
    for given_operands, message in cases:
        with pytest.raises(RuntimeError) as caught:
            op(*given_operands)
        assert message in str(caught.value)
