"""`roots tokenizer train`: learn a vocabulary from text files. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from roots.cli.preprocess import (
    OnErrorChoice,
    SourceKey,
    TargetKey,
    refuse_keys_of_the_other,
)

tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)


@tokenizer_app.callback()
def _tokenizer() -> None:
    """Make tokenizers."""


@tokenizer_app.command()
def train(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(help=".txt, .jsonl[.gz|.zst], .parquet, folders of them, any text file."),
    ],
    *,
    vocab_size: Annotated[int, typer.Option(help="Number of ids, special tokens included.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json.")],
    special_token: Annotated[
        Optional[list[str]],  # noqa: UP045  # typer evaluates this on Python 3.10 too
        typer.Option(help="Further special token; may be repeated."),
    ] = None,
    min_frequency: Annotated[
        int, typer.Option(min=1, help="How often a pair must occur to be merged.")
    ] = 2,
    text_key: Annotated[str, typer.Option(help="Key or column that holds the text.")] = "text",
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help=".tsv or .jsonl of pairs: one vocabulary for both sides."),
    ] = False,
    source_key: SourceKey = "source",
    target_key: TargetKey = "target",
    on_error: Annotated[
        OnErrorChoice, typer.Option(help="Whether a broken line ends the run or is left out.")
    ] = OnErrorChoice.STOP,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer; every text can be encoded, whatever it is trained on."""
    from roots.tokenizer.train import save_tokenizer, train_bpe

    refuse_keys_of_the_other(context, pairs)
    texts = _texts(files, text_key, (source_key, target_key) if pairs else None, on_error.value)
    trained = train_bpe(
        texts,
        vocab_size,
        special_tokens=special_token or (),
        min_frequency=min_frequency,
        show_progress=not as_json,
    )
    tokenizer = save_tokenizer(trained, out)
    if as_json:
        report = {
            "folder": str(out),
            "vocab_size": tokenizer.vocab_size,
            "end_of_document": tokenizer.end_of_document,
            "fingerprint": tokenizer.fingerprint,
        }
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{out}: {tokenizer.vocab_size} ids, {tokenizer.end_of_document} ends a document")
    if tokenizer.vocab_size < vocab_size:
        typer.echo(f"The text supports {tokenizer.vocab_size} ids of the {vocab_size} asked for.")


def _texts(
    files: list[Path],
    text_key: str,
    columns: tuple[str, str] | None,
    on_error: Literal["stop", "skip"],
) -> Iterator[str]:
    """The texts to learn from: documents, or with columns both sides of pairs."""
    from roots.log import get_logger

    def report(line: str) -> None:
        get_logger("tokenizer").warning("skipped: %s", line)

    if columns is not None:
        from roots.data.preprocessing.pair_files import (
            PairColumns,
            find_pair_files,
            read_pair_texts,
        )

        return read_pair_texts(find_pair_files(files), PairColumns(*columns), on_error, report)
    from roots.data.preprocessing.readers import find_files, read_texts

    return read_texts(find_files(files), text_key, on_error, report)
