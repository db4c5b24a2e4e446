"""What attention derives from document starts: ranges of keys, and the rotary table of positions.

Legend: B micro-batch, T query tokens, S key tokens, R rotary angles of a token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.models.options import BuildOptions
from roots.models.rotary import rotary_frequencies
from roots.ops import KeyRanges, table_of_frequencies


class Geometry(NamedTuple):
    """What all blocks share in one forward pass; None where a model needs none.

    cos, sin: the rotary table, with a row for every token, or with positions_BT for every position.
    """

    key_ranges: KeyRanges | None
    cos: Tensor | None = None
    sin: Tensor | None = None
    positions_BT: Tensor | None = None


class GeometryMemo:
    """Builds the Geometry once per forward pass of a stage, for all blocks of the stage.

    A block is handed only the stream of tensors, because pipeline stages pass nothing else. So the
    blocks of one process share this object, and it remembers the last document starts it saw. The
    memo holds those starts, so their storage cannot be reused for others as long as it is compared
    with; the version counter catches changes in place. ZeRO-3 detaches every input of a module,
    which keeps storage and version, and hence hits. Recompute of an older micro-batch merely misses
    and builds the same tensors again. Under torch.compile nothing is remembered, because tensors
    have no addresses there: the compiler finds equal parts of its graph itself.
    """

    def __init__(self, model: ModelConfig, options: BuildOptions) -> None:
        self._rotary = model.position == "rotary" and model.rotary_size > 0
        self._model = model
        self._separate_documents = options.separate_documents
        self._reset_positions = options.reset_positions
        self._sequence_length = model.sequence_length
        self._table: tuple[Tensor, Tensor] | None = None
        self._starts_BT: Tensor | None = None
        self._version = 0
        self._geometry = Geometry(None)

    def __call__(self, document_starts_BT: Tensor, past: int | None = None) -> Geometry:
        """Geometry of T queries that follow `past` cached tokens.

        `past` None: no cache, and the data options decide about documents and positions. With a
        cache, document starts mark left padding: they always bound attention and restart positions.
        """
        if past is not None:
            return self._build(document_starts_BT, past, separate=True, reset=True)
        separate, reset = self._separate_documents, self._reset_positions
        if torch.compiler.is_compiling():
            return self._build(document_starts_BT, 0, separate, reset)
        if not self._remembers(document_starts_BT):
            self._geometry = self._build(document_starts_BT, 0, separate, reset)
            self._starts_BT = document_starts_BT
            self._version = document_starts_BT._version
        return self._geometry

    def _remembers(self, starts_BT: Tensor) -> bool:
        seen_BT = self._starts_BT
        return (
            seen_BT is not None
            and seen_BT.data_ptr() == starts_BT.data_ptr()
            and seen_BT.shape == starts_BT.shape
            and seen_BT.stride() == starts_BT.stride()
            and seen_BT.device == starts_BT.device
            and self._version == starts_BT._version
        )

    @torch.no_grad()
    def _build(self, starts_BT: Tensor, past: int, separate: bool, reset: bool) -> Geometry:
        key_ranges = None
        if separate:
            key_ranges = KeyRanges.of_documents(starts_BT, past + starts_BT.shape[1])
        if not self._rotary:
            return Geometry(key_ranges)
        cos, sin = self._table_of(past + starts_BT.shape[1], starts_BT.device)
        if reset:
            return Geometry(key_ranges, cos, sin, token_positions(starts_BT, past, reset))
        return Geometry(key_ranges, cos[past:], sin[past:])

    def _table_of(self, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rotary table of at least so many positions, made once and longer when need be."""
        table = self._table
        if table is None or table[0].shape[0] < num_positions or table[0].device != device:
            positions_P = torch.arange(max(num_positions, self._sequence_length), device=device)
            frequencies_R = rotary_frequencies(self._model, device)
            amplitude = self._model.rotary_scaling.amplitude
            table = table_of_frequencies(positions_P, frequencies_R, amplitude)
            if not torch.compiler.is_compiling():
                self._table = table
        return table


def token_positions(document_starts_BT: Tensor, past: int, reset: bool) -> Tensor:
    """Positions of T tokens that follow `past` others: [T], or [B, T] from the document's start."""
    device = document_starts_BT.device
    positions_T = torch.arange(past, past + document_starts_BT.shape[1], device=device)
    # Before the start lies only padding, whose position matters to nobody but must be valid.
    return (positions_T - document_starts_BT).clamp_min(0) if reset else positions_T
