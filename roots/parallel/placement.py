"""Which tokens of a sample a rank holds, under context and sequence parallelism.

The context axis cuts every sample. Contiguously, rank r of N holds part r of N equal parts; in
zigzag order, of 2N equal parts, parts r and 2N - 1 - r: under a causal mask every rank then has the
same work, since early tokens see little and late ones much. With sequence parallelism the *stream*,
which is what norms, dropout and residuals work on, holds on tensor rank t only part t of the
tokens of its context rank.

Legend: S tokens of a sample, T those of this context rank, Z those of this rank's stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roots.parallel.mesh import Axis, Mesh


@dataclass(frozen=True)
class Placement:
    """Where this rank's tokens stand. sequence: the stream is cut over `tensor` too."""

    tensor: Axis
    context: Axis
    sequence: bool = False
    zigzag: bool = False

    @staticmethod
    def on(mesh: Mesh, *, sequence: bool, zigzag: bool) -> Placement:
        """The placement of a rank of `mesh`."""
        return Placement(mesh.tensor, mesh.context, sequence and mesh.tensor.size > 1, zigzag)

    @property
    def whole(self) -> bool:
        """Whether the stream holds whole samples, so that nothing here is needed."""
        return self.context.size == 1 and not self.sequence

    def take(self, x: Tensor, dim: int) -> Tensor:
        """This context rank's part along `dim` of a tensor of whole samples.

        S must be divisible by the ranks, in zigzag order by twice as many (a rule of the config).
        """
        return (
            x if self.context.size == 1 else torch.cat(self._parts(x, dim, self.context.rank), dim)
        )

    def positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Positions in the sample of S `num_tokens` of this rank's tokens, ascending, int64 [T]."""
        return self.positions_of(self.context.rank, num_tokens, device)

    def positions_of(self, rank: int, num_tokens: int, device: torch.device) -> Tensor:
        """The same of the context rank with index `rank`."""
        positions_S = torch.arange(num_tokens, device=device)
        return torch.cat(self._parts(positions_S, 0, rank))

    def stream_positions(self, num_tokens: int, device: torch.device) -> Tensor:
        """Positions in the sample of the tokens of this rank's stream, int64 [Z]."""
        positions_T = self.positions(num_tokens, device)
        if not self.sequence:
            return positions_T
        return positions_T.chunk(self.tensor.size)[self.tensor.rank]

    def _parts(self, x: Tensor, dim: int, rank: int) -> list[Tensor]:
        size, num_tokens = self.context.size, x.shape[dim]
        numbers = (rank, 2 * size - 1 - rank) if self.zigzag and size > 1 else (rank,)
        count = size * len(numbers)
        assert num_tokens % count == 0, f"{num_tokens} tokens in {count} parts"
        length = num_tokens // count
        return [x.narrow(dim, number * length, length) for number in numbers]
