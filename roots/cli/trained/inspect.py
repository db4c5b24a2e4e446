"""`roots inspect`: what a model does inside while it reads, on one process."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roots.cli.options.ranks import refuse_ranks
from roots.cli.options.trained import AsJson, Checkpoint, NamesOfTokens, TokenizerFolder

if TYPE_CHECKING:
    from roots.generation.load import LoadedModel
    from roots.inspection.lens import TunedLens
    from roots.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command."""

    checkpoint: str
    text: str | None
    data: str | None
    to: Path | None
    windows: int
    tokens: int
    nearest: list[str]
    fit_steps: int
    lens: Path | None
    special_tokens: bool
    tokenizer: str | None
    as_json: bool


def inspect(
    context: typer.Context,
    checkpoint: Checkpoint,
    *,
    text: Annotated[str | None, typer.Option(help="Text that the model reads.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Instead, a dataset of `roots preprocess`."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="HTML file for all that is found, which needs no other.")
    ] = None,
    windows: Annotated[
        int, typer.Option(min=1, help="Windows of the dataset that are read, as long as a sample.")
    ] = 16,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens whose lenses and attention maps are shown at most.")
    ] = 64,
    nearest: Annotated[
        list[str] | None,
        typer.Option(help="Token whose neighbours in the embedding are told; repeatable."),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Train a tuned lens on the windows behind those that are read."),
    ] = False,
    fit_steps: Annotated[
        int, typer.Option(min=1, help="Windows that --fit reads, again from the first if too few.")
    ] = 250,
    lens: Annotated[
        Path | None, typer.Option(help="Tuned lens, .safetensors: read, or with --fit written.")
    ] = None,
    special_tokens: NamesOfTokens = True,
    tokenizer: TokenizerFolder = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a decoder does inside while it reads: losses, lenses, heads, experts, overflow."""
    refuse_ranks("inspects")
    _check_options(context, text, data, fit)
    values = dict(context.params, nearest=nearest or [], fit_steps=fit_steps if fit else 0)
    _inspect(Request(**{each.name: values[each.name] for each in fields(Request)}))


def _inspect(request: Request) -> None:
    _check_file("--to", request.to)
    if request.fit_steps:
        _check_file("--lens", request.lens)
    from roots.cli.progress import shown
    from roots.data.indexed import IndexedDataset
    from roots.device import current_device
    from roots.generation.load import load_model, tokenizer_of
    from roots.inspection.inspect import InspectionOptions, inspect_data, inspect_text
    from roots.inspection.neighbours import token_named

    indexed = None if request.data is None else IndexedDataset(request.data)
    model = load_model(request.checkpoint, current_device())
    words = tokenizer_of(model, request.tokenizer)
    asked = [token_named(words, each) for each in request.nearest]
    options = InspectionOptions(
        shown=request.tokens,
        windows=request.windows,
        nearest=asked,
        lens=_lens(model, words, request),
    )
    if indexed is None:
        text, special_tokens = request.text or "", request.special_tokens
        found = inspect_text(model, words, text, options, special_tokens=special_tokens)
    else:
        with shown("inspecting") as report:
            found = inspect_data(model, words, indexed, options, progress=report)
    _show(found, asked, request)


def _check_options(context: typer.Context, text: str | None, data: str | None, fit: bool) -> None:
    """Raise RootsError unless exactly one thing is to be read, and for options without effect."""
    from roots.cli.options.useless import refuse_useless
    from roots.errors import RootsError, problem

    if (text is None) == (data is None):
        rule = "exactly one of them says what the model reads"
        raise RootsError(problem("--text, --data", None, rule, "give one of the two"))
    if data is None:
        rule = "has no effect with --text, which is read whole"
        refuse_useless(context, ("windows",), rule, "leave it out, or give --data")
        rule = "needs a dataset to train the lens on"
        refuse_useless(context, ("fit",), rule, "give --data PREFIX instead of --text")
    else:
        rule = "has no effect with --data, whose tokens are what they are"
        refuse_useless(context, ("special_tokens",), rule, "leave it out, or give --text")
    if not fit:
        rule = "has no effect without --fit"
        refuse_useless(context, ("fit_steps",), rule, "leave it out, or give --fit")


def _check_file(option: str, path: Path | None) -> None:
    """Raise RootsError where a file cannot be made, before the work that it is to hold."""
    from roots.errors import RootsError, problem

    if path is None:
        return
    if not path.absolute().parent.is_dir():
        fix = "make the folder first, or name another file"
        raise RootsError(problem(option, str(path), "there is no such folder", fix))
    if path.is_dir():
        raise RootsError(problem(option, str(path), "is a folder", "name a file in it"))


def _lens(model: LoadedModel, words: Tokenizer, request: Request) -> TunedLens | None:
    """The tuned lens: fitted on the dataset, else read from its file, else none."""
    from roots.cli.progress import shown
    from roots.data.indexed import IndexedDataset
    from roots.inspection.lens import TunedLens, fit_lens
    from roots.inspection.rows import dataset_rows

    path, steps = request.lens, request.fit_steps
    if not steps or request.data is None:
        return None if path is None else TunedLens.read(path, model.decoder)
    indexed = IndexedDataset(request.data)
    rows = list(dataset_rows(model, words, indexed, first=request.windows, count=steps))
    # A small dataset has nothing behind what is read.
    rows = rows or list(dataset_rows(model, words, indexed, first=0, count=steps))
    with shown("fitting the lens") as report:
        fitted = fit_lens(model.decoder, rows, steps=steps, progress=report)
    if path is not None:
        fitted.write(path)
    return fitted


def _show(found: dict[str, Any], asked: list[int], request: Request) -> None:
    """Print it, and write the page where there is to be one."""
    from roots.inspection.page.report import write_report
    from roots.inspection.text import nearest_lines, text_lines

    if request.to is not None:
        write_report(found, request.to)
    if request.as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    for line in (*text_lines(found), *nearest_lines(found, asked)):
        typer.echo(line)
    if request.to is not None:
        typer.echo(f"page        {request.to}")
