"""The tokens whose vectors in the embedding lie nearest.

Legend: V vocabulary, H hidden, N tokens asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roots.errors import RootsError, problem
from roots.tokenizer.tokenizer import Tokenizer

Neighbours = dict[int, list[list[float]]]


@torch.no_grad()
def nearest_tokens(weight_VH: Tensor, tokens: Sequence[int], count: int) -> Neighbours:
    """Of every token the `count` others of the largest cosine, as [id, cosine] each, best first."""
    if not tokens:
        return {}
    table_VH = weight_VH.float()
    table_VH = table_VH / table_VH.norm(dim=1, keepdim=True).clamp_min(1e-30)
    asked_N = torch.tensor(tokens, device=weight_VH.device)
    cosines_NV = table_VH[asked_N] @ table_VH.T
    # A token is its own nearest one.
    cosines_NV.scatter_(1, asked_N[:, None], -torch.inf)
    values, ids = cosines_NV.topk(min(count, len(table_VH) - 1))
    return {
        token: [[each, round(cosine, 4)] for each, cosine in zip(*pair, strict=True)]
        for token, pair in zip(tokens, zip(ids.tolist(), values.tolist(), strict=True), strict=True)
    }


def token_named(tokenizer: Tokenizer, name: str) -> int:
    """The one token that a text is. Raises RootsError for a text of several, which it names."""
    ids = tokenizer.encode(name, special_tokens=True)
    if len(ids) == 1:
        return ids[0]
    parts = ", ".join(repr(tokenizer.name_of(token)) for token in ids)
    rule = f"is {len(ids)} tokens ({parts})" if ids else "is no token"
    raise RootsError(problem("--nearest", name, rule, "give a text of one, with its space if any"))
