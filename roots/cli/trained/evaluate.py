"""`roots evaluate`: a trained model on a preprocessed dataset or on pairs, on one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.preprocess import SourceKey, TargetKey

if TYPE_CHECKING:
    from roots.generation.load import LoadedModel
    from roots.tokenizer.tokenizer import Tokenizer

# Parameters of `evaluate` that mean something for --pairs alone.
OF_PAIRS = (
    "source_key",
    "target_key",
    "baselines",
    "beams",
    "length_penalty",
    "max_new_tokens",
    "written",
)


def evaluate(
    context: typer.Context,
    checkpoint: Annotated[
        str, typer.Argument(help="Folder or URL of a checkpoint, or of a run (then its latest).")
    ],
    *,
    data: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Dataset of `roots preprocess`.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Instead, .tsv or .jsonl of pairs: loss, BLEU, chrF, F1.")
    ] = None,
    source_key: SourceKey = "source",
    target_key: TargetKey = "target",
    baselines: Annotated[
        Path | None, typer.Option(help="Pairs of the training, for what needs no model.")
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Texts that beam search keeps.")] = 4,
    length_penalty: Annotated[
        float, typer.Option(help="Exponent of the length that scores are divided by.")
    ] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of a target at most; 0: as in training.")
    ] = 0,
    written: Annotated[
        Path | None, typer.Option(help="File for what the model writes, a line a pair.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Windows or pairs at a time; 0: as many as in training.")
    ] = 0,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer; default: that of the training.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Print how well the model in CHECKPOINT predicts a dataset (--data) or writes (--pairs)."""
    from roots.errors import RootsError, problem

    if pairs is not None and data is None:
        from roots.cli.trained.evaluate_pairs import PairRequest, evaluate_file

        request = PairRequest(
            checkpoint=checkpoint,
            pairs=pairs,
            columns=(source_key, target_key),
            baselines=baselines,
            beams=beams,
            length_penalty=length_penalty,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            tokenizer=tokenizer,
            written=written,
        )
        evaluate_file(request, as_json)
    elif data is not None and pairs is None:
        _refuse_what_pairs_need(context)
        _evaluate_data(checkpoint, data, batch_size, tokenizer, as_json)
    else:
        rule = "exactly one of them says what to evaluate on"
        raise RootsError(problem("--data, --pairs", None, rule, "give one of the two"))


def _refuse_what_pairs_need(context: typer.Context) -> None:
    """Raise RootsError for options that --data has no use for. All of --data serve --pairs too."""
    from roots.cli.options.useless import refuse_useless

    rule = "has no effect with --data, which compares no texts"
    refuse_useless(context, OF_PAIRS, rule, "leave it out, or give --pairs instead of --data")


def _evaluate_data(
    checkpoint: str, data: str, batch_size: int, tokenizer: str | None, as_json: bool
) -> None:
    """Print loss, perplexity and bits per byte of a decoder on a dataset."""
    from dataclasses import asdict

    from roots.cli.progress import shown
    from roots.data.indexed import IndexedDataset
    from roots.device import current_device
    from roots.evaluation.datasets import evaluate_dataset
    from roots.evaluation.likelihood import finite
    from roots.generation.load import load_model

    indexed = IndexedDataset(data)
    model = load_model(checkpoint, current_device())
    words, missing = _tokenizer(model, tokenizer)
    with shown("evaluating") as report:
        result = evaluate_dataset(
            model,
            indexed,
            tokenizer=words,
            batch_size=batch_size,
            progress=lambda tokens: report(tokens, indexed.num_tokens),
        )
    if as_json:
        figures = {name: finite(value) for name, value in asdict(result).items()}
        document = {"checkpoint": str(model.checkpoint), "data": data, **figures}
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    bits = missing if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
    typer.echo(f"checkpoint     {model.checkpoint}")
    typer.echo(f"data           {data}")
    typer.echo(f"tokens         {result.tokens}")
    typer.echo(f"loss           {result.loss:.4f} nats per token")
    typer.echo(f"perplexity     {result.perplexity:.3f}")
    typer.echo(f"bits per byte  {bits}")


def _tokenizer(model: LoadedModel, given: str | None) -> tuple[Tokenizer | None, str]:
    """The tokenizer that counts bytes, or None and why there is none.

    Only the bits per byte need it, so that of the training may be missing; one asked for may not.
    """
    from roots.errors import RootsError
    from roots.generation.load import tokenizer_of

    if given is not None:
        return tokenizer_of(model, given), ""
    try:
        return tokenizer_of(model, None), ""
    except RootsError as error:
        return None, f"not computed ({error})"
