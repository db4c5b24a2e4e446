"""Which tensors of another format make up a tensor of ROOTS: declared once, applied both ways.

A `Rule` says that one tensor of ROOTS is the concatenation of `Part`s along its first dimension. A
part names a tensor of the other format and how its dimensions are rearranged: split into `sizes`,
permuted by `order`, merged into `ours`. The inverse follows from these three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One tensor of the other format: `shape` there, `ours` as rows of the tensor of ROOTS.

    sizes, order: ours = theirs.reshape(sizes).permute(order).reshape(ours); () leaves it as it is
    take:         (dim, start, stop) of theirs.reshape(sizes) where only that much is read; such a
                  part has no inverse
    """

    name: str
    shape: Shape
    ours: Shape
    sizes: Shape = ()
    order: Shape = ()
    take: tuple[int, int, int] | None = None

    @property
    def rows(self) -> int:
        """Its extent along the first dimension of ROOTS' tensor."""
        return self.ours[0]

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Rearrange a tensor of the other format."""
        if self.take is not None:
            dim, start, stop = self.take
            return theirs.reshape(self.sizes).narrow(dim, start, stop - start).reshape(self.ours)
        if not self.order:
            return theirs.reshape(self.ours)
        return theirs.reshape(self.sizes).permute(self.order).reshape(self.ours)

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Undo `to_ours`."""
        assert self.take is None, f"{self.name} is read in parts, and never written"
        if not self.order:
            return ours.reshape(self.shape)
        permuted = [self.sizes[dim] for dim in self.order]
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return ours.reshape(permuted).permute(inverse).reshape(self.shape)


@dataclass(frozen=True)
class Rule:
    """The tensor `name` of ROOTS: its parts, below each other, and zeros up to `rows`."""

    name: str
    parts: tuple[Part, ...]
    rows: int = 0

    @property
    def shape(self) -> Shape:
        """Global shape of ROOTS' tensor."""
        filled = sum(part.rows for part in self.parts)
        return (max(filled, self.rows), *self.parts[0].ours[1:])

    @property
    def num_padding_rows(self) -> int:
        """Rows that the other format does not have."""
        return self.shape[0] - sum(part.rows for part in self.parts)

    def join(self, read: Callable[[Part], Tensor], dtype: torch.dtype) -> Tensor:
        """ROOTS' tensor in `dtype`, from the parts' tensors that `read` returns."""
        if len(self.parts) == 1 and not self.num_padding_rows:
            return self.parts[0].to_ours(read(self.parts[0])).to(dtype)
        full = torch.zeros(self.shape, dtype=dtype)
        start = 0
        for part in self.parts:
            full[start : start + part.rows] = part.to_ours(read(part))
            start += part.rows
        return full

    def rows_of(self, wanted: Part) -> tuple[int, int]:
        """The interval of ROOTS' rows that a part of this rule fills."""
        start = 0
        for part in self.parts:
            if part is wanted:
                return start, start + part.rows
            start += part.rows
        raise AssertionError(f"{wanted.name} is no part of {self.name}")


def same(name: str, *shape: int) -> Part:
    """A tensor stored alike in both formats."""
    return Part(name, shape, shape)


def transposed(name: str, out_size: int, in_size: int) -> Part:
    """A matrix that the other format stores as [in, out]."""
    return Part(name, (in_size, out_size), (out_size, in_size), (in_size, out_size), (1, 0))


def taken(name: str, sizes: Sequence[int], dim: int, interval: tuple[int, int], *rest: int) -> Part:
    """Rows stored as blocks of `sizes`, of which `interval` along block dimension `dim` is read."""
    kept = [*sizes]
    kept[dim] = interval[1] - interval[0]
    shape, ours = (math.prod(sizes), *rest), (math.prod(kept), *rest)
    return Part(name, shape, ours, (*sizes, *rest), take=(dim, *interval))


def permuted(name: str, sizes: Sequence[int], order: Sequence[int], *rest: int) -> Part:
    """Rows stored as blocks of `sizes` in another order; `rest` are the dimensions behind them."""
    count = len(sizes)
    shape = (math.prod(sizes), *rest)
    others = range(count, count + len(rest))
    return Part(name, shape, shape, (*sizes, *rest), (*order, *others))
