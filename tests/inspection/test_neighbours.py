"""Nearest tokens of an embedding."""

from __future__ import annotations

import pytest
import torch

from roots.errors import RootsError
from roots.inspection.neighbours import nearest_tokens, token_named
from roots.tokenizer.tokenizer import ByteTokenizer


def test_nearest_are_those_of_the_largest_cosine_whatever_their_length() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0], [-2.0, 0.1]])
    found = nearest_tokens(table, [0, 1], 2)
    assert found == {0: [[2, 0.7071], [1, 0.0]], 1: [[2, 0.7071], [3, 0.0499]]}
    assert nearest_tokens(table, [], 2) == {}
    assert len(nearest_tokens(table, [3], 9)[3]) == 3


def test_token_is_named_by_its_text_alone() -> None:
    words = ByteTokenizer()
    assert token_named(words, "a") == 97
    assert token_named(words, "<|endoftext|>") == 256
    with pytest.raises(RootsError) as error:
        token_named(words, "ab")
    assert error.value.lines == (
        "--nearest='ab': is 2 tokens ('0x61', '0x62'); give a text of one, with its space if any",
    )
    with pytest.raises(RootsError, match="is no token"):
        token_named(words, "")
