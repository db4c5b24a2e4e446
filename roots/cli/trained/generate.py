"""`roots generate`: continue prompts with a trained model, on one process or any layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from roots.cli.options import generation as options_of
from roots.cli.options.generation import OF_CHANCE, generation_options
from roots.cli.options.ranks import told_once
from roots.cli.options.trained import AsJson, Checkpoint, NamesOfTokens, TokenizerFolder
from roots.cli.trained.processes import on_processes

if TYPE_CHECKING:
    from roots.device import Device
    from roots.generation.beam import BeamOptions
    from roots.generation.load import LoadedModel, LoadedNetwork
    from roots.generation.options import GenerationOptions
    from roots.generation.text_batch import TextEvent
    from roots.generation.texts import WrittenText
    from roots.parallel.mesh import Mesh
    from roots.tokenizer.tokenizer import Tokenizer

# Parameters that only writing token by token knows.
OF_SAMPLING = (
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "log_probabilities",
    "stream",
)
# Prompts whose texts are kept before the next are begun.
PROMPTS_AT_ONCE = 256


def generate(
    context: typer.Context,
    checkpoint: Checkpoint,
    *,
    prompt: options_of.Prompts = None,
    file: options_of.PromptFile = None,
    to: options_of.Results = None,
    max_new_tokens: options_of.MaxNewTokens = 64,
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
    beams: options_of.Beams = 0,
    length_penalty: options_of.LengthPenalty = 1.0,
    log_probabilities: options_of.LogProbabilities = None,
    stream: options_of.Stream = False,
    special_tokens: NamesOfTokens = True,
    tokenizer: TokenizerFolder = None,
    tensor: options_of.Tensor = None,
    pipeline: options_of.Stages = None,
    expert: options_of.Experts = None,
    as_json: AsJson = False,
) -> None:
    """Print what the model in CHECKPOINT writes after each prompt, or for each source.

    `launch/local.sh N generate CHECKPOINT ...` does it on N processes.
    """
    from roots.checkpoint import read_config, resolve_checkpoint
    from roots.generation.prompt_files import read_prompts

    with told_once():
        # Before the weights, which may take long to read.
        found = resolve_checkpoint(checkpoint)
        architecture = read_config(found).model.architecture
        _refuse_what_does_nothing(context, architecture)
        wish = Wish(context.params, found, architecture)
        prompts = (prompt or []) if file is None else read_prompts(file)
    _write(wish, prompts)


class Wish:
    """What the command was asked for. Raises RootsError with what cannot be."""

    def __init__(self, given: dict[str, Any], checkpoint: Path, architecture: str) -> None:
        """`given`: the parameters by their names."""
        from roots.generation.beam import BeamOptions
        from roots.generation.layout import Degrees

        self.checkpoint = checkpoint
        self.tokenizer: str | None = given["tokenizer"]
        self.special_tokens: bool = given["special_tokens"]
        self.to: Path | None = given["to"]
        self.as_json: bool = given["as_json"]
        self.streams: bool = given["stream"]
        self.shows_prompt = architecture != "encoder_decoder"
        self.searches = bool(given["beams"]) or architecture == "encoder_decoder"
        # Beams are the work of one stage.
        stages = 1 if self.searches else given["pipeline"]
        self.degrees = Degrees(tensor=given["tensor"], pipeline=stages, expert=given["expert"])
        self.options: GenerationOptions | BeamOptions
        if self.searches:
            self.options = BeamOptions(
                num_beams=max(given["beams"], 1),
                length_penalty=given["length_penalty"],
                max_new_tokens=given["max_new_tokens"],
            )
        else:
            self.options = generation_options(given)


def _write(wish: Wish, prompts: Sequence[str]) -> None:
    """Write all texts; show or keep them on the first process."""
    from roots.generation.load import load_model, load_network, tokenizer_of
    from roots.generation.prompt_files import ResultFile
    from roots.parallel.shared_errors import together

    def load(device: Device, mesh: Mesh) -> tuple[LoadedModel | LoadedNetwork, Tokenizer]:
        model = (load_model if wish.searches else load_network)(wish.checkpoint, device, mesh)
        return model, tokenizer_of(model, wish.tokenizer)

    kept = None if wish.to is None else ResultFile(wish.to, prompts)
    begin = 0 if kept is None else kept.done
    texts: list[WrittenText] = []
    with on_processes(wish.checkpoint, wish.degrees, load) as ((model, words), mesh):
        speaks = mesh.rank == 0
        hear = _told if wish.streams and speaks else None
        for first in range(begin, len(prompts), PROMPTS_AT_ONCE):
            some = Some(prompts[first : first + PROMPTS_AT_ONCE], first)
            written = together(mesh.world, partial(_texts, wish, model, words, some, hear))
            if kept is not None and speaks:
                kept.add([_record(text) for text in written])
            texts += written
        if speaks:
            _show(wish, texts, begin)


class Some(NamedTuple):
    """Some of the prompts, and the number of the first."""

    prompts: Sequence[str]
    first: int


def _texts(
    wish: Wish,
    model: LoadedModel | LoadedNetwork,
    words: Tokenizer,
    some: Some,
    hear: Callable[[int, TextEvent], None] | None,
) -> list[WrittenText]:
    from roots.generation.generate import with_seed_of
    from roots.generation.load import LoadedModel
    from roots.generation.options import GenerationOptions
    from roots.generation.texts import sample_texts, search_texts

    given = {"special_tokens": wish.special_tokens}
    if isinstance(model, LoadedModel):
        assert not isinstance(wish.options, GenerationOptions), "beams take options of their own"
        return search_texts(model, words, some.prompts, wish.options, **given)
    assert isinstance(wish.options, GenerationOptions), "stages write token by token"
    options = with_seed_of(wish.options, some.first)
    return sample_texts(model.network, words, some.prompts, options, hear=hear, **given)


def _told(_: int, event: TextEvent) -> None:
    typer.echo(event.text, nl=event.stopped_by is not None)


def _refuse_what_does_nothing(context: typer.Context, architecture: str) -> None:
    """Raise RootsError for options that the way of writing has no use for, and for a lack of
    prompts."""
    from roots.cli.options.useless import useless_options
    from roots.errors import RootsError

    given = context.params
    beams, greedy = given["beams"], given["greedy"]
    lines: list[str] = []
    if architecture == "encoder_decoder":
        rule = "has no effect on beam search, by which an encoder-decoder writes"
        names = (*OF_CHANCE, *OF_SAMPLING)
        lines += useless_options(context, names, rule, "leave it out")
    elif beams or greedy:
        other = "--beams" if beams else "--greedy"
        rule = f"has no effect with {other}, which leaves nothing to chance"
        fix = f"leave it out, or leave out {other}"
        lines += useless_options(context, OF_CHANCE, rule, fix)
    if beams and architecture != "encoder_decoder":
        rule = f"has no effect on beam search, by which --beams {beams} writes"
        lines += useless_options(context, OF_SAMPLING, rule, "leave it out, or leave out --beams")
    if beams > 1:
        rule = f"takes the likeliest token, where --beams {beams} keeps {beams} texts"
        lines += useless_options(context, ("greedy",), rule, "leave out one of the two")
    if beams == 0:
        rule, fix = "has no effect without --beams", "leave it out, or give --beams"
        lines += useless_options(context, ("length_penalty",), rule, fix)
    if not (given["as_json"] or given["to"]):
        rule = "is told with --json or --to alone"
        lines += useless_options(context, ("log_probabilities",), rule, "give one of the two")
    lines += _of_prompts(context)
    if lines:
        raise RootsError(*lines)


def _of_prompts(context: typer.Context) -> Iterator[str]:
    """Problems of where the prompts come from and their texts go to."""
    from roots.device import launch_environment
    from roots.errors import problem

    given = context.params
    prompts, file = given["prompt"] or (), given["file"]
    if bool(prompts) == (file is not None):
        rule = "exactly one of them says what to continue"
        yield problem("--prompt, --file", None, rule, "give one of the two")
    if str(file) == "-" and launch_environment().world_size > 1:
        rule = "is read by one process, and these are several"
        yield problem("--file", "-", rule, "write the prompts to a file")
    if given["stream"] and (len(prompts) != 1 or given["as_json"] or given["to"]):
        rule = "shows one text of one --prompt, as text"
        yield problem("--stream", None, rule, "leave it out")


def _show(wish: Wish, texts: Sequence[WrittenText], begin: int) -> None:
    """Print the texts, or where they are; one that was streamed stands there already."""
    if wish.as_json:
        records = [_record(text) for text in texts]
        document = {"checkpoint": str(wish.checkpoint), "continuations": records}
        typer.echo(json.dumps(document, indent=2))
    elif wish.to is not None:
        before = f", {begin} were there" if begin else ""
        typer.echo(f"wrote {len(texts)} texts to {wish.to}{before}")
    elif not wish.streams:
        for number, text in enumerate(texts, start=1):
            if len(texts) > 1:
                typer.echo(f"--- {number} of {len(texts)}")
            typer.echo(f"{text.prompt if wish.shows_prompt else ''}{text.text}")


def _record(text: WrittenText) -> dict[str, object]:
    return {name: value for name, value in asdict(text).items() if value is not None}
