"""`roots generate`: continue prompts with a trained model, on one process."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from roots.generation.load import LoadedModel
    from roots.generation.texts import WrittenText

# Parameters of `generate` that concern the choice of tokens at random.
OF_CHANCE = ("temperature", "top_k", "top_p", "seed")
NamesOfTokens = Annotated[
    bool,
    typer.Option(
        "--special-tokens/--no-special-tokens",
        help="Whether names of special tokens in a prompt, as `<|im_start|>`, are these tokens "
        "(as in transformers) or plain text.",
    ),
]


def generate(
    context: typer.Context,
    checkpoint: Annotated[
        str, typer.Argument(help="Folder or URL of a checkpoint, or of a run (then its latest).")
    ],
    *,
    prompt: Annotated[
        list[str],
        typer.Option(
            "--prompt",
            "--source",
            help="Text to continue, or source of an encoder-decoder; may be given repeatedly.",
        ),
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens added at most.")] = 64,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest tokens that reach this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the choice of tokens.")] = 1234,
    beams: Annotated[
        int,
        typer.Option(min=0, help="Texts that beam search keeps; 0: none, an encoder-decoder 1."),
    ] = 0,
    length_penalty: Annotated[
        float, typer.Option(help="Exponent of the length that scores of beams are divided by.")
    ] = 1.0,
    special_tokens: NamesOfTokens = True,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer; default: that of the training.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Print what the model in CHECKPOINT writes after each prompt, or for each source."""
    from roots.checkpoint import read_config, resolve_checkpoint
    from roots.device import current_device
    from roots.generation.beam import BeamOptions
    from roots.generation.load import load_model, tokenizer_of
    from roots.generation.options import GenerationOptions
    from roots.generation.sampling import SamplingOptions
    from roots.generation.texts import write_texts

    sampling = SamplingOptions(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p)
    # Before the weights, which may take long to read.
    found = resolve_checkpoint(checkpoint)
    architecture = read_config(found).model.architecture
    _refuse_what_does_nothing(context, architecture, beams, greedy)
    model = load_model(found, current_device())
    words = tokenizer_of(model, tokenizer)
    options: GenerationOptions | BeamOptions
    if beams or architecture == "encoder_decoder":
        options = BeamOptions(
            num_beams=max(beams, 1), length_penalty=length_penalty, max_new_tokens=max_new_tokens
        )
    else:
        options = GenerationOptions(max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    results = write_texts(model, words, prompt, options, special_tokens=special_tokens)
    _show(model, results, as_json)


def _refuse_what_does_nothing(
    context: typer.Context, architecture: str, beams: int, greedy: bool
) -> None:
    """Raise RootsError for options that the way of writing has no use for."""
    from roots.cli.options.useless import useless_options
    from roots.errors import RootsError

    lines: list[str] = []
    if architecture == "encoder_decoder":
        rule = "has no effect on beam search, by which an encoder-decoder writes"
        lines += useless_options(context, OF_CHANCE, rule, "leave it out")
    elif beams or greedy:
        other = "--beams" if beams else "--greedy"
        rule = f"has no effect with {other}, which leaves nothing to chance"
        fix = f"leave it out, or leave out {other}"
        lines += useless_options(context, OF_CHANCE, rule, fix)
    if beams > 1:
        rule = f"takes the likeliest token, where --beams {beams} keeps {beams} texts"
        lines += useless_options(context, ("greedy",), rule, "leave out one of the two")
    if beams == 0:
        rule, fix = "has no effect without --beams", "leave it out, or give --beams"
        lines += useless_options(context, ("length_penalty",), rule, fix)
    if lines:
        raise RootsError(*lines)


def _show(model: LoadedModel, results: list[WrittenText], as_json: bool) -> None:
    if as_json:
        written = [_without_none(asdict(result)) for result in results]
        document = {"checkpoint": str(model.checkpoint), "continuations": written}
        typer.echo(json.dumps(document, indent=2))
        return
    shows_prompt = model.config.model.architecture != "encoder_decoder"
    for number, result in enumerate(results, start=1):
        if len(results) > 1:
            typer.echo(f"--- {number} of {len(results)}")
        typer.echo(f"{result.prompt if shows_prompt else ''}{result.text}")


def _without_none(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
