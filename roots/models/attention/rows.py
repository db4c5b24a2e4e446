"""Keys and values of rows that are read each at its own pace, in blocks.

One forward pass reads a piece of any number of rows: a prompt of one, a part of the prompt of
another, one new token of the rest. The pieces stand behind one another in a single row of N tokens,
so that nothing is padded and every weight is read once; only attention tells them apart.

Legend: N tokens of all pieces, T tokens of one, S tokens of its row so far, k this rank's key/value
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.parallel.mesh import Axis

# Tokens that a row has room for grow by so many; what is copied then is 1 / 64 of what attention
# reads between two of them.
BLOCK_TOKENS = 64


class Span(NamedTuple):
    """`count` tokens of `row`, which has read `past` before; in the packed row from `begin` on."""

    row: int
    past: int
    count: int
    begin: int

    @property
    def place(self) -> slice:
        """Where they stand in the packed row."""
        return slice(self.begin, self.begin + self.count)


@dataclass(frozen=True, eq=False)
class Spans:
    """All pieces of one forward pass; positions_1N: of every token in its row, int64."""

    each: tuple[Span, ...]
    positions_1N: Tensor


class RowsLayer:
    """Keys and values of one layer: of every row, room for a number of blocks.

    `past`: what the forward pass under way reads.
    """

    def __init__(
        self, heads: int, head_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (heads, head_size)
        self._dtype = dtype
        self._device = device
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self.past = Spans((), torch.empty(1, 0, dtype=torch.int64, device=device))

    @property
    def held(self) -> int:
        """Tokens there is room for."""
        return sum(k_SkD.shape[0] for k_SkD, _ in self._rows.values())

    def extend(self, span: Span, k_1TkD: Tensor, v_1TkD: Tensor) -> tuple[Tensor, Tensor]:
        """Add the piece to its row; return all keys and values so far as views, [1, S, k, D]."""
        stop = span.past + span.count
        held = self._rows.get(span.row)
        if held is None or held[0].shape[0] < stop:
            held = self._grown(held, span.past, stop)
            self._rows[span.row] = held
        for room_SkD, new_1TkD in zip(held, (k_1TkD, v_1TkD), strict=True):
            room_SkD[span.past : stop] = new_1TkD[0]
        k_SkD, v_SkD = held
        return k_SkD[None, :stop], v_SkD[None, :stop]

    def _grown(
        self, held: tuple[Tensor, Tensor] | None, length: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        """Room for `stop` tokens, the first `length` those of before."""
        shape = (blocks_of(stop) * BLOCK_TOKENS, *self._shape)
        k_SkD, v_SkD = (
            torch.empty(shape, dtype=self._dtype, device=self._device) for _ in range(2)
        )
        if held is not None:
            k_SkD[:length] = held[0][:length]
            v_SkD[:length] = held[1][:length]
        return k_SkD, v_SkD

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` have read the first `length` tokens of `source`."""
        self._rows[target] = self._grown(self._rows[source], length, length)

    def remove(self, row: int) -> None:
        """Forget a row."""
        self._rows.pop(row, None)


class Rows:
    """What rows have read, on this rank: one RowsLayer for each block it holds.

    Memory: 2 x layers x local key/value heads x head size elements a token, in whole blocks of
    BLOCK_TOKENS. `past` is what the forward pass under way reads.
    """

    def __init__(self, layers: Sequence[RowsLayer], device: torch.device) -> None:
        self.layers = list(layers)
        self.past = Spans((), torch.empty(1, 0, dtype=torch.int64, device=device))
        self._lengths: dict[int, int] = {}
        self._next = 0
        self._device = device

    @staticmethod
    def of(
        model: ModelConfig,
        axis: Axis,
        *,
        layers: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Rows:
        """No rows yet, of `layers` blocks whose heads are cut over `axis`."""
        heads = model.kv_heads // axis.size
        made = [RowsLayer(heads, model.head_size, dtype, device) for _ in range(layers)]
        return Rows(made, device)

    @property
    def blocks(self) -> int:
        """Blocks that all rows together take, of every layer."""
        return sum(blocks_of(length) for length in self._lengths.values())

    def __len__(self) -> int:
        return len(self._lengths)

    def length(self, row: int) -> int:
        """Tokens that a row has read."""
        return self._lengths[row]

    def add(self) -> int:
        """A row that has read nothing."""
        row, self._next = self._next, self._next + 1
        self._lengths[row] = 0
        return row

    def fork(self, source: int) -> int:
        """A row that has read what `source` has."""
        row = self.add()
        for layer in self.layers:
            layer.copy(source, row, self._lengths[source])
        self._lengths[row] = self._lengths[source]
        return row

    def remove(self, row: int) -> None:
        """Forget a row and give its blocks back."""
        del self._lengths[row]
        for layer in self.layers:
            layer.remove(row)

    def begin(self, counts: Sequence[tuple[int, int]]) -> Spans:
        """The pieces of the next forward pass: (row, tokens) of each, a row once at most."""
        spans, begin, positions = [], 0, []
        for row, count in counts:
            past = self._lengths[row]
            spans.append(Span(row, past, count, begin))
            positions.append(torch.arange(past, past + count))
            begin += count
        self.past = Spans(tuple(spans), torch.cat(positions)[None].to(self._device))
        for layer in self.layers:
            layer.past = self.past
        return self.past

    def finish(self) -> None:
        """Count what the forward pass has read."""
        for span in self.past.each:
            self._lengths[span.row] = span.past + span.count


def blocks_of(tokens: int) -> int:
    """Blocks that so many tokens of a row take."""
    return -(-tokens // BLOCK_TOKENS)
