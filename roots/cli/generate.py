"""`roots generate`: continue prompts with a trained model, on one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from roots.generation.beam import BeamOptions
    from roots.generation.generate import GenerationOptions
    from roots.generation.load import LoadedModel
    from roots.tokenizer.tokenizer import Tokenizer

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
        Path, typer.Argument(help="Checkpoint folder, or the folder of a run (then its latest).")
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
    from roots.generation.generate import GenerationOptions
    from roots.generation.load import load_model, tokenizer_of
    from roots.generation.sampling import SamplingOptions

    sampling = SamplingOptions(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p)
    # Before the weights, which may take long to read.
    architecture = read_config(resolve_checkpoint(checkpoint)).model.architecture
    _refuse_what_does_nothing(context, architecture, beams, greedy)
    model = load_model(checkpoint, current_device())
    words = tokenizer_of(model, tokenizer)
    if beams or architecture == "encoder_decoder":
        search = BeamOptions(
            num_beams=max(beams, 1), length_penalty=length_penalty, max_new_tokens=max_new_tokens
        )
        results = _search(model, words, prompt, search, special_tokens)
    else:
        options = GenerationOptions(max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        results = _sample(model, words, prompt, options, special_tokens)
    _show(model, results, as_json)


def _refuse_what_does_nothing(
    context: typer.Context, architecture: str, beams: int, greedy: bool
) -> None:
    """Raise RootsError for options that the way of writing has no use for."""
    from roots.cli.useless_options import useless_options
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


def _show(model: LoadedModel, results: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        document = {"checkpoint": str(model.checkpoint), "continuations": results}
        typer.echo(json.dumps(document, indent=2))
        return
    shows_prompt = model.config.model.architecture != "encoder_decoder"
    for number, result in enumerate(results, start=1):
        if len(results) > 1:
            typer.echo(f"--- {number} of {len(results)}")
        typer.echo(f"{result['prompt'] if shows_prompt else ''}{result['text']}")


def _sample(
    model: LoadedModel,
    words: Tokenizer,
    prompts: list[str],
    options: GenerationOptions,
    special_tokens: bool,
) -> list[dict[str, object]]:
    from roots.generation.generate import check_tokenizer, continue_tokens
    from roots.generation.prompts import decode_new, encode_prompts

    decoder = model.decoder
    check_tokenizer(words, decoder.model)
    starts = encode_prompts(words, prompts, special_tokens=special_tokens)
    results = continue_tokens(decoder, starts, options, end=words.special.stops)
    texts = [decode_new(words, ids, found.token_ids) for ids, found in zip(starts, results)]
    return [
        {
            "prompt": prompt,
            "text": text,
            "token_ids": list(found.token_ids),
            "stopped_by": found.stopped_by,
        }
        for prompt, text, found in zip(prompts, texts, results, strict=True)
    ]


def _search(
    model: LoadedModel,
    words: Tokenizer,
    prompts: list[str],
    options: BeamOptions,
    special_tokens: bool,
) -> list[dict[str, object]]:
    from roots.data.objectives.choice import begin_token
    from roots.generation.continue_beams import continue_by_beams
    from roots.generation.generate import check_tokenizer
    from roots.generation.prompts import decode_new, encode_prompts, encode_sources
    from roots.generation.write import write_targets

    check_tokenizer(words, model.config.model)
    stops = words.special.stops
    if model.config.model.architecture == "encoder_decoder":
        begin = begin_token(model.config.data, words.end_of_document)
        sources = encode_sources(words, prompts, special_tokens=special_tokens)
        results = write_targets(model.encoder_decoder, sources, options, begin=begin, end=stops)
        # A target is a text of its own, of which nothing is given.
        texts = [words.decode(found.token_ids) for found in results]
    else:
        starts = encode_prompts(words, prompts, special_tokens=special_tokens)
        results = continue_by_beams(model.decoder, starts, options, end=stops)
        texts = [decode_new(words, ids, found.token_ids) for ids, found in zip(starts, results)]
    return [
        {
            "prompt": prompt,
            "text": text,
            "token_ids": list(found.token_ids),
            "stopped_by": found.stopped_by,
            "score": found.score,
        }
        for prompt, text, found in zip(prompts, texts, results, strict=True)
    ]
