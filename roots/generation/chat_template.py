"""The chat template of a tokenizer: from messages to the text that a model was trained to answer.

It lies beside tokenizer.json, as chat_template.jinja or as `chat_template` of
tokenizer_config.json, and is a program of strangers: it runs in Jinja's sandbox, with the blocks,
filters and functions that templates of transformers may use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from roots.errors import RootsError, problem
from roots.tokenizer.special_tokens import SPECIAL_MAP_NAME, TOKENIZER_CONFIG_NAME, read_json

TEMPLATE_NAME = "chat_template.jinja"
Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text, the file it stands in, and the special tokens that it may name."""

    text: str
    source: Path
    tokens: Mapping[str, str]

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        return environment.from_string(self.text)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The text of a chat. Messages have `role` and `content`.

        answer: end with what stands before the next answer; else with the last message, unfinished
        Raises RootsError where the template cannot be read, or refuses these messages.
        """
        try:
            text = self._compiled.render(
                messages=list(messages), add_generation_prompt=answer, tools=None, **self.tokens
            )
        except TemplateError as error:
            rule = f"does not take these messages ({' '.join(str(error).split())})"
            fix = "give other roles or another order, or correct the template"
            raise RootsError(problem(str(self.source), None, rule, fix)) from error
        if answer or not messages:
            return text
        last = str(messages[-1]["content"]).strip()
        return text[: text.rindex(last) + len(last)] if last in text else text


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template that lies beside a tokenizer in `folder`; None where there is none.

    Of several the one called `default`. Raises RootsError where there are others alone.
    """
    config = read_json(folder / TOKENIZER_CONFIG_NAME)
    path = folder / TEMPLATE_NAME
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), path, _tokens(folder, config))
    path = folder / TOKENIZER_CONFIG_NAME
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found}
        if "default" not in named:
            rule = f"has none called default among {', '.join(map(str, named))}"
            fix = f"put the one that is meant into {TEMPLATE_NAME} beside it"
            raise RootsError(problem(f"{path} chat_template", None, rule, fix))
        found = named["default"]
    return ChatTemplate(found, path, _tokens(folder, config)) if isinstance(found, str) else None


def _tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by their names, such as bos_token."""
    named = {**read_json(folder / SPECIAL_MAP_NAME), **config}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in named.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _to_json(value: Any, indent: int | None = None) -> str:
    """As text that is read by a model, not by a browser: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
