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
from typing import Any, ClassVar, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from roots.errors import RootsError, problem
from roots.exchange.hf.tokenizer_files import find_tokenizer
from roots.generation.load import LoadedModel, LoadedNetwork
from roots.tokenizer.special_tokens import SPECIAL_MAP_NAME, TOKENIZER_CONFIG_NAME, read_json
from roots.tokenizer.tokenizer import Tokenizer

TEMPLATE_NAME = "chat_template.jinja"
Message = Mapping[str, Any]
# What a program that is wrong may raise, besides Jinja's own.
_FAULTS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
# Names of what a model thought before its answer; templates read any of the first two.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
# Behind a message that is to be continued; what a template trims is its space.
_HERE = "<the text goes on here> "


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text, the file it stands in, and the special tokens that it may name."""

    text: str
    source: Path
    tokens: Mapping[str, str]

    @classmethod
    def of(cls, folder: str | Path) -> ChatTemplate:
        """As `find`. Raises RootsError where there is none, too."""
        found = cls.find(folder)
        if found is None:
            rule = "has no chat template"
            fix = f"put {TEMPLATE_NAME} beside its tokenizer.json"
            raise RootsError(problem("tokenizer", str(folder), rule, fix))
        return found

    @classmethod
    def find(cls, folder: str | Path) -> ChatTemplate | None:
        """The template of a tokenizer, None without one; of several the one called `default`.

        folder: of the tokenizer, or its tokenizer.json, or `bytes`, which has none
        Raises RootsError for a file that cannot be read, and for one that is no template.
        """
        if str(folder) == "bytes":
            return None
        where = _folder_of(folder)
        path = where / TEMPLATE_NAME
        if path.is_file():
            return cls.in_file(path, folder)
        path = where / TOKENIZER_CONFIG_NAME
        found = read_json(path).get("chat_template")
        if isinstance(found, list):
            named = {each["name"]: each["template"] for each in found if _is_named(each)}
            if "default" not in named:
                rule = f"has none called default among {', '.join(named)}"
                fix = f"put the one that is meant into {TEMPLATE_NAME} beside it"
                raise RootsError(problem(f"{path} chat_template", None, rule, fix))
            found = named["default"]
        return cls(found, path, _tokens(where)).checked() if isinstance(found, str) else None

    @classmethod
    def in_file(cls, path: Path, folder: str | Path) -> ChatTemplate:
        """The template in a file, with the special tokens of the tokenizer in `folder`.

        Raises RootsError for a file that cannot be read, and for one that is no template.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is no UTF-8"
            rule, fix = f"cannot be read ({reason})", "give the file of a chat template"
            raise RootsError(problem("template", str(path), rule, fix)) from error
        tokens = {} if str(folder) == "bytes" else _tokens(_folder_of(folder))
        return cls(text, path, tokens).checked()

    def checked(self) -> ChatTemplate:
        """Itself. Raises RootsError where the text is no template."""
        try:
            _ = self._compiled
        except TemplateSyntaxError as error:
            where = f"{self.source} line {error.lineno}"
            rule = f"is no chat template there ({_one_line(error)})"
            raise RootsError(problem(where, None, rule, "correct it")) from error
        return self

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Answers, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(
            raise_exception=_refuse, strftime_now=_now, namespace=_PlainNamespace
        )
        return environment.from_string(self.text)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        continue_last: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a chat, as apply_chat_template of transformers writes it.

        messages:              JSON objects, mostly of `role` and `content`
        add_generation_prompt: end with what stands before an answer
        continue_last:         end within the last message, which is to be continued; instead
        variables:             others that the template reads, such as `tools`
        Raises RootsError for no messages, and where the template refuses these.
        """
        given = [_plain(message) for message in messages]
        if not given:
            rule, fix = "are none, and nothing can be answered", "give at least one"
            raise RootsError(problem("messages", None, rule, fix))
        last = given[-1].get("content")
        if continue_last:
            add_generation_prompt = False
            if not isinstance(last, str):
                rule = "has no text in its content that could be continued"
                fix = "let the last message be one of text"
                raise RootsError(problem(f"message {len(given)}", None, rule, fix))
            given[-1]["content"] = last + _HERE
        everything = {"tools": None, "documents": None, **self.tokens, **(variables or {})}
        everything |= {"messages": given, "add_generation_prompt": add_generation_prompt}
        try:
            text = self._compiled.render(everything)
        except (TemplateError, *_FAULTS) as error:
            rule = f"does not take these messages ({_one_line(error)})"
            fix = "give other roles or another order, or correct the template"
            raise RootsError(problem(str(self.source), None, rule, fix)) from error
        return self._up_to_here(text) if continue_last else text

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], **how: Any
    ) -> tuple[int, ...]:
        """The ids of `render(messages, **how)`.

        Names of special tokens are these tokens, and what begins a text stands there only where the
        template writes it, as in transformers.
        """
        return tuple(tokenizer.encode(self.render(messages, **how), special_tokens=True))

    def _up_to_here(self, text: str) -> str:
        """`text` up to the mark in it; where spaces were trimmed, without those before it."""
        mark = _HERE.rstrip()
        if mark not in text:
            rule = "leaves out the end of the last message, which was to be continued"
            raise RootsError(problem(str(self.source), None, rule, "ask for an answer to it"))
        end = text.rindex(mark)
        return text[:end] if text.startswith(_HERE, end) else text[:end].rstrip()


def template_of(model: LoadedModel | LoadedNetwork, tokenizer: str | None) -> ChatTemplate:
    """The template of the tokenizer given, else of the model's. Raises RootsError without one."""
    return ChatTemplate.of(_tokenizer_folder(model, tokenizer))


def find_template(model: LoadedModel | LoadedNetwork, tokenizer: str | None) -> ChatTemplate | None:
    """As `template_of`, None where there is none."""
    return ChatTemplate.find(_tokenizer_folder(model, tokenizer))


def template_in_file(
    path: Path, model: LoadedModel | LoadedNetwork, tokenizer: str | None
) -> ChatTemplate:
    """The template in a file, for the tokenizer given, else for the model's."""
    return ChatTemplate.in_file(path, _tokenizer_folder(model, tokenizer))


def _tokenizer_folder(model: LoadedModel | LoadedNetwork, tokenizer: str | None) -> str:
    where, _ = find_tokenizer(model.config, model.checkpoint, tokenizer)
    # Without a tokenizer nothing can be encoded, which is told where it is loaded.
    return "bytes" if where is None else where


class _Answers(Extension):
    """`{% generation %}`, around what a model has written: its text, in a scope of its own."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Macro) -> str:
        return caller()


class _PlainNamespace(Namespace):
    """`namespace()` without names by which Python's own are reached, such as `__class__`."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Any name may be given, `self` too.
        self, *values = args
        content = dict(*values, **kwargs)
        for name in content:
            _refuse_hidden(name)
        Namespace.__init__(self, content)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        super().__setitem__(name, value)


def _refuse_hidden(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace holds no name that begins with _, such as {name}")


def _plain(message: Message) -> dict[str, Any]:
    """A copy of JSON's own types, without null, and with what was thought under all its names."""
    values = {key: value for key, value in message.items() if value is not None}
    try:
        copy: dict[str, Any] = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        rule = f"is not of texts, numbers, lists and objects alone ({_one_line(error)})"
        raise RootsError(problem("message", None, rule, "give what JSON can hold")) from error
    thought = next((copy[name] for name in _THOUGHTS if name in copy), None)
    if thought is not None:
        copy = {"thinking": thought, **copy, "reasoning_content": thought}
    return copy


def _folder_of(tokenizer: str | Path) -> Path:
    path = Path(tokenizer)
    return path.parent if path.is_file() else path


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and {"name", "template"} <= entry.keys()


def _tokens(folder: Path) -> dict[str, str]:
    """The special tokens by their names, such as bos_token."""
    config = read_json(folder / TOKENIZER_CONFIG_NAME)
    named = {**read_json(folder / SPECIAL_MAP_NAME), **config}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in named.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As text that is read by a model, not by a browser: nothing is escaped for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
