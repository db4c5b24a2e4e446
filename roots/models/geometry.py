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
from roots.parallel.mesh import Axis
from roots.parallel.placement import Placement
from roots.parallel.ring import ring_ranges


class Geometry(NamedTuple):
    """What all blocks share in one forward pass; None where a model needs none.

    cos, sin: the rotary table, with a row for every token, or with positions_BT for every position.
    stream_positions_Z: positions in the sample of this rank's stream; None: all of it, from 0 on
    context: the axis over which samples are cut, None if they are not; key ranges are those of
             whole samples (ulysses) or, if there are any, ring_ranges of every rank's keys (ring)
    """

    key_ranges: KeyRanges | None
    cos: Tensor | None = None
    sin: Tensor | None = None
    positions_BT: Tensor | None = None
    stream_positions_Z: Tensor | None = None
    context: Axis | None = None
    ring_ranges: tuple[KeyRanges, ...] = ()


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

    def __init__(self, model: ModelConfig, options: BuildOptions, place: Placement) -> None:
        self._place = place
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
        """Geometry of T queries that follow `past` cached tokens; starts are of whole samples.

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

    def _build(self, starts_BT: Tensor, past: int, separate: bool, reset: bool) -> Geometry:
        if self._place.whole:
            return self._build_whole(starts_BT, past, separate, reset)
        assert past == 0, "generation has the whole sequence on every rank"
        return self._build_part(starts_BT, separate, reset)

    @torch.no_grad()
    def _build_part(self, starts_BS: Tensor, separate: bool, reset: bool) -> Geometry:
        """Geometry where several ranks share a sample."""
        place, num_tokens, device = self._place, starts_BS.shape[1], starts_BS.device
        key_ranges, ring, cos, sin, positions_BT = None, (), None, None, None
        if place.context.size > 1 and place.zigzag:
            window = self._model.window or 0
            ring = ring_ranges(starts_BS, place, separate=separate, window=window)
        elif separate:
            key_ranges = KeyRanges.of_documents(starts_BS, num_tokens)
        if self._rotary:
            positions_T = place.positions(num_tokens, device)
            cos, sin = self._table_of(num_tokens, device)
            if reset:
                positions_BT = token_positions(starts_BS, 0, reset, positions_T)
            else:
                cos, sin = cos[positions_T], sin[positions_T]
        return Geometry(
            key_ranges,
            cos,
            sin,
            positions_BT,
            place.stream_positions(num_tokens, device),
            place.context if place.context.size > 1 else None,
            ring,
        )

    @torch.no_grad()
    def _build_whole(self, starts_BT: Tensor, past: int, separate: bool, reset: bool) -> Geometry:
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


def token_positions(
    document_starts_BT: Tensor, past: int, reset: bool, here_T: Tensor | None = None
) -> Tensor:
    """Positions of T tokens that follow `past` others: [T], or [B, T] from the document's start.

    here_T: only of the tokens that stand at these places in the sample.
    """
    if here_T is not None:
        return (here_T - document_starts_BT[:, here_T]).clamp_min(0) if reset else here_T
    device = document_starts_BT.device
    positions_T = torch.arange(past, past + document_starts_BT.shape[1], device=device)
    # Before the start lies only padding, whose position matters to nobody but must be valid.
    return (positions_T - document_starts_BT).clamp_min(0) if reset else positions_T
