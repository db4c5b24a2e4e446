"""Everything that an inspection finds, as one dict that JSON holds: a page or a program reads it.

    checkpoint, read     what was looked into, and with what
    model                its sizes
    vocabulary           the text of every id below
    tokens               the ids of the row that is shown: the text, or the first window of the data
    losses               see roots.inspection.losses
    lenses               logit and tuned (None: none was trained), see roots.inspection.lens
    attention            weights of the first tokens, in thousandths: [block][head][token][<= token]
    heads                see roots.inspection.heads
    residual             see roots.inspection.residual
    experts              a list, empty without experts, see roots.inspection.experts
    nearest              by id the nearest other tokens of the embedding
    overflow             see roots.inspection.overflow

Numbers that are not finite are None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roots.data.indexed import IndexedDataset
from roots.errors import RootsError, problem
from roots.evaluation.likelihood import finite
from roots.generation.generate import check_tokenizer
from roots.generation.load import LoadedModel
from roots.generation.prompts import decode_new
from roots.inspection import hooks
from roots.inspection.experts import ExpertTally
from roots.inspection.heads import score_heads
from roots.inspection.lens import LensTally, TunedLens
from roots.inspection.losses import Losses, ids_in
from roots.inspection.neighbours import nearest_tokens
from roots.inspection.overflow import overflow_summary
from roots.inspection.residual import ResidualTally
from roots.inspection.rows import Row, dataset_rows, text_row
from roots.log import Report, silent
from roots.models.decoder import Decoder
from roots.tokenizer.tokenizer import Tokenizer

Found = dict[str, Any]
# Attention weights are told in these parts.
PARTS = 1000


@dataclass(frozen=True, kw_only=True)
class InspectionOptions:
    """What is looked at, and how much of it is shown.

    shown:   tokens of a row whose lenses and attention are shown, from the first on
    top:     likeliest tokens shown behind every token
    windows: of a dataset, how many are read
    nearest: ids whose neighbours are wanted besides those of the tokens that are shown
    lens:    a tuned lens that was trained
    """

    shown: int = 64
    top: int = 5
    windows: int = 16
    nearest: Sequence[int] = ()
    lens: TunedLens | None = None


def inspect_text(
    model: LoadedModel,
    tokenizer: Tokenizer,
    text: str,
    options: InspectionOptions | None = None,
    *,
    special_tokens: bool = True,
) -> Found:
    """Look into a decoder while it reads `text`.

    special_tokens: names of them in the text are these tokens
    Raises RootsError for a model that is no decoder, a text of less than two tokens, one that is
    longer than learned positions reach, and a tokenizer of another vocabulary.
    """
    check_tokenizer(tokenizer, model.decoder.model)
    row = text_row(model, tokenizer, text, special_tokens=special_tokens)
    found = inspect_rows(model, tokenizer, [row], options or InspectionOptions())
    return {"checkpoint": str(model.checkpoint), "read": {"text": text}, **found}


def inspect_data(
    model: LoadedModel,
    tokenizer: Tokenizer,
    indexed: IndexedDataset,
    options: InspectionOptions | None = None,
    *,
    progress: Report = silent,
) -> Found:
    """Look into a decoder while it reads the first windows of a dataset, of which one is shown.

    progress: called with (windows read, windows)
    Raises RootsError for a model that is no decoder, and for a dataset or tokenizer of another
    vocabulary.
    """
    options = options or InspectionOptions()
    check_tokenizer(tokenizer, model.decoder.model)
    rows = list(dataset_rows(model, tokenizer, indexed, first=0, count=options.windows))
    if not any(bool(row.predicted_T.any()) for row in rows):
        rule = "holds no token that is to be predicted"
        raise RootsError(problem("data", indexed.prefix, rule, "give a dataset of more text"))
    found = inspect_rows(model, tokenizer, rows, options, progress=progress)
    read = {"data": indexed.prefix, "windows": len(rows)}
    return {"checkpoint": str(model.checkpoint), "read": read, **found}


def inspect_rows(
    model: LoadedModel,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    options: InspectionOptions,
    *,
    progress: Report = silent,
) -> Found:
    """What the module's docstring lists, without `checkpoint` and `read`, of rows of tokens."""
    decoder = model.decoder
    tallies = _Tallies.of(decoder, options)
    with torch.no_grad():
        for index, row in enumerate(rows):
            tallies.read(row)
            progress(index + 1, len(rows))
    found = tallies.summary()
    found["heads"] = score_heads(decoder, without=_no_words(tokenizer, decoder))
    tokens = rows[0].tokens_1T[0].tolist()
    wanted = dict.fromkeys([*tokens[: options.shown], *options.nearest])
    table_VH = decoder.embedding.tokens.weight[: decoder.model.vocab_size]
    found["nearest"] = nearest_tokens(table_VH, list(wanted), options.top)
    named = {*tokens, *_named(found)}
    whole = {
        "model": _sizes(decoder),
        "vocabulary": {token: text_of(tokenizer, token) for token in sorted(named)},
        "tokens": tokens,
        **found,
    }
    return {name: _finite(part) for name, part in whole.items()}


def _finite(part: Any) -> Any:
    """The same with None for every number that JSON has not."""
    if isinstance(part, float):
        return finite(part)
    if isinstance(part, dict):
        return {name: _finite(each) for name, each in part.items()}
    return [_finite(each) for each in part] if isinstance(part, (list, tuple)) else part


@dataclass
class _Tallies:
    """All that is counted while rows are read."""

    decoder: Decoder
    shown: int
    losses: Losses
    logit: LensTally
    tuned: LensTally | None
    residual: ResidualTally
    experts: ExpertTally
    attention: list[Any] = field(default_factory=list)
    largest: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(decoder: Decoder, options: InspectionOptions) -> _Tallies:
        model, shown = decoder.model, options.shown
        return _Tallies(
            decoder=decoder,
            shown=shown,
            losses=Losses(options.top),
            logit=LensTally(decoder, shown),
            tuned=None if options.lens is None else LensTally(decoder, shown, options.lens),
            residual=ResidualTally(adds=model.norm_position == "pre"),
            experts=ExpertTally(model.moe, shown),
        )

    def read(self, row: Row) -> None:
        """One forward of the model, watched everywhere."""
        first, decoder = not self.attention, self.decoder
        with ExitStack() as watch:
            stream = watch.enter_context(hooks.residual_stream(decoder))
            branches = watch.enter_context(hooks.branch_outputs(decoder))
            logits = watch.enter_context(hooks.router_logits(decoder))
            largest = watch.enter_context(hooks.largest_values(decoder))
            if first:
                weights = watch.enter_context(hooks.attention_weights(decoder, self.shown))
            log_probabilities_TV = row.logits(decoder)[0].float().log_softmax(-1)
        for site, value in largest.items():
            before = self.largest.get(site)
            self.largest[site] = value if before is None else torch.maximum(before, value)
        if first:
            self.attention = [_thousandths(weights[block][0]) for block in sorted(weights)]
        self.losses.add(log_probabilities_TV, row)
        for lens in (self.logit, self.tuned):
            if lens is not None:
                lens.add(stream, log_probabilities_TV, row)
        self.residual.add(stream, branches)
        self.experts.add(logits)

    def summary(self) -> Found:
        return {
            "losses": self.losses.summary(),
            "lenses": {
                "logit": self.logit.summary(),
                "tuned": None if self.tuned is None else self.tuned.summary(),
            },
            "attention": self.attention,
            "residual": self.residual.summary(),
            "experts": self.experts.summary(),
            "overflow": overflow_summary(self.largest),
        }


def _thousandths(weights_NTT: Tensor) -> list[list[list[int]]]:
    """The lower triangle, what a token sees, in whole parts of PARTS."""
    parts = (weights_NTT * PARTS).nan_to_num().round().to(torch.int64).tolist()
    return [[row[: index + 1] for index, row in enumerate(head)] for head in parts]


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """A token as it reads behind other text; its name where it is no text of its own."""
    anchor = tokenizer.encode("a")
    text = decode_new(tokenizer, anchor, [token])
    return tokenizer.name_of(token) if not text or "\ufffd" in text else text


def _no_words(tokenizer: Tokenizer, decoder: Decoder) -> list[int]:
    """Ids that stand for no text, and those that only the model has."""
    special = tokenizer.special
    around = {*special.stops, *special.start, *special.documents.begin, special.documents.end}
    return [*around, *range(tokenizer.vocab_size, decoder.model.vocab_size)]


def _named(found: Found) -> Iterable[int]:
    """All ids that something found names."""
    yield from ids_in(found["losses"]["predictions"])
    for lens in found["lenses"].values():
        for place in () if lens is None else lens["predictions"]:
            yield from ids_in(place)
    for token, others in found["nearest"].items():
        yield from (token, *(int(each) for each, _ in others))


def _sizes(decoder: Decoder) -> dict[str, int]:
    model = decoder.model
    return {
        "blocks": model.num_layers,
        "heads": model.num_heads,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "sequence_length": model.sequence_length,
        "experts": model.moe.num_experts,
    }
