"""What attention derives from document starts or lengths: ranges of keys, and positions.

Legend: B micro-batch, T query tokens, S key tokens, R rotary angles of a token; n is this tensor
rank's share of the heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from roots.config.model import ModelConfig
from roots.models.attention.rotary import rotary_frequencies
from roots.models.attention.rows import Spans
from roots.models.attention.score_bias import alibi_bias, distances, relative_buckets
from roots.models.options import BuildOptions
from roots.ops import KeyRanges, table_of_frequencies
from roots.parallel.mesh import Axis
from roots.parallel.placement import Placement
from roots.parallel.ring import ring_ranges

# What stands before the tokens of a forward pass: without a cache nothing, with one as many tokens
# of every row, or of each row as many as its span says.
Past = int | Spans | None


class Geometry(NamedTuple):
    """What all blocks share in one forward pass; None where a model needs none.

    cos, sin: the rotary table, with a row for every token, or with positions_BT for every position.
    stream_positions_Z: positions in the sample of this rank's stream; None: all of it, from 0 on
    context: the axis over which samples are cut, None if they are not; key ranges are those of
             whole samples (ulysses) or, if there are any, ring_ranges of every rank's keys (ring)
    causal: a token sees none behind it
    bias_1nTS: what ALiBi adds to the scores
    buckets_TS: where the relative table has what is added to the scores
    spans: where rows are read each at its own pace, the geometry of each piece; then the rest is
           the tables and positions of all their tokens
    """

    key_ranges: KeyRanges | None
    cos: Tensor | None = None
    sin: Tensor | None = None
    positions_BT: Tensor | None = None
    stream_positions_Z: Tensor | None = None
    context: Axis | None = None
    ring_ranges: tuple[KeyRanges, ...] = ()
    causal: bool = True
    bias_1nTS: Tensor | None = None
    buckets_TS: Tensor | None = None
    spans: tuple[Geometry, ...] = ()


class Positions:
    """What a stack of blocks knows of positions besides ranges of keys: tables, made once."""

    def __init__(self, model: ModelConfig, options: BuildOptions, axis: Axis) -> None:
        self._model = model
        self._dtype = options.dtype
        self._axis = axis
        self._table: tuple[Tensor, Tensor] | None = None
        self._bias: tuple[object, Tensor] | None = None

    def rotary(self, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The rotary table of at least so many positions, made once and longer when need be."""
        model = self._model
        if model.position != "rotary" or model.rotary_size == 0:
            return None
        table = self._table
        if table is None or table[0].shape[0] < num_positions or table[0].device != device:
            positions_P = torch.arange(max(num_positions, model.sequence_length), device=device)
            frequencies_R = rotary_frequencies(model, device)
            amplitude = model.rotary_scaling.amplitude
            table = table_of_frequencies(positions_P, frequencies_R, amplitude)
            if not torch.compiler.is_compiling():
                self._table = table
        return table

    def biased(
        self, geometry: Geometry, num_queries: int, num_keys: int, device: torch.device
    ) -> Geometry:
        """`geometry` with what is added to the scores of so many queries and keys."""
        if self._model.position not in ("alibi", "relative"):
            return geometry
        key = (num_queries, num_keys, device, geometry.causal)
        known = None if self._bias is None or self._bias[0] != key else self._bias[1]
        if known is None:
            known = self._bias_of(distances(num_queries, num_keys, device), geometry)
            if not torch.compiler.is_compiling():
                self._bias = key, known
        field = "buckets_TS" if self._model.position == "relative" else "bias_1nTS"
        return geometry._replace(**{field: known})

    def _bias_of(self, distances_TS: Tensor, geometry: Geometry) -> Tensor:
        model = self._model
        if model.position == "alibi":
            return alibi_bias(distances_TS, model.num_heads, self._axis, self._dtype)
        return relative_buckets(
            distances_TS,
            model.relative_buckets,
            model.relative_max_distance,
            bidirectional=not geometry.causal,
        )


class Memory:
    """The last geometry and the tensor it was built from.

    A block is handed only the stream of tensors, because pipeline stages pass nothing else. So the
    blocks of one process share a memo, and it remembers the last tensor it saw and holds it, so
    that its storage cannot be reused for others as long as it is compared with; the version counter
    catches changes in place. ZeRO-3 detaches every input of a module, which keeps storage and
    version, and hence hits. Recompute of an older micro-batch merely misses and builds the same
    tensors again. Under torch.compile nothing is remembered, because tensors have no addresses
    there: the compiler finds equal parts of its graph itself.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._key: object = None
        self._version = 0
        self._geometry = Geometry(None)

    def recall(self, tensor: Tensor, key: object, build: Callable[[], Geometry]) -> Geometry:
        """build(), or its last result if `tensor` and `key` are those of the last call."""
        if torch.compiler.is_compiling():
            return build()
        if key != self._key or not self._remembers(tensor):
            self._geometry = build()
            self._seen, self._key, self._version = tensor, key, tensor._version
        return self._geometry

    def _remembers(self, tensor: Tensor) -> bool:
        seen = self._seen
        return (
            seen is not None
            and seen.data_ptr() == tensor.data_ptr()
            and seen.shape == tensor.shape
            and seen.stride() == tensor.stride()
            and seen.device == tensor.device
            and self._version == tensor._version
        )


class GeometryMemo:
    """Builds the Geometry of causal blocks once per forward pass of a stage, for all of them."""

    def __init__(self, model: ModelConfig, options: BuildOptions, place: Placement) -> None:
        self._place = place
        self._window = model.window or 0
        self._separate_documents = options.separate_documents
        self._reset_positions = options.reset_positions
        self._positions = Positions(model, options, place.tensor)
        self._memory = Memory()

    def __call__(self, document_starts_BT: Tensor, past: Past = None) -> Geometry:
        """Geometry of T queries that follow `past` cached tokens; starts are of whole samples.

        `past` None: no cache, and the data options decide about documents and positions. With a
        cache, document starts mark left padding: they always bound attention and restart positions.
        With spans, these alone say what stands where, and document starts nothing.
        """
        if isinstance(past, Spans):
            return self._memory.recall(past.positions_1N, None, lambda: self._build_spans(past))
        if past is not None:
            return self._build(document_starts_BT, past, separate=True, reset=True)
        separate, reset = self._separate_documents, self._reset_positions
        return self._memory.recall(
            document_starts_BT, None, lambda: self._build(document_starts_BT, 0, separate, reset)
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
        geometry = Geometry(
            None,
            stream_positions_Z=place.stream_positions(num_tokens, device),
            context=place.context if place.context.size > 1 else None,
        )
        if place.context.size > 1 and place.zigzag:
            ranges = ring_ranges(starts_BS, place, separate=separate, window=self._window)
            geometry = geometry._replace(ring_ranges=ranges)
        elif separate:
            geometry = geometry._replace(key_ranges=KeyRanges.of_documents(starts_BS, num_tokens))
        geometry = self._positions.biased(geometry, num_tokens, num_tokens, device)
        table = self._positions.rotary(num_tokens, device)
        if table is None:
            return geometry
        cos, sin = table
        positions_T = place.positions(num_tokens, device)
        if reset:
            positions_BT = token_positions(starts_BS, 0, reset, positions_T)
            return geometry._replace(cos=cos, sin=sin, positions_BT=positions_BT)
        return geometry._replace(cos=cos[positions_T], sin=sin[positions_T])

    @torch.no_grad()
    def _build_spans(self, spans: Spans) -> Geometry:
        """Geometry of pieces of rows, which see what their row has read and themselves."""
        positions_1N, device = spans.positions_1N, spans.positions_1N.device
        longest = max(span.past + span.count for span in spans.each)
        each = tuple(
            self._positions.biased(Geometry(None), span.count, span.past + span.count, device)
            for span in spans.each
        )
        table = self._positions.rotary(longest, device)
        if table is None:
            return Geometry(None, spans=each)
        cos, sin = table
        return Geometry(None, cos=cos, sin=sin, positions_BT=positions_1N, spans=each)

    @torch.no_grad()
    def _build_whole(self, starts_BT: Tensor, past: int, separate: bool, reset: bool) -> Geometry:
        num_queries, device = starts_BT.shape[1], starts_BT.device
        num_keys = past + num_queries
        key_ranges = KeyRanges.of_documents(starts_BT, num_keys) if separate else None
        geometry = self._positions.biased(Geometry(key_ranges), num_queries, num_keys, device)
        table = self._positions.rotary(num_keys, device)
        if table is None:
            return geometry
        cos, sin = table
        if reset:
            positions_BT = token_positions(starts_BT, past, reset)
            return geometry._replace(cos=cos, sin=sin, positions_BT=positions_BT)
        return geometry._replace(cos=cos[past:], sin=sin[past:])


class LengthMemo:
    """Builds, once per forward pass of a stage, the Geometry of attention to padded rows.

    Of a row the first `length` tokens can be seen, by every query: its own, when it is an encoder
    that attends to itself, or those of a decoder that reads it, which know nothing of positions.
    """

    def __init__(
        self,
        model: ModelConfig,
        options: BuildOptions,
        axis: Axis,
        *,
        positions: bool = True,
    ) -> None:
        self._positions = Positions(model, options, axis) if positions else None
        self._memory = Memory()

    def __call__(self, lengths_B: Tensor, num_queries: int) -> Geometry:
        """Geometry of so many queries a row; with positions, they are the row itself."""
        return self._memory.recall(
            lengths_B, num_queries, lambda: self._build(lengths_B, num_queries)
        )

    @torch.no_grad()
    def _build(self, lengths_B: Tensor, num_queries: int) -> Geometry:
        bounds_B2 = torch.stack((torch.zeros_like(lengths_B), lengths_B), dim=-1)
        bounds_BT2 = bounds_B2.to(torch.int32)[:, None].expand(-1, num_queries, -1)
        geometry = Geometry(KeyRanges(bounds_BT2.contiguous(), complete=True), causal=False)
        if self._positions is None:
            return geometry
        device = lengths_B.device
        geometry = self._positions.biased(geometry, num_queries, num_queries, device)
        table = self._positions.rotary(num_queries, device)
        return geometry if table is None else geometry._replace(cos=table[0], sin=table[1])


def token_positions(
    document_starts_BT: Tensor, past: int | Spans, reset: bool, here_T: Tensor | None = None
) -> Tensor:
    """Positions of T tokens that follow `past` others: [T], or [B, T] from the document's start.

    here_T: only of the tokens that stand at these places in the sample.
    """
    if isinstance(past, Spans):
        return past.positions_1N
    if here_T is not None:
        return (here_T - document_starts_BT[:, here_T]).clamp_min(0) if reset else here_T
    device = document_starts_BT.device
    positions_T = torch.arange(past, past + document_starts_BT.shape[1], device=device)
    # Before the start lies only padding, whose position matters to nobody but must be valid.
    return (positions_T - document_starts_BT).clamp_min(0) if reset else positions_T
