"""Keys and values of the tokens that were already read, and of the sources that are.

KVCache holds rows that are read in step, as beams are; roots/models/attention/rows.py those that
are read each at its own pace.

Legend: B rows, S capacity in tokens, T new tokens, k this rank's key/value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.errors import RootsError, problem
from roots.parallel.mesh import Axis


@dataclass
class LayerCache:
    """Keys and values of one layer, preallocated; the first `length` tokens are filled.

    `source`: keys and values of what a decoder reads besides, computed at the first call.
    """

    k_BSkD: Tensor
    v_BSkD: Tensor
    length: int = 0
    source: tuple[Tensor, Tensor] | None = None

    @property
    def past(self) -> int:
        """Tokens held of every row."""
        return self.length

    def append(self, k_BTkD: Tensor, v_BTkD: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens; return all keys and values so far as views, [B, length, k, D].

        Raises RootsError if the capacity is exceeded.
        """
        start, stop = self.length, self.length + k_BTkD.shape[1]
        if stop > self.k_BSkD.shape[1]:
            rule = f"is more than the cache's capacity of {self.k_BSkD.shape[1]} tokens"
            raise RootsError(problem("tokens", stop, rule, "make a larger KVCache"))
        self.k_BSkD[:, start:stop] = k_BTkD
        self.v_BSkD[:, start:stop] = v_BTkD
        self.length = stop
        return self.k_BSkD[:, :stop], self.v_BSkD[:, :stop]


class KVCache:
    """One LayerCache per block that writes. Filled by Decoder.forward or EncoderDecoder.decode,
    under torch.no_grad."""

    def __init__(self, layers: list[LayerCache]) -> None:
        self.layers = layers

    @staticmethod
    def allocate(
        model: ModelConfig,
        axis: Axis,
        *,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVCache:
        """An empty cache for `rows` sequences of at most `capacity` tokens.

        Memory: 2 x num_layers x rows x capacity x local key/value heads x head size elements. An
        encoder-decoder adds its sources at the first call: as many, with their length as capacity.
        """
        shape = (rows, capacity, model.kv_heads // axis.size, model.head_size)

        def empty() -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        return KVCache([LayerCache(empty(), empty()) for _ in range(model.num_layers)])

    def select_rows(self, index_B: Tensor, *, same_source: bool = False) -> None:
        """Let row i hold what row index_B[i] held, as beams do that go on from one another.

        same_source: rows i and index_B[i] read the same source, whose keys and values then stay
                     where they are instead of being copied for nothing
        """
        for layer in self.layers:
            layer.k_BSkD[:, : layer.length] = layer.k_BSkD[index_B, : layer.length]
            layer.v_BSkD[:, : layer.length] = layer.v_BSkD[index_B, : layer.length]
            if layer.source is not None and not same_source:
                k_BSkD, v_BSkD = layer.source
                layer.source = k_BSkD[index_B], v_BSkD[index_B]

    @property
    def length(self) -> int:
        """Tokens held of every row."""
        return self.layers[0].length

    @property
    def past(self) -> int:
        """Tokens held of every row."""
        return self.length
