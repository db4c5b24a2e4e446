"""`roots generate`: continue prompts with a trained model, on one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def generate(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder, or the folder of a run (then its latest).")
    ],
    *,
    prompt: Annotated[list[str], typer.Option(help="Text to continue; may be given repeatedly.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens added at most.")] = 64,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest tokens that reach this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the choice of tokens.")] = 1234,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of the tokenizer; default: that of the training."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Print what the model in CHECKPOINT writes after each prompt."""
    from roots.device import current_device
    from roots.generation.generate import GenerationOptions, continue_prompts
    from roots.generation.load import load_model, tokenizer_of
    from roots.generation.sampling import SamplingOptions

    sampling = SamplingOptions(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p)
    options = GenerationOptions(max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    model = load_model(checkpoint, current_device())
    words = tokenizer_of(model, tokenizer)
    continuations = continue_prompts(model.decoder, words, prompt, options)
    results = [
        {
            "prompt": text,
            "text": words.decode(continuation.token_ids),
            "token_ids": list(continuation.token_ids),
            "stopped_by": continuation.stopped_by,
        }
        for text, continuation in zip(prompt, continuations, strict=True)
    ]
    if as_json:
        document = {"checkpoint": str(model.checkpoint), "continuations": results}
        typer.echo(json.dumps(document, indent=2))
        return
    for number, result in enumerate(results, start=1):
        if len(results) > 1:
            typer.echo(f"--- {number} of {len(results)}")
        typer.echo(f"{result['prompt']}{result['text']}")
