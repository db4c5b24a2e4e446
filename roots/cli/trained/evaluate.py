"""`roots evaluate`: a trained model on a preprocessed dataset, on pairs, or on tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.options.ranks import refuse_ranks
from roots.cli.options.trained import AsJson, Checkpoint, TokenizerFolder
from roots.cli.preprocess import SourceKey, TargetKey
from roots.cli.trained.evaluate_pairs import (
    Baselines,
    Beams,
    LengthPenalty,
    PairFile,
    PairRequest,
    TargetTokens,
    Written,
    evaluate_file,
)
from roots.cli.trained.evaluate_tasks import (
    Chat,
    Download,
    FewShot,
    Limit,
    LogSamples,
    TaskData,
    TaskFolder,
    TaskNames,
    TaskOptions,
    evaluate_on_tasks,
)

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
# And those that mean something for --tasks alone.
OF_TASKS = (
    "task_folder",
    "task_data",
    "limit",
    "few_shot",
    "log_samples",
    "chat",
    "download",
)


def evaluate(
    context: typer.Context,
    checkpoint: Checkpoint,
    *,
    data: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Dataset of `roots preprocess`.")
    ] = None,
    pairs: PairFile = None,
    source_key: SourceKey = "source",
    target_key: TargetKey = "target",
    baselines: Baselines = None,
    beams: Beams = 4,
    length_penalty: LengthPenalty = 1.0,
    max_new_tokens: TargetTokens = 0,
    written: Written = None,
    tasks: TaskNames = None,
    task_folder: TaskFolder = None,
    task_data: TaskData = None,
    limit: Limit = 0,
    few_shot: FewShot = None,
    log_samples: LogSamples = None,
    chat: Chat = False,
    download: Download = False,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Windows or pairs at a time; 0: as many as in training.")
    ] = 0,
    tokenizer: TokenizerFolder = None,
    as_json: AsJson = False,
) -> None:
    """Print how well the model in CHECKPOINT predicts --data, writes --pairs, or does --tasks."""
    options = dict(locals())
    from roots.errors import RootsError, problem

    given = [name for name in ("data", "pairs", "tasks") if context.params[name] is not None]
    if len(given) != 1:
        rule = "exactly one of them says what to evaluate on"
        raise RootsError(problem("--data, --pairs, --tasks", None, rule, "give one of the three"))
    _refuse_what_others_need(context, given[0])
    if tasks is None:
        refuse_ranks(f"evaluates on --{given[0]}")
    if tasks is not None:
        evaluate_on_tasks(TaskOptions.of(options), as_json)
    elif pairs is not None:
        evaluate_file(PairRequest.of(options, (source_key, target_key)), as_json)
    else:
        _evaluate_data(checkpoint, str(data), batch_size, tokenizer, as_json)


def _refuse_what_others_need(context: typer.Context, given: str) -> None:
    """Raise RootsError for options that what is `given` has no use for."""
    from roots.cli.options.useless import useless_options
    from roots.errors import RootsError

    lines: list[str] = []
    if given == "data":
        rule = "has no effect with --data, which compares no texts"
        fix = "leave it out, or give --pairs instead of --data"
        lines += useless_options(context, OF_PAIRS, rule, fix)
    if given == "tasks":
        rule = "has no effect with --tasks, whose files say how texts are written"
        lines += useless_options(context, (*OF_PAIRS, "batch_size"), rule, "leave it out")
    else:
        lines += useless_options(context, OF_TASKS, "has no effect without --tasks", "leave it out")
    if lines:
        raise RootsError(*lines)


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
