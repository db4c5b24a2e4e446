"""Whether activations would overflow in fp16, whose largest number is 65,504.

What stands close to it in a run in bf16 or fp32 foretells what fp16 would do: a value beyond it is
infinite there, and everything behind it is no number. Sums inside of norms, of attention and of
matrix products are kept in float32 in fp16 too, so that the outputs of modules are what counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

FP16_LARGEST = 65504.0
# From this share of it on a site is told to be close: two doublings are a matter of one odd token.
CLOSE = 0.25


def overflow_summary(largest: Mapping[str, Tensor]) -> dict[str, Any]:
    """sites: of each the largest absolute value and its share of the limit, in
    the order in which they are computed; overflows and close: those beyond the limit and near."""
    values = {site: float(value) for site, value in largest.items()}
    sites = [
        {"site": site, "largest": value, "share": value / FP16_LARGEST}
        for site, value in values.items()
    ]
    beyond = [site for site, value in values.items() if overflows(value)]
    close = [
        site
        for site, value in values.items()
        if site not in beyond and value >= CLOSE * FP16_LARGEST
    ]
    return {"limit": FP16_LARGEST, "sites": sites, "overflows": beyond, "close": close}


def overflows(value: float) -> bool:
    """Whether it is infinite once it is rounded to fp16: half a unit in the last place more."""
    return not math.isfinite(value) or value >= FP16_LARGEST + 16.0
