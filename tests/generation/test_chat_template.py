"""Chats as transformers renders them, by the template that lies beside a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roots.errors import RootsError
from roots.generation.chat_template import read_chat_template
from tests.helpers.words import FILES, write_words

TEMPLATE = """{%- if messages[0].role == 'robot' %}
    {{- raise_exception('no robots') }}
{%- endif %}
{{ bos_token }}
{% for message in messages %}
{% if message.content == '' %}{% continue %}{% endif %}
    {{- '<turn>' + message.role + ': ' + message.content | trim + ' ' + {'\u00e9': 1} | tojson }}
{% endfor %}
{% if add_generation_prompt %}<turn>assistant:{% endif %}
"""
CHAT = [
    {"role": "user", "content": " hello there "},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": "well"},
]


def write(folder: Path, **config: Any) -> Path:
    files = {"tokenizer_config.json": {**FILES["tokenizer_config.json"], **config}}
    return write_words(folder, files=files)


@pytest.mark.parametrize("answer", [True, False])
def test_chat_is_rendered_as_by_transformers(tmp_path: Path, answer: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    write(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    expected = theirs.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=answer, continue_final_message=not answer
    )
    found = read_chat_template(tmp_path)
    assert found is not None
    assert found.render(CHAT, answer=answer) == expected
    assert "<bos>" in expected


def test_template_stands_in_the_config_too_alone_or_among_named_ones(tmp_path: Path) -> None:
    assert read_chat_template(write(tmp_path / "none")) is None
    alone = read_chat_template(write(tmp_path / "alone", chat_template="{{ messages | length }}"))
    assert alone is not None
    assert alone.render(CHAT) == "3"
    named = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    chosen = read_chat_template(write(tmp_path / "named", chat_template=named))
    assert chosen is not None
    assert chosen.render(CHAT) == "b"
    folder = write(tmp_path / "other", chat_template=named[:1])
    with pytest.raises(RootsError) as caught:
        read_chat_template(folder)
    fix = "put the one that is meant into chat_template.jinja beside it"
    where = f"{folder / 'tokenizer_config.json'} chat_template"
    assert caught.value.lines == (f"{where}: has none called default among tools; {fix}",)


def test_what_a_template_refuses_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path)
    path = folder / "chat_template.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    template = read_chat_template(folder)
    assert template is not None
    with pytest.raises(RootsError) as caught:
        template.render([{"role": "robot", "content": "x"}])
    fix = "give other roles or another order, or correct the template"
    assert caught.value.lines == (f"{path}: does not take these messages (no robots); {fix}",)
    path.write_text("{% for %}", encoding="utf-8")
    broken = read_chat_template(folder)
    assert broken is not None
    with pytest.raises(RootsError, match="does not take these messages"):
        broken.render(CHAT)


def test_a_template_reaches_nothing_of_this_process(tmp_path: Path) -> None:
    folder = write(tmp_path)
    mark = tmp_path / "mark"
    code = f"{{{{ messages.__class__.__base__.__subclasses__() }}}}{json.dumps(str(mark))}"
    (folder / "chat_template.jinja").write_text(code, encoding="utf-8")
    template = read_chat_template(folder)
    assert template is not None
    with pytest.raises(RootsError, match="unsafe"):
        template.render(CHAT)
