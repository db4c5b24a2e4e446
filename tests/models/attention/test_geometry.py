"""The memo of key ranges and rotary tables: built once, never stale."""

from __future__ import annotations

import torch

from roots.models.attention.geometry import GeometryMemo, token_positions
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.placement import Placement
from tests.helpers.decoders import random_inputs, small_decoder, small_model

PLACE = Placement.on(Mesh.single(), sequence=False, zigzag=False)


def memo() -> GeometryMemo:
    return GeometryMemo(small_model(position="rotary"), BuildOptions(reset_positions=True), PLACE)


def test_equal_starts_are_not_computed_twice() -> None:
    geometry = memo()
    starts = torch.zeros(2, 8, dtype=torch.int64)
    first = geometry(starts)
    assert geometry(starts).key_ranges is first.key_ranges
    # What ZeRO-3 hands to a module: a detached alias.
    assert geometry(starts.detach()).positions_BT is first.positions_BT


def test_changed_starts_are_noticed() -> None:
    geometry = memo()
    starts = torch.zeros(2, 8, dtype=torch.int64)
    before = geometry(starts)
    starts[:, 4:] = 4
    after = geometry(starts)
    assert not torch.equal(before.key_ranges.bounds_BT2, after.key_ranges.bounds_BT2)
    assert torch.equal(after.positions_BT[:, 4:], before.positions_BT[:, :4])
    assert after.cos is before.cos
    assert geometry(starts[:, :4]).key_ranges.bounds_BT2.shape == (2, 4, 2)
    assert geometry(starts.clone()).key_ranges is not after.key_ranges


def test_starts_that_were_seen_are_kept_alive() -> None:
    """A new tensor can therefore never lie where the remembered one lay."""
    geometry = memo()
    first = geometry(torch.zeros(2, 8, dtype=torch.int64))
    for _ in range(20):
        other = geometry(torch.full((2, 8), 0, dtype=torch.int64))
        assert other.key_ranges is not first.key_ranges


def test_blocks_of_a_decoder_share_one_memo() -> None:
    model = small_model(num_layers=3)
    decoder = small_decoder(model)
    assert len({id(layer.geometry) for layer in decoder.layers}) == 1
    other = small_decoder(model)
    assert other.layers[0].geometry is not decoder.layers[0].geometry
    decoder(*random_inputs(model))


def test_positions_restart_and_stay_valid_before_the_start() -> None:
    starts = torch.tensor([[0, 0, 2, 2], [3, 3, 3, 3]])
    assert token_positions(starts, 0, reset=True).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert token_positions(starts, 5, reset=True).tolist() == [[5, 6, 5, 6], [2, 3, 4, 5]]
    assert token_positions(starts, 5, reset=False).tolist() == [5, 6, 7, 8]


def test_table_begins_at_the_first_position_and_grows() -> None:
    """Decoding past the sequence length needs more rows than training."""
    model = small_model(position="rotary")
    geometry = GeometryMemo(model, BuildOptions(reset_positions=False), PLACE)
    starts = torch.zeros(1, 4, dtype=torch.int64)
    table = geometry(starts)
    assert table.positions_BT is None
    past = model.sequence_length - 2
    longer = geometry(starts, past)
    assert longer.cos.shape[0] == model.sequence_length + 2
    assert longer.positions_BT.tolist() == [[past, past + 1, past + 2, past + 3]]
    assert torch.equal(longer.cos[: model.sequence_length], table.cos)
