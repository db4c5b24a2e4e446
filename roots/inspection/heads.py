"""What heads do with a text that comes twice: find induction heads and those they are built from.

A sequence of random tokens, none twice, is followed by itself. There is nothing to know about it
but that it repeats, so that whatever is predicted of the second half is copied from the first
(Olsson et al. 2022, "In-context learning and induction heads"). Of a head that attends

    to the token before its own                         previous     a[t, t - 1]
    to the token behind its own last occurrence         induction    a[t, t - N + 1], t >= N
    to its own last occurrence                          duplicate    a[t, t - N], t >= N
    to the first token of the row, as one does nothing  first        a[t, 0], t > 0

the mean attention there is its score, of N random tokens that come twice. It is told as a head of
that kind from NAMED_FROM on.

Legend: B rows, T = 2 N tokens, S keys, L blocks, n heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem
from roots.inspection.hooks import attention_weights
from roots.inspection.losses import nats_of_row
from roots.inspection.rows import Row
from roots.models.decoder import Decoder

KINDS = ("induction", "previous", "duplicate", "first")
# Attention to a place that a head could not hit so often by chance.
NAMED_FROM = 0.4
# Tokens that are repeated, at most, and sequences of them.
LENGTH = 48
ROWS = 4
SEED = 1234
# With fewer a head that looks at few tokens would hit the place by chance.
LEAST_LENGTH = 4


def repeated_length(model: ModelConfig) -> int:
    """How many random tokens are repeated: what the model was trained to see at once allows."""
    reach = min(model.sequence_length, model.window or model.sequence_length)
    return min(LENGTH, reach // 2, model.vocab_size - 1)


def repeated_tokens(
    model: ModelConfig, *, length: int, rows: int, seed: int, without: Sequence[int] = ()
) -> Tensor:
    """tokens_BT, each row `length` different random tokens, twice; none of `without`."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.ones(model.vocab_size)
    allowed[list(without)] = 0.0
    once_BN = torch.multinomial(allowed.expand(rows, -1), length, generator=generator)
    return torch.cat((once_BN, once_BN), dim=1)


@torch.no_grad()
def score_heads(
    decoder: Decoder, *, without: Sequence[int] = (), length: int = 0
) -> dict[str, Any]:
    """Scores by kind [L][n], the heads that have a name, and the mean loss of both halves.

    without: ids that are no words, such as the end of a document
    length:  tokens that are repeated; 0: as many as the model allows, at most LENGTH
    Raises RootsError for a model that sees too few tokens at once for anything to repeat.
    """
    length = length or repeated_length(decoder.model)
    if length < LEAST_LENGTH:
        rule = f"must be {2 * LEAST_LENGTH} or more for a sequence to be repeated in it"
        reach = decoder.model.window or decoder.model.sequence_length
        raise RootsError(problem("tokens that the model sees at once", reach, rule, "use another"))
    device = decoder.embedding.tokens.weight.device
    tokens_BT = repeated_tokens(
        decoder.model, length=length, rows=ROWS, seed=SEED, without=without
    ).to(device)
    total: dict[str, Tensor] = {}
    losses = torch.zeros(2, dtype=torch.float64)
    for tokens_1T in tokens_BT.split(1):
        row = Row.of_document(tokens_1T)
        with attention_weights(decoder) as weights:
            nats_T = nats_of_row(row.logits(decoder)[0].float().log_softmax(-1), row).double()
        losses += torch.stack((nats_T[: length - 1].mean(), nats_T[length:].mean())).cpu() / ROWS
        for kind, scores_Ln in scores_by_kind(weights, length).items():
            total[kind] = total.get(kind, 0.0) + scores_Ln / ROWS
    scores = {kind: total[kind].cpu() for kind in KINDS}
    return {
        "length": length,
        "rows": ROWS,
        "losses": losses.tolist(),
        "scores": {
            kind: [[round(each, 4) for each in row] for row in scores_Ln.tolist()]
            for kind, scores_Ln in scores.items()
        },
        "named": named_heads(scores),
    }


def scores_by_kind(weights: dict[int, Tensor], length: int) -> dict[str, Tensor]:
    """Mean attention of every head to the place of each kind, [L, n], of one row of 2 N tokens."""
    weights_LnTS = torch.stack([weights[block][0] for block in sorted(weights)])

    def along(offset: int, start: int) -> Tensor:
        diagonal_LnT = weights_LnTS.diagonal(offset=-offset, dim1=-2, dim2=-1)
        # Entry t of a diagonal belongs to the query t + offset.
        return diagonal_LnT[..., max(start - offset, 0) :].mean(-1)

    return {
        "induction": along(length - 1, length),
        "previous": along(1, 1),
        "duplicate": along(length, length),
        "first": weights_LnTS[..., 1:, 0].mean(-1),
    }


def named_heads(scores: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The heads whose score of a kind reaches NAMED_FROM, by kind, the highest score first."""
    named = []
    for kind in KINDS:
        found = [
            {"kind": kind, "block": block, "head": head, "score": round(float(score), 4)}
            for block, row in enumerate(scores[kind])
            for head, score in enumerate(row)
            if score >= NAMED_FROM
        ]
        named += sorted(found, key=lambda each: -float(each["score"]))
    return named
