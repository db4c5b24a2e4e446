"""Beam search with length penalty, over anything that gives next-token log-probabilities.

Of every row the N best unfinished texts ("beams") are continued by all tokens at once; of the
N V results the (1 + E) N best are looked at, where E tokens end a text, so that N unfinished ones
remain even if all the others end. A text that
ends within the N best is finished, with the score

    sum of log-probabilities / (number of new tokens, the end included) ^ length_penalty

(Wu et al., arXiv:1609.08144, section 7, in the form that transformers has). A row is done when its
best beam, were it to end now, no longer beats the worst of N finished texts; after the last token
that it may have its N best beams count as finished too. Rows do not look at each other, so a batch
writes what each of its rows would alone. With one beam the first end is the end: greedy decoding.
The same rules as transformers' `generate` with early_stopping=False, so that the same model writes
the same texts.

Legend: B rows, N beams of a row, R = B N, V vocabulary, C = (1 + E) N candidates, L tokens written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.generation.limits import Ends, StopReason, all_ends

# Worse than any sum of log-probabilities, and finite, so that it can be divided and compared.
_NEVER = -1e9


class BeamModel(Protocol):
    """Reads texts token by token. The beams of a row stand one after the other."""

    def next_log_probabilities(self, tokens_R: Tensor | None) -> Tensor:
        """Append one token to every text (None: the first call, nothing new) -> float32 [R, V]."""

    def reorder(self, rows_R: Tensor) -> None:
        """Continue text r from what is now text rows_R[r]: of the same row, a cache's gather.

        Not called with one beam, which is always continued from itself.
        """


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """How texts are searched.

    num_beams:      texts kept for every row; 1 is greedy decoding
    length_penalty: exponent of the length that a score is divided by; 0: none, above: longer texts
    max_new_tokens: tokens written at most, the end included
    Raises RootsError with every field that is out of range.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        lines = []
        for name, value in (("beams", self.num_beams), ("max_new_tokens", self.max_new_tokens)):
            if value < 1:
                lines.append(problem(name, value, "must be 1 or more", "raise it"))
        if not math.isfinite(self.length_penalty):
            rule = "must be a finite number"
            lines.append(problem("length_penalty", self.length_penalty, rule, "use 1 or near it"))
        if lines:
            raise RootsError(*lines)


@dataclass(frozen=True)
class Hypothesis:
    """The best text found for a row: its tokens without the end, its score, why it stops."""

    token_ids: tuple[int, ...]
    score: float
    stopped_by: StopReason


@dataclass
class _Beams:
    """Texts of all rows and their scores: tokens_BNL int64 and scores_BN.

    Scores are sums of log-probabilities for running beams, final for finished ones.
    """

    tokens_BNL: Tensor
    scores_BN: Tensor


def beam_search(
    model: BeamModel,
    options: BeamOptions,
    *,
    rooms: Sequence[int | None],
    end: Ends,
    device: torch.device,
) -> list[Hypothesis]:
    """Search the best text of every row, in one batch; `end` is what ends it.

    rooms: tokens that a row has positions for, one number a row; None: as many as asked for
    Raises RootsError for a vocabulary of fewer than 1 + E tokens.
    """
    ends = all_ends(end)
    ends_E = torch.tensor(sorted(ends), device=device)
    shape = (len(rooms), options.num_beams)
    limits = row_limits(options, rooms)
    limits_B1 = torch.tensor(limits, device=device)[:, None]
    empty_BNL = torch.zeros((*shape, 0), dtype=torch.int64, device=device)
    scores_BN = torch.full(shape, _NEVER, device=device)
    # All beams of a row start alike, so only the first may be continued.
    running = _Beams(empty_BNL, scores_BN.clone())
    running.scores_BN[:, 0] = 0.0
    finished = _Beams(empty_BNL.clone(), scores_BN)
    open_B1 = torch.ones_like(limits_B1, dtype=torch.bool)
    tokens_R: Tensor | None = None
    for length in range(1, max(limits) + 1):
        log_p_RV = model.next_log_probabilities(tokens_R)
        candidates, parents_BC = _candidates(running, log_p_RV, len(ends))
        # At the last step of a row every text of it ends where it is.
        ends_BC = torch.isin(candidates.tokens_BNL[..., -1], ends_E) | (limits_B1 == length)
        penalty = float(length) ** options.length_penalty
        finished = _with_finished(finished, candidates, ends_BC, open_B1, penalty)
        running, parents_BN = _unfinished(candidates, parents_BC, ends_BC, options.num_beams)
        best_B1 = running.scores_BN[:, :1] / penalty
        worst_B1 = finished.scores_BN.min(dim=1, keepdim=True).values
        open_B1 = open_B1 & (best_B1 > worst_B1) & (limits_B1 > length)
        if options.num_beams == 1:
            open_B1 = open_B1 & (worst_B1 <= _NEVER)
        if not bool(open_B1.any()):
            break
        if options.num_beams > 1:
            offsets_B1 = torch.arange(shape[0], device=device)[:, None] * options.num_beams
            model.reorder((parents_BN + offsets_B1).flatten())
        tokens_R = running.tokens_BNL[..., -1].flatten()
    return _best(finished, ends, options, rooms)


def row_limits(options: BeamOptions, rooms: Sequence[int | None]) -> list[int]:
    """Tokens that each row may have: those asked for, or fewer where its room ends before."""
    wanted = options.max_new_tokens
    return [wanted if room is None else min(room, wanted) for room in rooms]


def _candidates(running: _Beams, log_p_RV: Tensor, ends: int) -> tuple[_Beams, Tensor]:
    """The C best continuations of every row, best first, and the beam each one continues."""
    rows, beams = running.scores_BN.shape
    vocab = log_p_RV.shape[-1]
    wanted = max(2, 1 + ends)
    if vocab < wanted:
        rule = "leaves nothing to choose from"
        raise RootsError(problem("vocabulary", vocab, rule, "use a larger vocabulary"))
    totals_BNV = log_p_RV.view(rows, beams, vocab) + running.scores_BN[..., None]
    scores_BC, places_BC = totals_BNV.flatten(1).topk(wanted * beams, dim=1)
    parents_BC = places_BC // vocab
    tokens_BCL = _gather(running.tokens_BNL, parents_BC)
    written_BC1 = (places_BC % vocab)[..., None]
    return _Beams(torch.cat([tokens_BCL, written_BC1], dim=-1), scores_BC), parents_BC


def _unfinished(
    candidates: _Beams, parents_BC: Tensor, ends_BC: Tensor, beams: int
) -> tuple[_Beams, Tensor]:
    """The N best candidates that did not end, and the beams they continue."""
    scores_BC = candidates.scores_BN + ends_BC * _NEVER
    scores_BN, chosen_BN = scores_BC.topk(beams, dim=1)
    kept = _Beams(_gather(candidates.tokens_BNL, chosen_BN), scores_BN)
    return kept, parents_BC.gather(1, chosen_BN)


def _with_finished(
    finished: _Beams, candidates: _Beams, ends_BC: Tensor, open_B1: Tensor, penalty: float
) -> _Beams:
    """The N best of what was finished and what has just ended among the N best candidates."""
    beams = finished.scores_BN.shape[1]
    allowed_BC = ends_BC & open_B1
    allowed_BC[:, beams:] = False
    scores_BC = (candidates.scores_BN / penalty).masked_fill(~allowed_BC, _NEVER)
    # A finished text has its length for itself; behind it stands what never is a token.
    gap = candidates.tokens_BNL.shape[-1] - finished.tokens_BNL.shape[-1]
    padded_BNL = torch.nn.functional.pad(finished.tokens_BNL, (0, gap), value=-1)
    scores_BM = torch.cat([finished.scores_BN, scores_BC], dim=1)
    tokens_BML = torch.cat([padded_BNL, candidates.tokens_BNL], dim=1)
    scores_BN, chosen_BN = scores_BM.topk(beams, dim=1)
    return _Beams(_gather(tokens_BML, chosen_BN), scores_BN)


def _best(
    finished: _Beams,
    ends: frozenset[int],
    options: BeamOptions,
    rooms: Sequence[int | None],
) -> list[Hypothesis]:
    results = []
    for tokens, score, room in zip(
        finished.tokens_BNL[:, 0].tolist(), finished.scores_BN[:, 0].tolist(), rooms, strict=True
    ):
        text = [token for token in tokens if token >= 0]
        reason: StopReason = "max_new_tokens"
        if text and text[-1] in ends:
            text.pop()
            reason = "end_of_document"
        elif room is not None and room <= options.max_new_tokens:
            reason = "sequence_length"
        results.append(Hypothesis(tuple(text), score, reason))
    return results


def _gather(tokens_BNL: Tensor, chosen_BM: Tensor) -> Tensor:
    """tokens_BML of the chosen texts of every row."""
    index_BML = chosen_BM[..., None].expand(-1, -1, tokens_BNL.shape[-1])
    return tokens_BNL.gather(1, index_BML)
