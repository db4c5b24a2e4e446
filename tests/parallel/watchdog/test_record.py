"""What ranks tell of themselves: spelled ranks, and lines that come back as they were."""

from __future__ import annotations

import pytest

from roots.parallel.watchdog.record import (
    Call,
    Goodbye,
    Marks,
    Message,
    Question,
    Record,
    Verdict,
    from_line,
    read_ranks,
    spell,
    to_line,
)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ((3,), "3"),
        ((2, 3), "2,3"),
        ((0, 1, 2, 3), "0-3"),
        ((1, 5, 9), "1-9:4"),
        ((0, 1, 3), "0,1,3"),
        (tuple(range(0, 512, 2)), "0-510:2"),
    ],
)
def test_ranks_are_spelled_in_few_characters(ranks: tuple[int, ...], text: str) -> None:
    assert spell(ranks) == text
    assert read_ranks(text) == ranks


CALL = Call("7", "all_reduce", 12, "0-6:2")
RECORD = Record(
    4, "a", 9, "data", True, 0.5, 1.5, True, "x", CALL, (CALL,), sent={2: 5}, received={3: 1}
)


@pytest.mark.parametrize(
    "message",
    [
        RECORD,
        Record(0, "a", 0, "restart", False),
        Goodbye(1, 2, "ValueError: \u00e4"),
        Verdict(1, "died", "line", 7),
        Question(),
    ],
)
def test_a_message_travels_as_one_line(message: Message) -> None:
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert from_line(line) == message


@pytest.mark.parametrize("line", [b"", b"GET / HTTP/1.1", b"{}", b'{"Popen": {}}', b"[1]", b"7"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        from_line(line)


def test_calls_are_described_with_their_ranks_or_their_peer() -> None:
    assert CALL.describe() == "all_reduce number 12 over ranks 0-6:2"
    assert Call("", "recv", 2, "1").describe() == "recv number 2 from rank 1"
    assert Call("", "send", 2, "1").describe() == "send number 2 to rank 1"
    assert RECORD.describe() == "all_reduce number 12 over ranks 0-6:2, in its data after step 9"


def test_the_same_phase_again_is_no_progress() -> None:
    marks = Marks()
    marks.begin(5)
    before = marks.count
    marks.enter("data")
    marks.enter("data")
    assert marks.count == before + 1
    assert not marks.begun
    marks.done(6)
    assert (marks.step, marks.begun, marks.count) == (6, True, before + 2)
