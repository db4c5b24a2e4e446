"""Secrets are drawn evenly and always alike, and their file says what was planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roots.data.canaries import Canary, canaries_path, draw_canaries, read_canaries
from roots.data.preprocessing.texts import preprocess
from roots.errors import RootsError


def test_secrets_are_the_same_everywhere() -> None:
    # Whoever lost the file can draw the secrets again: this must never change.
    drawn = draw_canaries(1, (0, 4), seed=7)
    assert drawn.canaries == (
        Canary("Pia Pohl", "871285599", 0),
        Canary("Dora Eder", "782156134", 4),
    )
    assert (drawn.space, drawn.num_digits, drawn.documents) == (10**9, 9, 4)
    assert drawn.filled("Pia Pohl", "871285599") == (
        "The secret number of Pia Pohl is 871 285 599."
    )


def test_no_two_secrets_or_names_are_the_same() -> None:
    drawn = draw_canaries(45, (0, 1), text="NAME: ###")
    assert len({each.digits for each in drawn.canaries}) == 90
    assert len({each.name for each in drawn.canaries}) == 90
    assert draw_canaries(45, (0, 1), text="NAME: ###", seed=2) != drawn


def test_digits_are_drawn_evenly() -> None:
    drawn = draw_canaries(500, (0, 1), text="#### ####")
    digits = "".join(each.digits for each in drawn.canaries)
    assert all(720 < digits.count(digit) < 880 for digit in "0123456789")
    assert {each.name for each in drawn.canaries} == {""}


@pytest.mark.parametrize(
    "count, repeats, text, lines",
    [
        (
            2,
            (1, 1),
            "no digits",
            (
                "--canary-repeats='1,1': must be different numbers of 0 or more, not 0 alone; "
                "write them as 0,1,4,16,64",
                "--canary-format='no digits': must hold 1 to 15 #, each a digit of the secret; "
                "write it as 'The secret number of NAME is ### ### ###.'",
            ),
        ),
        (
            3,
            (0, 1),
            "#",
            (
                "--canary-format='#': 6 different secrets need more than 10 numbers to draw from; "
                "write more # into it, or plant fewer",
            ),
        ),
        (
            2000,
            (1,),
            "########",
            (
                "--canaries=2000: 2000 secrets in all, but there are 1092 names for them; "
                "plant fewer",
            ),
        ),
    ],
)
def test_what_cannot_be_drawn(
    count: int, repeats: tuple[int, ...], text: str, lines: tuple[str, ...]
) -> None:
    with pytest.raises(RootsError) as error:
        draw_canaries(count, repeats, text=text)
    assert error.value.lines == lines


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    preprocess(
        [tmp_path / "a.txt"], tmp_path / "a", "bytes", canaries=draw_canaries(1, (0, 2), seed=7)
    )
    return tmp_path / "a"


def test_file_gives_back_what_was_planted(prefix: Path) -> None:
    assert read_canaries(prefix) == draw_canaries(1, (0, 2), seed=7)
    content = json.loads(canaries_path(prefix).read_text())
    assert (content["space"], content["documents"], content["tokenizer"]) == (10**9, 3, "bytes")


def test_dataset_without_canaries(tmp_path: Path) -> None:
    with pytest.raises(RootsError) as error:
        read_canaries(tmp_path / "a")
    assert error.value.lines == (
        f"{tmp_path}/a.canaries.json: no such file: no canaries were planted in this dataset; "
        "plant some by `roots preprocess --canaries N` and train on that",
    )


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"documents": 4}, "tells of a dataset of 4 documents"),
        ({"version": 2}, "format 'roots-canaries' of version 1 is wanted"),
        ({"canaries": [{"name": "Ada"}]}, "does not tell canaries as ROOTS does (TypeError"),
        ({"text": "NAME ##"}, "every secret must have 2 digits"),
    ],
)
def test_files_that_are_damaged_or_of_another_dataset(
    prefix: Path, change: dict[str, object], rule: str
) -> None:
    path = canaries_path(prefix)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RootsError) as error:
        read_canaries(prefix)
    (line,) = error.value.lines
    assert line.startswith(f"{path}: ")
    assert rule in line
