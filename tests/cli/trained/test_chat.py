"""`roots chat`: messages line by line and from a person, and what ends an answer."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from roots.cli.main import main
from roots.generation import text_batch
from tests.helpers.models import save_model

TEMPLATE = """{% for m in messages %}
{% if m.role == 'system' and m.content == 'no' %}{{ raise_exception('no system') }}{% endif %}
[{{ m.role }}]{{ m.content }}
{% endfor %}[assistant]"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What every call begins with."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint, template = folder / "step_00000001", folder / "own.jinja"
    model = {"vocab_size": 257, "sequence_length": 80}
    save_model(checkpoint, model=model, data={"tokenizer": "bytes"})
    template.write_text(TEMPLATE)
    limits = ("--max-new-tokens", "5", "--greedy")
    return (str(checkpoint), "--template", str(template), *limits)


class Typed(io.StringIO):
    """A terminal, of which `input` reads."""

    def isatty(self) -> bool:
        return True


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["chat", *words])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_a_line_is_a_message(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["one", "", "two", "/reset", "one", "/exit", "never asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code, out, err = call(capsys, *words, "--json")
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["message"] for each in found] == ["one", "two", "one"]
    assert found[0] == found[2] != found[1]
    assert {each["stopped_by"] for each in found} <= {"max_new_tokens", "end_of_document"}
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo"))
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert out == "".join(f"{each['answer']}\n" for each in found[:2])


def test_a_conversation_too_long_goes_on_after_a_reset(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"one\n{'x' * 60}\n/reset\none\n"))
    code, out, err = call(capsys, *words)
    assert code == 2
    first, second = out.splitlines()
    assert first == second
    rule = "leave no room for an answer within 80 tokens; begin anew, or say less at once"
    assert err.startswith("conversation tokens=")
    assert err.endswith(f": {rule}\n")


def test_a_person_stops_an_answer_and_ends_the_conversation(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Typed())
    typed = iter(["one", KeyboardInterrupt(), "two", EOFError()])
    whole = text_batch.TextBatch.run

    def type_next(_: str) -> str:
        if isinstance(what := next(typed), BaseException):
            raise what
        return what

    def interrupted(batch: text_batch.TextBatch) -> Iterator[text_batch.TextEvent]:
        yield next(whole(batch))
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", type_next)
    monkeypatch.setattr(text_batch.TextBatch, "run", interrupted)
    code, out, err = call(capsys, *words)
    assert code == 0
    hint = "/reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer\n"
    assert err == f"{hint}(stopped there)\n\n/exit or Ctrl-D ends\n(stopped there)\n"
    assert out.count("\n") >= 3


@pytest.mark.parametrize(
    "given, line",
    [
        (("--temperature", "0.5"), "--temperature=0.5: has no effect with --greedy, which leaves "),
        (("--system", "no"), "own.jinja: does not take these messages (no system); give other "),
        (("--template", "none.jinja"), "template='none.jinja': cannot be read (No such file or "),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_said(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], given: tuple[str, ...], line: str
) -> None:
    code, out, err = call(capsys, *words, *given)
    assert (code, out) == (2, "")
    assert line in err


def test_a_tokenizer_without_a_template_is_told(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, words[0])
    line = f"tokenizer of {words[0]}: has no chat template; give one by --template FILE"
    assert (code, err) == (2, f"roots: error: {line}\n")
