"""`roots evaluate --pairs`: an encoder-decoder on a file of pairs, beside what needs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from roots.evaluation.texts import TextScores


PairFile = Annotated[
    Optional[Path],  # noqa: UP045  # typer evaluates these on Python 3.10 too
    typer.Option(help="Instead, .tsv or .jsonl of pairs: loss, BLEU, chrF, F1."),
]
Baselines = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Pairs of the training, for what needs no model."),
]
Beams = Annotated[int, typer.Option(min=1, help="Texts that beam search keeps.")]
LengthPenalty = Annotated[
    float, typer.Option(help="Exponent of the length that scores are divided by.")
]
TargetTokens = Annotated[
    int, typer.Option(min=0, help="Tokens of a target at most; 0: as in training.")
]
Written = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="File for what the model writes, a line a pair."),
]


@dataclass(frozen=True, kw_only=True)
class PairRequest:
    """The options of the command that concern pairs, by its names of them."""

    checkpoint: str
    pairs: Path
    columns: tuple[str, str]
    baselines: Path | None
    beams: int
    length_penalty: float
    max_new_tokens: int
    batch_size: int
    tokenizer: str | None
    written: Path | None

    @classmethod
    def of(cls, parameters: Mapping[str, Any], columns: tuple[str, str]) -> PairRequest:
        """Those among all of the command; `columns` of sources and targets."""
        names = [each.name for each in fields(cls) if each.name != "columns"]
        return cls(columns=columns, **{name: parameters[name] for name in names})


def evaluate_file(request: PairRequest, as_json: bool) -> None:
    """Print loss and scores of the model's texts, and of copying and of a unigram table.

    The file of texts belongs to this process from before the work until it is written.
    """
    from contextlib import ExitStack

    from roots.lock import Place, lock_beside, owned

    with ExitStack() as stack:
        if request.written is not None:
            fix = "wait for that process, or name another file"
            place = Place("--written", "the texts go there", fix, value=str(request.written))
            stack.enter_context(owned(lock_beside(request.written), place))
        _evaluate(request, as_json)


def _evaluate(request: PairRequest, as_json: bool) -> None:
    from roots.data.objectives.choice import begin_token
    from roots.data.preprocessing.pair_files import PairColumns, read_pairs
    from roots.device import current_device
    from roots.evaluation.likelihood import finite
    from roots.evaluation.pairs import evaluate_pairs
    from roots.files import write_atomically
    from roots.generation.beam import BeamOptions
    from roots.generation.load import load_model, tokenizer_of

    columns = PairColumns(*request.columns)
    pairs = read_pairs(request.pairs, columns)
    model = load_model(request.checkpoint, current_device())
    words = tokenizer_of(model, request.tokenizer)
    limit = request.max_new_tokens or model.config.model.sequence_length
    from roots.cli.progress import shown

    with shown("evaluating") as report:
        scores = evaluate_pairs(
            model.encoder_decoder,
            words,
            pairs,
            BeamOptions(
                num_beams=request.beams,
                length_penalty=request.length_penalty,
                max_new_tokens=limit,
            ),
            begin=begin_token(model.config.data, words.end_of_document),
            batch_size=request.batch_size or model.config.training.micro_batch_size,
            progress=lambda done: report(done, len(pairs)),
        )
    rows = {"model": scores.texts}
    if request.baselines is not None:
        rows |= _baselines(pairs, read_pairs(request.baselines, columns))
    if request.written is not None:
        write_atomically(request.written, "".join(f"{_line(text)}\n" for text in scores.written))
    if as_json:
        document = {"checkpoint": str(model.checkpoint), "pairs": scores.pairs}
        document |= {"loss": finite(scores.loss), "perplexity": finite(scores.perplexity)}
        document |= {"tokens": scores.tokens}
        document |= {"beams": request.beams, "length_penalty": request.length_penalty}
        document |= {name: asdict(row) for name, row in rows.items()}
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    typer.echo(f"checkpoint     {model.checkpoint}")
    typer.echo(f"pairs          {scores.pairs} of {request.pairs}, {scores.tokens} tokens")
    typer.echo(f"loss           {scores.loss:.4f} nats per token of the targets")
    typer.echo(f"perplexity     {scores.perplexity:.3f}")
    typer.echo(f"{'':14} {'BLEU':>7} {'chrF':>7} {'exact %':>8} {'F1 %':>7}")
    for name, row in rows.items():
        figures = f"{row.bleu:7.2f} {row.chrf:7.2f} {row.exact_match:8.2f} {row.f1:7.2f}"
        typer.echo(f"{name:14} {figures}")
    typer.echo(f"BLEU           {scores.texts.signature}")


def _baselines(
    pairs: list[tuple[str, str]], training: list[tuple[str, str]]
) -> dict[str, TextScores]:
    from roots.evaluation.baselines import UnigramTable
    from roots.evaluation.texts import score_texts

    table = UnigramTable(training)
    references = [target for _, target in pairs]
    return {
        "copy": score_texts([source for source, _ in pairs], references),
        "unigram": score_texts([table.translate(source) for source, _ in pairs], references),
    }


def _line(text: str) -> str:
    return " ".join(text.splitlines())
