"""The lines of an inspection."""

from __future__ import annotations

from typing import Any

from roots.inspection.text import nearest_lines, text_lines

FOUND: dict[str, Any] = {
    "checkpoint": "somewhere",
    "vocabulary": {1: " the", 2: "cat", 3: "dog"},
    "tokens": [1, 2],
    "losses": {
        "mean": 2.5,
        "perplexity": 12.1825,
        "tokens": 1234,
        "of_tokens": [None, 2.5],
        "predictions": [[[3, 0.75]], [[1, 0.5]]],
    },
    "lenses": {"logit": {"losses": [9.87654, 2.5]}, "tuned": None},
    "heads": {
        "length": 48,
        "losses": [8.0, 0.25],
        "scores": {"induction": [], "previous": []},
        "named": [
            {"kind": "induction", "block": 1, "head": head, "score": 0.9 - head / 10}
            for head in range(6)
        ],
    },
    "residual": {"norms": [1.0, None]},
    "experts": [{"block": 1, "largest": 1.5, "entropy": 0.25, "load_entropy": 0.96}],
    "nearest": {2: [[3, 0.9], [1, 0.1234]]},
    "overflow": {
        "sites": [
            {"site": "a", "largest": 32752.0, "share": 0.5},
            {"site": "b", "largest": 2.0, "share": 2 / 65504},
        ],
        "overflows": [],
        "close": ["a"],
    },
}


def test_every_part_has_its_line() -> None:
    assert list(text_lines(FOUND)) == [
        "checkpoint  somewhere",
        "loss        2.5 nats per token, perplexity 12.18, of 1,234 tokens",
        "dearest     'cat' at token 1: 2.5000 nats; 'dog' was likeliest, with 0.75",
        "logit lens  9.877 2.5 nats, by block",
        "repeated    48 random tokens cost 8 nats each, and 0.25 when they come again",
        "induction   block 1 head 0 (0.90), block 1 head 1 (0.80), block 1 head 2 (0.70), block 1 "
        "head 3 (0.60), and 2 more",
        "previous    no head",
        "residual    1 not finite long, by block",
        "experts     block 1: largest load 1.5 of an even one, entropy of the load 0.96, of a "
        "token 0.25",
        "fp16        largest value 32,752 at a, 1.0 doublings below 65,504",
        "            within a factor of 4: a",
    ]
    assert list(nearest_lines(FOUND, [2])) == ["nearest     'cat': 'dog' 0.9, ' the' 0.1234"]


def test_overflow_names_the_first_site() -> None:
    overflow = {**FOUND["overflow"], "overflows": ["b"]}
    *_, line = text_lines({**FOUND, "overflow": overflow})
    assert line == (
        "fp16        would overflow at 1 of 2 sites, first at b: 2, and 65,504 is the largest "
        "number"
    )
