"""Turns of a conversation: each answer is that to all that was said before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.device import Device
from roots.errors import RootsError
from roots.generation.chat import ChatTemplate
from roots.generation.conversation import Conversation
from roots.generation.load import load_network
from roots.generation.options import GenerationOptions
from roots.generation.sampling import SamplingOptions
from roots.generation.texts import sample_texts
from roots.tokenizer.tokenizer import ByteTokenizer
from tests.helpers.models import save_model

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
GREEDY = GenerationOptions(max_new_tokens=6, sampling=SamplingOptions(greedy=True))


def begin(folder: Path, options: GenerationOptions = GREEDY, **given: Any) -> Conversation:
    model = {"vocab_size": 257, "sequence_length": 128}
    save_model(folder / "model", model=model, data={"tokenizer": "bytes"})
    network = load_network(folder / "model", Device("cpu", 0)).network
    template = ChatTemplate(TEMPLATE, Path("template"), {})
    return Conversation(network, ByteTokenizer(), template, options, **{"context": 128, **given})


def test_answers_are_continuations_of_all_that_was_said(tmp_path: Path) -> None:
    talk = begin(tmp_path, system="be")
    talk.check()
    said = "[system]be"
    for message in ("one", "two"):
        said += f"[user]{message}[assistant]"
        (expected,) = sample_texts(talk.network, talk.tokenizer, [said], GREEDY)
        answer = "".join(talk.answer(message))
        assert (answer, talk.stopped_by) == (expected.text, "max_new_tokens")
        said += answer
    assert [each["role"] for each in talk.messages] == ["user", "assistant"] * 2
    talk.reset()
    (expected,) = sample_texts(
        talk.network, talk.tokenizer, ["[system]be[user]one[assistant]"], GREEDY
    )
    assert "".join(talk.answer("one")) == expected.text


def test_turns_draw_from_seeds_of_their_own(tmp_path: Path) -> None:
    options = GenerationOptions(max_new_tokens=6)
    talk = begin(tmp_path, options)
    first, second = "".join(talk.answer("one")), "".join(talk.answer("one"))
    again = begin(tmp_path / "again", options)
    assert ["".join(again.answer("one")) for _ in range(2)] == [first, second]
    assert first != second


def test_answer_that_is_not_heard_to_its_end_is_kept_as_far_as_it_is_written(
    tmp_path: Path,
) -> None:
    talk = begin(tmp_path)
    answer = talk.answer("one")
    heard = next(answer) + next(answer)
    answer.close()
    assert talk.stopped_by is None
    assert talk.messages == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": heard},
    ]


def test_conversation_that_is_too_long_is_told_and_goes_on_after_a_reset(tmp_path: Path) -> None:
    talk = begin(tmp_path, context=40)
    "".join(talk.answer("one"))
    kept = list(talk.messages)
    with pytest.raises(RootsError) as caught:
        "".join(talk.answer("a longer message"))
    length = len(f"[user]one[assistant]{kept[1]['content']}[user]a longer message[assistant]")
    rule = "leave no room for an answer within 40 tokens; begin anew, or say less at once"
    assert caught.value.lines[0].endswith(rule)
    assert caught.value.lines[0].startswith("conversation tokens=")
    assert length > 40
    assert talk.messages == kept
    talk.reset()
    # What fits is written, and no more: 33 tokens of the prompt leave 7.
    talk.options = GenerationOptions(max_new_tokens=100, sampling=SamplingOptions(greedy=True))
    "".join(talk.answer("a longer message"))
    assert talk.stopped_by in ("max_new_tokens", "end_of_document")
