"""Text that comes token by token is the text of all tokens, and ends at the first stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roots.generation.prompts import decode_new
from roots.generation.spelling import Spelling
from roots.tokenizer.tokenizer import ByteTokenizer, Tokenizer
from tests.generation.test_prompts import spaced

BYTES = ByteTokenizer()


def spelled(
    tokenizer: Tokenizer, prompt: list[int], new: list[int], stops: tuple[str, ...] = ()
) -> tuple[list[str], Spelling]:
    """The pieces that the new tokens add, and what is left at the end as the last."""
    spelling = Spelling(tokenizer, prompt, stops)
    pieces = []
    for token in new:
        pieces.append(spelling.add(token))
        if spelling.stopped:
            return pieces, spelling
    return [*pieces, spelling.finish()], spelling


@given(prompt=st.text(max_size=12), new=st.text(max_size=12))
def test_whole_characters_come_as_soon_as_they_are_whole(prompt: str, new: str) -> None:
    ids = BYTES.encode(new)
    pieces, spelling = spelled(BYTES, BYTES.encode(prompt), ids)
    assert "".join(pieces) == spelling.text == new
    if new and not new.endswith("\N{REPLACEMENT CHARACTER}"):
        # The last byte completes the last character: nothing is left for the end.
        assert pieces[-1] == ""


def test_half_characters_are_told_at_the_end() -> None:
    ids = BYTES.encode("a\u4f60")[:-1]
    pieces, _ = spelled(BYTES, BYTES.encode("x"), ids)
    assert pieces == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    "prompt, new", [([2, 3], [4, 5, 6]), ([1], [4, 5]), ([1, 2], []), ([2], [1, 3, 7, 8, 9, 4])]
)
def test_spaces_are_those_of_the_whole_text(
    tmp_path: Path, prompt: list[int], new: list[int]
) -> None:
    tokenizer = spaced(tmp_path / "spaced")
    _, spelling = spelled(tokenizer, prompt, new)
    assert spelling.text == decode_new(tokenizer, prompt, new)


@pytest.mark.parametrize(
    "text, stops, pieces",
    [
        # Letters of a stop are held until it is another text after all.
        ("ab.c", ("..",), ["a", "b", "", ".c", ""]),
        ("ab..c", ("..",), ["a", "b", "", ""]),
        ("ab.", ("..",), ["a", "b", "", "."]),
        ("x\n\ny", ("\n\n",), ["x", "", ""]),
        # Of several the one that ends first; a stop may begin with the text.
        ("one two", ("two", "ne"), ["o", "", ""]),
        ("END", ("END",), ["", "", ""]),
        ("aab", ("ab",), ["", "a", ""]),
    ],
)
def test_stops(text: str, stops: tuple[str, ...], pieces: list[str]) -> None:
    found, spelling = spelled(BYTES, BYTES.encode("p"), BYTES.encode(text), stops)
    assert found == pieces
    assert spelling.stopped == any(stop in text for stop in stops)


@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
)
def test_text_ends_where_the_first_stop_begins(text: str, stops: list[str]) -> None:
    """Of those that end at the same letter the longest, which begins first."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    expected = text
    if ends:
        read = text[: min(ends)]
        expected = read[: min(read.find(stop) for stop in stops if stop in read)]
    _, spelling = spelled(BYTES, [], BYTES.encode(text), tuple(stops))
    assert spelling.text == expected
    assert spelling.stopped == bool(ends)
