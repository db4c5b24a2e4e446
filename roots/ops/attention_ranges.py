"""Which keys a query may see: a range of key positions for every query.

Key s is visible to query t of row b iff lo <= s < hi with (lo, hi) = ranges[b, t]; attention cuts
the range further if it is causal or has a window. Documents packed in a row are ranges, and so is
left padding; a range takes two numbers a query where a mask takes one a query and key.

Legend: B rows, T queries, S keys, E ends of documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from roots.errors import RootsError, problem


class KeyRanges:
    """Ranges of visible keys, built once a forward pass and shared between its layers.

    bounds_BT2: int32, (lo, hi) of every query; they need be neither sorted nor within the keys.
    complete: the causal rule and the window are in the bounds already, counted inside documents;
              attention then applies none of its own.
    The additive mask that torch's kernel wants is made when asked for, and the last one kept.
    """

    def __init__(self, bounds_BT2: Tensor, *, complete: bool = False) -> None:
        if bounds_BT2.dtype != torch.int32 or bounds_BT2.dim() != 3 or bounds_BT2.shape[2] != 2:
            found = f"{bounds_BT2.dtype}{list(bounds_BT2.shape)}".removeprefix("torch.")
            rule = "must be int32 of shape [rows, queries, 2]"
            raise RootsError(problem("key ranges", found, rule, "pass (lo, hi) for every query"))
        self.bounds_BT2 = bounds_BT2
        self.complete = complete
        self._mask: tuple[object, Tensor] | None = None

    @staticmethod
    def of_documents(
        document_starts_BT: Tensor, num_keys: int, *, causal: bool = True
    ) -> KeyRanges:
        """Ranges from the key position of the first token of every query's document, int64 [B, T].

        Causal: from there on; a start that all queries of a row share marks left padding, and there
        may be more keys than queries, as in decoding. Not causal: the queries of equal starts see
        each other, starts do not decrease along a row, and S = T.
        Raises RootsError if S != T without causal, where the documents of the keys are not known.
        """
        num_queries = document_starts_BT.shape[1]
        if causal:
            lo_BT, hi_BT = document_starts_BT, torch.full_like(document_starts_BT, num_keys)
        elif num_queries == num_keys:
            starts_BT = document_starts_BT.contiguous()
            lo_BT = torch.searchsorted(starts_BT, starts_BT)
            hi_BT = torch.searchsorted(starts_BT, starts_BT, right=True)
        else:
            rule = f"must equal the {num_queries} queries for documents without a causal mask"
            raise RootsError(problem("number of keys", num_keys, rule, "pass no document starts"))
        return KeyRanges(torch.stack((lo_BT, hi_BT), dim=-1).to(torch.int32))

    @staticmethod
    def of_lengths(
        query_ends_E: Tensor,
        key_ends_E: Tensor | None = None,
        *,
        num_queries: int,
        causal: bool = True,
        window: int = 0,
    ) -> KeyRanges:
        """Ranges of documents that are packed in one row, q [1, T, N, D] and k, v [1, S, K, D].

        query_ends_E, key_ends_E: cumulative lengths, int [E], 0 first; key_ends_E None: the same
        (self-attention). Causal: the last query of a document sees its last key, the one before the
        last but one, ...; window > 0: only that many keys up to there. Queries from the last end on
        are padding and see nothing. The ranges are complete.
        Raises RootsError if the two have not the same number of documents.
        """
        key_ends_E = query_ends_E if key_ends_E is None else key_ends_E
        if query_ends_E.shape != key_ends_E.shape:
            rule = f"must be the {len(query_ends_E)} of the queries"
            fix = "pass cumulative lengths of the same documents"
            raise RootsError(problem("cumulative lengths of keys", len(key_ends_E), rule, fix))
        ends_E, key_ends_E = query_ends_E.to(torch.int64), key_ends_E.to(torch.int64)
        positions_T = torch.arange(num_queries, device=ends_E.device)
        # Document d holds the queries from ends[d] to ends[d + 1].
        number_T = torch.searchsorted(ends_E, positions_T, right=True)
        outside_T = number_T >= len(ends_E)
        number_T = number_T.clamp_max(len(ends_E) - 1)
        lo_T, hi_T = key_ends_E[number_T - 1], key_ends_E[number_T]
        # One past the key at which a query stands.
        own_T = hi_T - (ends_E[number_T] - 1 - positions_T)
        if window > 0:
            lo_T = torch.maximum(lo_T, own_T - window)
        if causal:
            hi_T = torch.minimum(hi_T, own_T)
        bounds_T2 = torch.stack((lo_T, hi_T.masked_fill(outside_T, 0)), dim=-1)
        return KeyRanges(bounds_T2[None].to(torch.int32), complete=True)

    def visible(self, num_keys: int, causal: bool, window: int) -> Tensor:
        """Return bool [B, T, S]: which keys are in the ranges, and visible besides."""
        bounds_BT2 = self.bounds_BT2
        keys_S = torch.arange(num_keys, device=bounds_BT2.device)
        visible_BTS = (keys_S >= bounds_BT2[..., :1]) & (keys_S < bounds_BT2[..., 1:])
        num_queries = bounds_BT2.shape[1]
        rule_TS = visible_keys(num_queries, num_keys, causal, window, bounds_BT2.device)
        return visible_BTS if rule_TS is None else visible_BTS & rule_TS

    def additive_mask(self, num_keys: int, causal: bool, window: int, dtype: torch.dtype) -> Tensor:
        """Return [B, 1, T, S] in `dtype`: 0 where visible, -inf elsewhere."""
        wanted = (num_keys, causal, window, dtype)
        if self._mask is None or self._mask[0] != wanted:
            visible_BTS = self.visible(num_keys, causal, window)
            self._mask = wanted, additive(visible_BTS, dtype)[:, None]
        return self._mask[1]


def visible_keys(
    num_queries: int, num_keys: int, causal: bool, window: int, device: torch.device
) -> Tensor | None:
    """Return bool [T, S], or None if every key is visible.

    Query t stands at key position p = t + S - T: s <= p if causal, s > p - window if window > 0.
    """
    keys_S = torch.arange(num_keys, device=device)
    positions_T1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    visible_TS = keys_S <= positions_T1 if causal else None
    if window > 0:
        inside_TS = keys_S > positions_T1 - window
        visible_TS = inside_TS if visible_TS is None else visible_TS & inside_TS
    return visible_TS


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf)
