"""rotary_table: exact angles, the same for every shape of the positions."""

from __future__ import annotations

import pytest
import torch

from roots.errors import RootsError
from roots.ops import rotary_table


def test_table_is_exact_at_large_positions() -> None:
    """fp32 angles would be wrong in the third digit at position 100,000."""
    position = 100_003
    cos, sin = rotary_table(torch.tensor([position]), 64)
    angles_R = position * 10000.0 ** (-torch.arange(0, 64, 2).double() / 64)
    assert (cos[0].double() - angles_R.cos()).abs().max() < 1e-7
    assert (sin[0].double() - angles_R.sin()).abs().max() < 1e-7
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == (1, 32)


def test_table_of_rows_equals_tables_of_each_row() -> None:
    positions_BT = torch.tensor([[0, 1, 2], [7, 0, 1]])
    cos_BTR, sin_BTR = rotary_table(positions_BT, 8, base=500.0)
    for row in range(2):
        cos_TR, sin_TR = rotary_table(positions_BT[row], 8, base=500.0)
        assert torch.equal(cos_BTR[row], cos_TR)
        assert torch.equal(sin_BTR[row], sin_TR)


def test_odd_size_is_refused() -> None:
    with pytest.raises(RootsError) as caught:
        rotary_table(torch.arange(3), 7)
    assert str(caught.value) == (
        "rotary_size=7: must be even and at least 2, since dims are rotated in pairs; "
        "change model.rotary_fraction"
    )
