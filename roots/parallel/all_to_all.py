"""Rows sent to and fro between the ranks of an axis: all-to-all with uneven shares.

Legend: M rows here before, R rows here after, H width; S ranks of the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from roots.parallel.mesh import Axis


def exchange_rows(
    rows_MH: Tensor, send_rows: Sequence[int], receive_rows: Sequence[int], axis: Axis
) -> Tensor:
    """Send `send_rows[s]` consecutive rows to rank s; rows_RH, those received, ordered by sender.

    The inverse is the same call with the two counts exchanged. Communication: forward one
    all-to-all, backward the one of the gradient the other way; identity on an axis of size 1.
    """
    if axis.group is None:
        return rows_MH
    return _ExchangeRows.apply(rows_MH, list(send_rows), list(receive_rows), axis)


def exchange_counts(counts_SE: Tensor, axis: Axis) -> Tensor:
    """Row s goes to rank s: the result's row s is what rank s sent here. Outside autograd."""
    if axis.group is None:
        return counts_SE
    received_SE = torch.empty_like(counts_SE)
    dist.all_to_all_single(received_SE, counts_SE.contiguous(), group=axis.group)
    return received_SE


class _ExchangeRows(Function):
    @staticmethod
    def forward(
        ctx: Any, rows_MH: Tensor, send_rows: list[int], receive_rows: list[int], axis: Axis
    ) -> Tensor:
        ctx.send_rows, ctx.receive_rows, ctx.axis = send_rows, receive_rows, axis
        return _all_to_all(rows_MH, send_rows, receive_rows, axis)

    @staticmethod
    def backward(ctx: Any, d_rows_RH: Tensor) -> tuple[Tensor, None, None, None]:
        d_rows_MH = _all_to_all(d_rows_RH, ctx.receive_rows, ctx.send_rows, ctx.axis)
        return d_rows_MH, None, None, None


def _all_to_all(rows: Tensor, send_rows: list[int], receive_rows: list[int], axis: Axis) -> Tensor:
    received = rows.new_empty((sum(receive_rows), *rows.shape[1:]))
    dist.all_to_all_single(received, rows.contiguous(), receive_rows, send_rows, group=axis.group)
    return received
