"""`roots chat`: a conversation with a trained model, on a terminal or line by line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roots.cli.options import generation as options_of
from roots.cli.options.generation import OF_CHANCE, generation_options
from roots.cli.options.ranks import refuse_ranks
from roots.cli.options.trained import Checkpoint, TokenizerFolder

if TYPE_CHECKING:
    from roots.generation.conversation import Conversation

# What begins a line that is no message.
RESET, EXIT = "/reset", "/exit"


def chat(
    context: typer.Context,
    checkpoint: Checkpoint,
    *,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    template: Annotated[
        Path | None,
        typer.Option(help="File of a chat template; default: that of the tokenizer."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--context", min=2, help="Tokens of a conversation; default: as in training."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 512,
    greedy: options_of.Greedy = False,
    temperature: options_of.Temperature = 1.0,
    top_k: options_of.TopK = 0,
    top_p: options_of.TopP = 1.0,
    min_p: options_of.MinP = 0.0,
    repetition_penalty: options_of.RepetitionPenalty = 1.0,
    frequency_penalty: options_of.FrequencyPenalty = 0.0,
    presence_penalty: options_of.PresencePenalty = 0.0,
    stop: options_of.Stop = None,
    seed: options_of.Seed = 1234,
    tokenizer: TokenizerFolder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="An object a line for each answer, instead of text.")
    ] = False,
) -> None:
    """Talk with the decoder in CHECKPOINT: a line is a message, and its answer is shown as written.

    `/reset` begins anew, `/exit` or Ctrl-D ends it, and Ctrl-C stops an answer.
    """
    from roots.cli.options.useless import refuse_useless

    if greedy:
        rule = "has no effect with --greedy, which leaves nothing to chance"
        refuse_useless(context, OF_CHANCE, rule, "leave it out, or leave out --greedy")
    refuse_ranks("talks")
    conversation = _begin(checkpoint, context.params)
    heard = _Heard(as_json, sys.stdin.isatty())
    for line in heard.lines():
        if line == EXIT:
            break
        if line == RESET:
            conversation.reset()
        elif line.strip():
            heard.tell(conversation, line)
    if heard.failed:
        raise typer.Exit(2)


def _begin(checkpoint: str, given: dict[str, Any]) -> Conversation:
    """Nothing said yet. Raises RootsError for a model or a template that takes no messages."""
    from roots.checkpoint import resolve_checkpoint
    from roots.device import current_device
    from roots.errors import RootsError, problem
    from roots.generation.chat import find_template, template_in_file
    from roots.generation.conversation import Conversation
    from roots.generation.generate import check_tokenizer
    from roots.generation.load import load_network, tokenizer_of
    from roots.serving.settings import context_of

    options = generation_options(given)
    file, folder = given["template"], given["tokenizer"]
    model = load_network(resolve_checkpoint(checkpoint), current_device())
    words = tokenizer_of(model, folder)
    check_tokenizer(words, model.config.model)
    if file is None:
        template = find_template(model, folder)
    else:
        template = template_in_file(file, model, folder)
    if template is None:
        rule, fix = "has no chat template", "give one by --template FILE"
        raise RootsError(problem(f"tokenizer of {model.checkpoint}", folder, rule, fix))
    conversation = Conversation(
        network=model.network,
        tokenizer=words,
        template=template,
        options=options,
        context=context_of(model.config.model, given["tokens"]),
        system=given["system"],
    )
    conversation.check()
    return conversation


class _Heard:
    """Where messages come from, and where answers go to.

    failed: whether a message of a file got no answer; on a terminal it was seen
    """

    def __init__(self, as_json: bool, on_terminal: bool) -> None:
        self._as_json = as_json
        self._on_terminal = on_terminal
        self.failed = False

    def lines(self) -> Iterator[str]:
        """Lines of standard input until its end, edited by the person where there is one."""
        if not self._on_terminal:
            yield from self._lines_of_file()
            return
        # What gives `input` its editing and the lines before.
        import readline  # noqa: F401

        typer.echo(f"{RESET} begins anew, {EXIT} or Ctrl-D ends, Ctrl-C stops an answer", err=True)
        while True:
            try:
                yield input("> ")
            except EOFError:
                typer.echo()
                return
            except KeyboardInterrupt:
                typer.echo(f"\n{EXIT} or Ctrl-D ends", err=True)

    def _lines_of_file(self) -> Iterator[str]:
        from roots.errors import RootsError, problem

        try:
            for line in sys.stdin:
                yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            rule = f"is no text in {error.encoding} ({error.reason} at byte {error.start})"
            line = problem("standard input", None, rule, "give messages as text, one a line")
            raise RootsError(line) from None

    def tell(self, conversation: Conversation, message: str) -> None:
        """Show the answer to a message, or why there is none."""
        from roots.errors import RootsError

        pieces = []
        answer = conversation.answer(message)
        try:
            for piece in answer:
                pieces.append(piece)
                if not self._as_json:
                    typer.echo(piece, nl=False)
        except RootsError as error:
            for line in error.lines:
                typer.echo(f"{line}{f' ({RESET})' if self._on_terminal else ''}", err=True)
            self.failed = not self._on_terminal
            return
        except KeyboardInterrupt:
            if not self._on_terminal:
                raise
        finally:
            answer.close()
        text, stopped_by = "".join(pieces), conversation.stopped_by
        if self._as_json:
            record = {"message": message, "answer": text, "stopped_by": stopped_by}
            typer.echo(json.dumps(record))
            return
        typer.echo()
        if self._on_terminal and stopped_by in ("max_new_tokens", None):
            typer.echo("(stopped there)", err=True)
