"""`roots evaluate`: perplexity of a trained model on a preprocessed dataset, on one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from roots.generation.load import LoadedModel
    from roots.tokenizer.tokenizer import Tokenizer


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder, or the folder of a run (then its latest).")
    ],
    *,
    data: Annotated[str, typer.Option(metavar="PREFIX", help="Dataset of `roots preprocess`.")],
    batch_size: Annotated[
        int, typer.Option(min=0, help="Windows at a time; 0: the training's micro-batch.")
    ] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of the tokenizer; default: that of the training."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Print loss, perplexity and bits per byte of the model in CHECKPOINT on a dataset."""
    from dataclasses import asdict

    from roots.data.batch import DocumentRules
    from roots.data.indexed import IndexedDataset
    from roots.device import current_device
    from roots.evaluation.perplexity import evaluate_perplexity
    from roots.generation.load import load_model

    indexed = IndexedDataset(data)
    model = load_model(checkpoint, current_device())
    words, missing = _tokenizer(model, tokenizer)
    rules = DocumentRules(
        separate_documents=model.config.data.separate_documents,
        reset_positions=model.config.data.reset_positions,
        mask_document_end=model.config.data.mask_document_end,
    )
    result = evaluate_perplexity(
        model.decoder,
        indexed,
        rules=rules,
        batch_size=batch_size or model.config.training.micro_batch_size,
        tokenizer=words,
    )
    if as_json:
        document = {"checkpoint": str(model.checkpoint), "data": data, **asdict(result)}
        typer.echo(json.dumps(document, indent=2))
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
